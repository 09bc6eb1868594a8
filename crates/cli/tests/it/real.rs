//! Against a real coordinator process: what is stored, what is refused, how it starts and stops. Training is tested
//! where the worker binary is built (`tests/e2e`).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use crate::{pleach, run};

/// A coordinator that is killed with the test.
struct Coordinator {
    child: Child,
    /// Kept open: its last words must not meet a closed pipe.
    _out: BufReader<ChildStdout>,
    address: String,
}

impl Coordinator {
    fn start(args: &[&str]) -> Self {
        let mut command = pleach(&["coordinator", "--listen", "127.0.0.1:0", "--http", "off"]);
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut address = String::new();
        out.read_line(&mut address).expect("its address");
        Self { child, _out: out, address: address.trim().to_owned() }
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(pleach(args).env("PLEACH_ADDRESS", &self.address))
    }

    /// Asks it to end, as a service manager does.
    fn terminate(mut self) -> i32 {
        let id = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).expect("alive");
        self.child.wait().expect("ends").code().expect("no signal")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A job over a model folder whose weights nobody reads before training.
pub(crate) fn job(folder: &Path) -> String {
    let config = r#"{"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;
    let model = folder.join("model");
    std::fs::create_dir_all(&model).expect("created");
    std::fs::write(model.join("config.json"), config).expect("written");
    std::fs::write(model.join("model.safetensors"), pleach_store::tensors::write(&[]).expect("bytes"))
        .expect("written");
    let sample = include_str!("../../../../docs/jobs/lora-retrieval.yaml");
    let text = sample.replace("models/all-MiniLM-L6-v2", model.to_str().expect("text"));
    let file = folder.join("job.yaml");
    std::fs::write(&file, text).expect("written");
    file.to_str().expect("text").to_owned()
}

#[test]
fn the_same_job_is_the_same_and_another_one_under_its_id_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let file = job(folder.path());
    let coordinator = Coordinator::start(&["--state", "memory"]);
    let (code, out, err) = coordinator.run(&["submit", &file, "--no-wait", "--id", "one"]);
    assert_eq!((code, out.as_str()), (0, "one\n"), "{err}");
    assert!(err.contains("one submitted, queued: needs 1 worker"), "{err}");
    let (code, _, err) = coordinator.run(&["submit", &file, "--no-wait", "--id", "one"]);
    assert_eq!(code, 0);
    assert!(err.contains("one was submitted before"), "{err}");
    let (code, _, err) = coordinator.run(&["submit", &file, "--no-wait", "--id", "one", "--set", "spec.train.seed=7"]);
    assert_eq!(code, 1);
    assert!(err.contains("PL0703"), "{err}");
    let (_, out, _) = coordinator.run(&["get", "one", "-o", "json"]);
    let stored: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(stored["spec"]["spec"]["train"]["lanes"], 2, "the stored job is resolved");
    assert_eq!(stored["tasks"][0]["trainable_params"], 1_536, "and planned");
}

#[test]
fn what_the_coordinator_finds_in_the_model_is_shown_on_the_files_line() {
    let folder = tempfile::tempdir().expect("folder");
    let file = job(folder.path());
    let coordinator = Coordinator::start(&["--state", "memory"]);
    let set = "spec.tasks[0].adapter.target_modules=[quer]";
    let (code, _, err) = coordinator.run(&["submit", &file, "--no-wait", "--set", set]);
    assert_eq!(code, 2);
    assert!(err.contains(&format!("--set {set}: spec.tasks[0].adapter")) && err.contains("PL0402"), "{err}");
    std::fs::remove_file(folder.path().join("model/config.json")).expect("removed");
    let (code, _, err) = coordinator.run(&["submit", &file, "--no-wait"]);
    assert_eq!(code, 1);
    assert!(err.contains("job.yaml:8:11: spec.backbone.path") && err.contains("PL0301"), "{err}");
}

#[test]
fn jobs_outlive_the_coordinator_and_a_cancelled_one_can_be_deleted() {
    let folder = tempfile::tempdir().expect("folder");
    let file = job(folder.path());
    let state = folder.path().join("state.redb");
    let state = ["--state", state.to_str().expect("text")];
    let first = Coordinator::start(&state);
    assert_eq!(first.run(&["submit", &file, "--no-wait", "--id", "kept"]).0, 0);
    assert_eq!(first.terminate(), 0, "SIGTERM is an orderly end");
    let second = Coordinator::start(&state);
    let (_, out, _) = second.run(&["get"]);
    assert!(out.contains("kept  queued"), "{out}");
    let (code, out, err) = second.run(&["cancel", "kept", "--reason", "enough"]);
    assert_eq!((code, out.as_str()), (0, "kept cancelled\n"), "{err}");
    let (code, out, _) = second.run(&["logs", "kept"]);
    assert_eq!(code, 0);
    assert!(out.contains("Submitted: ") && out.contains("enough"), "{out}");
    assert_eq!(second.run(&["delete", "kept"]).0, 0);
    let (code, _, err) = second.run(&["describe", "kept"]);
    assert_eq!(code, 1);
    assert!(err.contains("PL0704"), "{err}");
}

#[test]
fn a_token_is_asked_for_and_a_taken_port_is_named() {
    let coordinator = Coordinator::start(&["--state", "memory", "--token", "s3cret"]);
    let (code, _, err) = coordinator.run(&["get"]);
    assert_eq!(code, 1);
    assert!(err.contains("hint: set `PLEACH_TOKEN`"), "{err}");
    assert_eq!(coordinator.run(&["get", "--token", "s3cret"]).0, 0);
    let taken = coordinator.address.trim_start_matches("http://");
    let (code, out, err) = run(&mut pleach(&["coordinator", "--listen", taken, "--http", "off", "--state", "memory"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(&format!("{taken} is in use")) && err.contains("PL0702"), "{err}");
    let (code, _, err) = run(&mut pleach(&["coordinator", "--listen", "0.0.0.0:0", "--state", "memory"]));
    assert_eq!(code, 2);
    assert!(err.contains("no token is set"), "{err}");
}

#[test]
fn training_here_says_what_is_missing_before_it_starts_anything() {
    let folder = tempfile::tempdir().expect("folder");
    let file = job(folder.path());
    let state = folder.path().join("train");
    let train = |args: &[&str]| {
        let mut command = pleach(&["train", &file, "--state", state.to_str().expect("text")]);
        run(command.args(args).env("PLEACH_WORKER_BINARY", "/nowhere/pleach-worker"))
    };
    let (code, _, err) = train(&[]);
    assert_eq!(code, 1);
    assert!(err.contains("PL0902") && !state.exists(), "{err}");
    let (code, _, err) = train(&["--workers", "1", "--set", "spec.workers.min=2"]);
    assert_eq!(code, 2);
    assert!(err.contains("spec.workers.min: the job needs 2, and --workers is 1"), "{err}");
}

#[test]
fn training_here_gives_up_when_its_workers_cannot_live_and_shows_their_last_words() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let file = job(folder.path());
    let script = folder.path().join("pleach-worker");
    std::fs::write(&script, "#!/bin/sh\necho error: libtorch is of another version >&2; exit 1\n").expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let state = folder.path().join("train");
    let args = ["train", &file, "--state", state.to_str().expect("text"), "--set", "spec.workers.restarts=1"];
    let (code, out, err) = run(pleach(&args).env("PLEACH_WORKER_BINARY", &script));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("PL0804") && err.contains("  error: libtorch is of another version"), "{err}");
    assert!(err.contains("starting it again, 0 more restarts"), "{err}");
}
