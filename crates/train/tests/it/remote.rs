//! Data in S3: the same bits as from a folder, downloaded once, and what is said when it cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pleach_testkit::s3::{S3Options, S3Server};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::fixture::{bert_job, llama_job, lm_row, stored};
use crate::processes::{Gang, Report, gang};

/// A server, a folder for runs, and a cache for the downloads of rank processes.
struct Scene {
    folder: tempfile::TempDir,
    server: S3Server,
    _runtime: Runtime,
}

impl Scene {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(S3Server::start(S3Options::default())).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), server, _runtime: runtime }
    }

    /// A folder for one run.
    fn run_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    }

    /// Moves the file that `at` of the job names into the bucket.
    fn upload(&self, job: &mut Value, at: &str) {
        let source = job.pointer_mut(at).unwrap();
        let local = PathBuf::from(source.as_str().unwrap());
        let name = local.file_name().unwrap().to_str().unwrap();
        let key = format!("corpus/{}/{name}", name.split('.').next().unwrap());
        let to = self.server.root().join(self.server.bucket()).join(&key);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(&local, to).unwrap();
        *source = json!(format!("s3://{}/{}", self.server.bucket(), key.replace(name, "*.jsonl")));
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        let mut env = self.server.env();
        env.push(("XDG_CACHE_HOME", self.folder.path().join("cache").display().to_string()));
        env
    }

    fn run(&self, folder: &Path, job: &Value, env: Vec<(&'static str, String)>) -> Report {
        gang(folder, job, 1, &Gang { env, ..Gang::default() }).remove(0)
    }

    /// The copies, with what changes when one is written again.
    fn copies(&self) -> BTreeMap<String, u64> {
        let found = fs::read_dir(self.folder.path().join("cache/pleach/data")).unwrap().map(Result::unwrap);
        found.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().ino())).collect()
    }
}

/// The last step. Which ones before it are there is a matter of the store's speed.
fn last(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = stored(folder);
    files.retain(|name, _| name.starts_with("00000006"));
    files
}

#[test]
fn rows_in_s3_give_the_bits_of_rows_in_a_folder_and_are_fetched_once() {
    let scene = Scene::start();
    let (local, remote, again) = (scene.run_folder("local"), scene.run_folder("remote"), scene.run_folder("again"));
    let report = scene.run(&local, &llama_job(&local, 20), Vec::new());
    assert_eq!(report.end, "Finished", "{}", report.message);
    let mut job = llama_job(&remote, 20);
    scene.upload(&mut job, "/spec/data/source");
    scene.upload(&mut job, "/spec/eval/source");
    let report = scene.run(&remote, &job, scene.env());
    assert_eq!(report.end, "Finished", "{}", report.message);
    assert_eq!(last(&local).len(), 4);
    assert!(last(&local) == last(&remote), "files differ");
    let copies = scene.copies();
    assert_eq!(copies.len(), 2, "{copies:?}");

    // The checkpoint's endpoint wins over the environment's.
    job["spec"]["checkpoint"] =
        json!({"store": again.join("store"), "every": 2, "endpoint": scene.server.endpoint(), "region": "us-east-1"});
    let mut env = scene.env();
    env.push(("AWS_ENDPOINT_URL", "http://127.0.0.1:1".to_owned()));
    let report = scene.run(&again, &job, env);
    assert_eq!(report.end, "Finished", "{}", report.message);
    assert_eq!(scene.copies(), copies, "copies are kept");

    // Other rows under the same name are another file.
    let rows = scene.server.root().join("pleach/corpus/train/train.jsonl");
    fs::write(&rows, (0..20).map(|row| lm_row(row, 19)).collect::<String>()).unwrap();
    let other = scene.run_folder("other");
    job["spec"]["checkpoint"]["store"] = json!(other.join("store"));
    let report = scene.run(&other, &job, scene.env());
    assert_eq!(report.end, "Finished", "{}", report.message);
    assert_eq!(scene.copies().len(), 3);
    let adapter = |folder| last(folder).remove("00000006-g0001/adapter_model.safetensors").unwrap();
    assert!(adapter(&again) == adapter(&local) && adapter(&other) != adapter(&local));
}

#[test]
fn candidates_are_read_from_s3_too() {
    let scene = Scene::start();
    let folder = scene.run_folder("run");
    let mut job = bert_job(&folder, 16);
    job["spec"]["train"]["epochs"] = json!(1);
    let local = scene.run(&folder, &job, Vec::new());
    fs::remove_dir_all(folder.join("store")).unwrap();
    for at in ["/spec/data/source", "/spec/eval/source", "/spec/eval/candidates"] {
        scene.upload(&mut job, at);
    }
    let report = scene.run(&folder, &job, scene.env());
    assert_eq!((report.end.as_str(), &report.metrics), ("Finished", &local.metrics), "{}", report.message);
}

#[test]
fn data_that_cannot_be_read_is_named_by_its_code() {
    let scene = Scene::start();
    let folder = scene.run_folder("run");
    let mut job = llama_job(&folder, 16);
    scene.upload(&mut job, "/spec/data/source");
    let source = job["spec"]["data"]["source"].clone();
    let with = |name, value: &str| {
        let mut env = scene.env();
        env.push((name, value.to_owned()));
        env
    };
    for (what, source, env, code) in [
        ("no object", json!("s3://pleach/corpus/none/*.jsonl"), scene.env(), "PL0201"),
        ("no bucket", json!("s3://nowhere/corpus/*.jsonl"), scene.env(), "PL0607"),
        ("another scheme", json!("gs://pleach/corpus/*.jsonl"), scene.env(), "PL0607"),
        ("wrong secret", source.clone(), with("AWS_SECRET_ACCESS_KEY", "wrong"), "PL0602"),
        ("no server", source, with("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), "PL0601"),
    ] {
        job["spec"]["data"]["source"] = source;
        let report = scene.run(&folder, &job, env);
        assert_eq!(report.end, code, "{what}: {}", report.message);
        let place = report.message.contains("corpus") || what == "another scheme";
        assert!(place, "{what}: {}", report.message);
    }
}

/// A published step as an expert: fetched once for all, and the same as from its folder.
#[test]
fn experts_in_s3_are_those_of_a_folder() {
    let scene = Scene::start();
    let (local, remote, again) = (scene.run_folder("local"), scene.run_folder("remote"), scene.run_folder("again"));
    let mut job = llama_job(&local, 20);
    job["spec"].as_object_mut().unwrap().remove("eval");
    let report = scene.run(&local, &job, Vec::new());
    assert_eq!(report.end, "Finished", "{}", report.message);
    let step = local.join("store/default/tiny/a/steps/00000006-g0001");
    let key = "acme/tone/a/steps/00000006-g0001";
    let to = scene.server.root().join(scene.server.bucket()).join(key);
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(&step).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let mut over = |experts: Value, folder: &Path| {
        job["spec"]["tasks"] = json!([{"name": "a", "adapter": {"method": "xlora", "experts": experts}}]);
        job["spec"]["checkpoint"]["store"] = json!(folder.join("router"));
        let report = scene.run(folder, &job, scene.env());
        assert_eq!(report.end, "Finished", "{}", report.message);
        report.digests
    };
    let address = format!("s3://{}/{key}", scene.server.bucket());
    let expected = over(json!([step, step]), &local);
    assert_eq!(over(json!([address, address]), &remote), expected);
    fs::remove_dir_all(to).unwrap();
    assert_eq!(over(json!([address, address]), &again), expected, "fetched before");
    let fetched = fs::read_dir(scene.folder.path().join("cache/pleach/experts")).unwrap().count();
    assert_eq!(fetched, 1);
    job["spec"]["tasks"][0]["adapter"]["experts"] =
        json!([format!("s3://{}/acme/tone/a", scene.server.bucket()), step]);
    let refused = scene.run(&remote, &job, scene.env());
    assert!(refused.message.contains("does not name a step"), "{}", refused.message);
}
