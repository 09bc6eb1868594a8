//! `pleach audit` over a real dataset and a real store, with records as ranks would make them.

use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use pleach_base::{Fence, Generation, Step, TaskName, Term};
use pleach_data::{Order, Plan};
use pleach_proto::v1::{CommitRecord, Job, JobState};
use pleach_spec::Job as Spec;
use pleach_store::{Gate, LedgerRow, Snapshot, SnapshotFile, Store, StoreOptions, TaskStore};
use pleach_testkit::s3::{S3Options, S3Server};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::fake::Fake;
use crate::{pleach, run};

/// Usable rows, of which an epoch has 4 steps in 2 lanes.
const ROWS: u64 = 30;
const CONFIG: &str = r#"{"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;

struct Trained {
    folder: tempfile::TempDir,
    job: Spec,
}

impl Trained {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("model")).unwrap();
        std::fs::write(at("model/config.json"), CONFIG).unwrap();
        let mut rows = String::from("{\"input_ids\": [200], \"input_ids_pair\": [1]}\n");
        (0..ROWS)
            .for_each(|row| rows += &format!("{{\"input_ids\": [{row}, 7], \"input_ids_pair\": [{}]}}\n", row + 1));
        std::fs::write(at("rows.jsonl"), rows).unwrap();
        let text = format!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {{name: demo}}\nspec:\n  backbone: {{path: {0}/model, pooling: mean}}\n  \
             workers: {{min: 1, max: 2}}\n  data: {{source: {0}/rows.jsonl, task: retrieval, max_length: 16, max_bad_rows: 1}}\n  \
             train: {{global_batch: 8, epochs: 3, optimizer: {{lr: 1e-3}}}}\n  \
             tasks: [{{name: search, adapter: {{method: lora, r: 2, target_modules: [query]}}}}]\n  checkpoint: {{store: {0}/store, every: 2}}\n",
            folder.path().display()
        );
        std::fs::write(at("job.yaml"), &text).unwrap();
        let job = pleach_spec::parse(&text, "job").unwrap().resolve();
        Self { folder, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> TaskStore {
        let store = Store::open(self.path("store").to_str().unwrap(), &StoreOptions::default()).unwrap();
        store.task(&"default".into(), &"demo".into(), &"search".into())
    }

    /// What the ranks of a generation would record of a step.
    fn row(&self, step: u64, generation: u64) -> LedgerRow {
        let (train, data) = (&self.job.spec.train, self.job.spec.data.as_ref().unwrap());
        let plan = Plan::of(train, ROWS, train.lanes.unwrap()).unwrap();
        let order = Order::new(plan.clone(), train.seed, &TaskName::from("search"), data);
        let lanes: Vec<_> = (0..plan.lanes()).map(|lane| order.lane_rows(step - 1, lane).rows).collect();
        let digest =
            |rows: &Vec<u64>| Sha256::digest(rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<_>>());
        let digests: Vec<_> = lanes.iter().map(digest).collect();
        LedgerRow {
            task: "search".into(),
            step: Step(step),
            fence: Fence { term: Term(1), generation: Generation(generation) },
            epoch: (step - 1) / plan.steps_per_epoch(),
            samples: lanes.iter().map(|rows| rows.len() as u64).sum(),
            digest: format!("{:064x}", step * 10 + generation),
            sample_digest: hex::encode(Sha256::digest(digests.concat())),
            lane_digests: digests.iter().map(hex::encode).collect(),
            skipped: step == 3,
            tokens: None,
            world: 2,
            unix_ms: i64::try_from(step).unwrap() * 1_000,
        }
    }

    async fn commit(&self, generation: u64, step: u64, ledger: Vec<LedgerRow>) {
        let fence = Fence { term: Term(1), generation: Generation(generation) };
        let files = vec![SnapshotFile::new("adapter_model.safetensors", vec![1])];
        let snapshot = Snapshot { step: Step(step), files, gate: Gate::passed(), meta: serde_json::Map::new(), ledger };
        self.store().fence(fence).await.unwrap().commit(&snapshot).await.unwrap();
    }

    fn offline(&self, more: &[&str]) -> (i32, String, String) {
        let file = self.path("job.yaml");
        let args = [&["audit", "--job-file", file.to_str().unwrap()], more].concat();
        run(pleach(&args).env("XDG_CACHE_HOME", self.path("cache")))
    }

    async fn online(&self, state: JobState, commits: Vec<LedgerRow>, more: &[&str]) -> (i32, String, String) {
        let stored = Job {
            id: "demo".into(),
            tenant: "default".into(),
            state: state.into(),
            spec_json: self.job.canonical_json(),
            ..Default::default()
        };
        let (fake, address) = Fake::serve(stored, Vec::new(), None).await;
        fake.record(commits.into_iter().map(record).collect());
        let mut command = pleach(&[&["audit", "demo"], more].concat());
        command.env("PLEACH_ADDRESS", format!("http://{address}")).env("XDG_CACHE_HOME", self.path("cache"));
        tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
    }
}

fn record(row: LedgerRow) -> CommitRecord {
    CommitRecord {
        task: row.task.to_string(),
        step: row.step.0,
        term: row.fence.term.0,
        generation: row.fence.generation.0,
        digest: row.digest,
        sample_digest: row.sample_digest,
        samples: row.samples,
        epoch: row.epoch,
        skipped: row.skipped,
        unix_ms: row.unix_ms,
        lane_digests: row.lane_digests,
        world: row.world,
    }
}

fn json(out: &str) -> Value {
    serde_json::from_str(out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_with_a_lost_generation_is_proven_from_the_store_alone() {
    let trained = Trained::new();
    trained.commit(1, 3, (1..=3).map(|step| trained.row(step, 1)).collect()).await;
    // Generation 1 got to step 5; generation 2 made 5 again.
    trained.commit(1, 5, vec![trained.row(4, 1), trained.row(5, 1)]).await;
    trained.commit(2, 6, vec![trained.row(5, 2), trained.row(6, 2)]).await;
    let (code, out, err) = trained.offline(&[]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("demo/search: 30 usable rows, 1 malformed"), "{out}");
    assert!(out.contains("rows.jsonl:1: ") && out.contains("token id 200"), "{out}");
    assert!(out.contains("epoch 0: every usable row was trained exactly once, 30 rows (4 of 4 steps"), "{out}");
    assert!(out.contains("step 3 was not finite: its rows were fed, the update was left out"), "{out}");
    assert!(
        out.contains("epoch 1: unfinished; so far 16 rows, none twice (2 of 4 steps; steps 5 to 6 by generation 2"),
        "{out}"
    );
    assert!(out.contains("superseded: the record of step 5 by generation 1 of term 1"), "{out}");
    assert!(err.contains("everything on record holds"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_object_storage_are_fetched_and_compared() {
    let trained = Trained::new();
    trained.commit(1, 3, (1..=3).map(|step| trained.row(step, 1)).collect()).await;
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let bucket = server.root().join(server.bucket());
    std::fs::create_dir_all(bucket.join("corpus")).unwrap();
    std::fs::rename(trained.path("rows.jsonl"), bucket.join("corpus/rows.jsonl")).unwrap();
    let audit = |folder: &str| {
        let source = format!("spec.data.source=s3://{}/{folder}/*.jsonl", server.bucket());
        let file = trained.path("job.yaml");
        let mut command = pleach(&["audit", "--job-file", file.to_str().unwrap(), "--set", &source]);
        command.envs(server.env()).env("XDG_CACHE_HOME", trained.path("cache"));
        tokio::task::spawn_blocking(move || run(&mut command))
    };
    let (code, out, err) = audit("corpus").await.unwrap();
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("demo/search: 30 usable rows, 1 malformed"), "{out}");
    assert!(out.contains("epoch 0: unfinished; so far 24 rows, none twice (3 of 4 steps"), "{out}");
    let (code, out, err) = audit("absent").await.unwrap();
    assert!(code > 1 && err.contains("absent"), "{code} {out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_are_not_durable_yet_come_from_the_coordinator() {
    let trained = Trained::new();
    trained.commit(1, 3, (1..=3).map(|step| trained.row(step, 1)).collect()).await;
    let commits = (2..=9).map(|step| trained.row(step, 1)).collect();
    let (code, out, err) = trained.online(JobState::Running, commits, &["-o", "json"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let task = &json(&out)["tasks"][0];
    assert_eq!((task["last_step"].as_u64(), task["epochs"].as_array().map(Vec::len)), (Some(9), Some(3)));
    assert_eq!(task["epochs"][1]["finished"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_hold_ends_with_one_and_names_step_and_lane() {
    let trained = Trained::new();
    let mut rows: Vec<_> = (1..=4).map(|step| trained.row(step, 1)).collect();
    rows[1].lane_digests.swap(0, 1);
    trained.commit(1, 4, rows).await;
    let (code, out, err) = trained.offline(&[]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("epoch 0: DOES NOT HOLD; 22 rows are proven"), "{out}");
    assert!(out.contains("does not hold: step 2, lane 0: it was fed what lane 1 should have been fed"), "{out}");
    assert!(
        out.contains("8 usable rows are in no step that is proven, the first of them") && out.contains("rows.jsonl:")
    );
    let (code, out, _) = trained.offline(&["-o", "json"]);
    let finding = json(&out)["tasks"][0]["epochs"][0]["findings"][1].clone();
    assert_eq!((code, finding["step"].as_u64(), finding["lane"].as_u64()), (1, Some(2), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_succeeded_has_a_record_of_every_step() {
    let trained = Trained::new();
    trained.commit(1, 11, (1..=11).filter(|step| *step != 6).map(|step| trained.row(step, 1)).collect()).await;
    let (code, out, err) = trained.online(JobState::Succeeded, Vec::new(), &[]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("does not hold: step 6: no record says what was fed"), "{out}");
    assert!(out.contains("does not hold: step 12: no record says what was fed"), "{out}");
    assert!(out.contains("epoch 0: every usable row"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dataset_of_as_many_rows_is_noticed() {
    let trained = Trained::new();
    let fence = Fence { term: Term(1), generation: Generation(1) };
    let meta = serde_json::json!({"dataset_digest": "00"}).as_object().unwrap().clone();
    let files = vec![SnapshotFile::new("a", vec![1])];
    let ledger = vec![trained.row(1, 1)];
    let snapshot = Snapshot { step: Step(1), files, gate: Gate::passed(), meta, ledger };
    trained.store().fence(fence).await.unwrap().commit(&snapshot).await.unwrap();
    let (code, out, _) = trained.offline(&[]);
    assert_eq!(code, 1);
    assert!(out.contains("does not hold: the dataset is not the one that was trained on"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_has_a_row_for_each_row_of_each_epoch() {
    let trained = Trained::new();
    trained.commit(1, 5, (1..=5).map(|step| trained.row(step, 1)).collect()).await;
    let to = trained.path("trained.parquet");
    let (code, out, err) = trained.offline(&["-o", "parquet", "--to", to.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{err}");
    let rows = table(&to);
    assert_eq!(rows.len(), 38);
    let mut first: Vec<_> = rows.iter().filter(|row| row.0 == 0).map(|row| row.1).collect();
    first.sort_unstable();
    assert_eq!(first, (0..ROWS).collect::<Vec<_>>());
    assert!(
        rows.iter()
            .all(|(epoch, _, step, lane, generation)| *epoch == (*step - 1) / 4 && *lane < 2 && *generation == 1)
    );
}

fn table(path: &Path) -> Vec<(u64, u64, u64, u32, u64)> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
    let long = |row: &parquet::record::Row, at| row.get_ulong(at).unwrap();
    rows.map(|row| (long(&row, 1), long(&row, 2), long(&row, 3), row.get_uint(4).unwrap(), long(&row, 6))).collect()
}

#[test]
fn what_is_asked_for_has_to_make_sense() {
    let trained = Trained::new();
    let (code, _, err) = trained.offline(&["--task", "other"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("the job has no such task") && err.contains("its tasks are search"), "{err}");
    assert_eq!(trained.offline(&["-o", "parquet"]).0, 2, "parquet needs a file");
    assert_eq!(run(&mut pleach(&["audit"])).0, 2, "a job or its file");
    let (code, out, _) = trained.offline(&[]);
    assert_eq!(code, 0, "nothing is on record, and that holds: {out}");
}
