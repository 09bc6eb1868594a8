//! Tiny models recorded with PEFT, datasets over their vocabulary, and an observer that keeps what it hears.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pleach_base::{Fence, Generation, SystemClock, Term};
use pleach_comm::Collective;
use pleach_spec::Job;
use pleach_train::{
    DurableRow, EvalRow, JobContext, Level, Observer, Outcome, StepRow, StopSignal, TaskStatus, Warm, run_job,
};
use serde_json::{Value, json};

pub(crate) fn parity(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity").join(case)
}

/// A job over the tiny llama: `rows` of ready token ids of uneven lengths, 8 a step.
pub(crate) fn llama_job(folder: &Path, rows: usize) -> Value {
    let data = folder.join("train.jsonl");
    std::fs::write(&data, (0..rows).map(|row| lm_row(row, 0)).collect::<String>()).unwrap();
    let held_out = folder.join("eval.jsonl");
    std::fs::write(&held_out, (0..10).map(|row| lm_row(row, 1_000)).collect::<String>()).unwrap();
    json!({
        "apiVersion": "pleach.dev/v1", "kind": "Job", "metadata": {"name": "tiny"},
        "spec": {
            "backbone": {"path": parity("llama-lora").join("model")},
            "data": {"source": data, "task": "causal_lm", "max_length": 64},
            "train": {"global_batch": 8, "lanes": 4, "epochs": 2, "optimizer": {"lr": 5e-3, "weight_decay": 0.01}, "seed": 3},
            "tasks": [{"name": "a", "adapter": {"method": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}}],
            "eval": {"source": held_out, "metrics": ["loss", "accuracy"]},
            "checkpoint": {"store": folder.join("store"), "every": 2}
        }
    })
}

/// Between 2 and 20 tokens; the number decides which.
pub(crate) fn lm_row(row: usize, salt: usize) -> String {
    let length = 2 + (row * 7 + salt) % 19;
    let ids: Vec<_> = (0..length).map(|at| (row * 31 + at * at * 17 + salt) % 250).collect();
    format!("{}\n", json!({"input_ids": ids}))
}

/// A job over the tiny bert as a retriever.
pub(crate) fn bert_job(folder: &Path, rows: usize) -> Value {
    let write = |name: &str, range: std::ops::Range<usize>| {
        let path = folder.join(name);
        std::fs::write(&path, range.map(pair_row).collect::<String>()).unwrap();
        path
    };
    let mut job = llama_job(folder, 1);
    job["spec"]["backbone"] = json!({"path": parity("bert-lora").join("model"), "pooling": "mean"});
    job["spec"]["data"] = json!({"source": write("pairs.jsonl", 0..rows), "task": "retrieval", "max_length": 64});
    job["spec"]["eval"] = json!({
        "source": write("held-out.jsonl", 0..12),
        "candidates": write("candidates.jsonl", 6..40),
        "metrics": ["recall@1", "recall@5", "mrr"]
    });
    job["spec"]["tasks"][0]["adapter"]["target_modules"] = json!(["query", "value"]);
    job["spec"]["tasks"][0]["adapter"]["lora_dropout"] = json!(0.1);
    job
}

fn pair_row(row: usize) -> String {
    let ids = |salt: usize, length: usize| (0..length).map(|at| (row * 13 + at * 29 + salt) % 250).collect::<Vec<_>>();
    let (query, passage) = (ids(0, 2 + row % 5), ids(7, 5 + (row * 5) % 17));
    format!("{}\n", json!({"input_ids": query, "input_ids_pair": passage}))
}

pub(crate) fn parse(job: &Value) -> Job {
    serde_json::from_value(job.clone()).unwrap()
}

/// Everything that a rank was told.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) steps: Mutex<Vec<StepRow>>,
    pub(crate) evals: Mutex<Vec<EvalRow>>,
    pub(crate) durable: Mutex<Vec<DurableRow>>,
    pub(crate) tasks: Mutex<Vec<TaskStatus>>,
    pub(crate) lines: Mutex<Vec<String>>,
    /// Asked to drain after this step.
    drain_at: Option<(u64, StopSignal)>,
    /// Asked to drain after so many steps of whatever tasks.
    drain_after: Option<(usize, StopSignal)>,
    /// The process is killed after this step.
    pub(crate) die_at: Option<u64>,
}

impl Heard {
    pub(crate) fn draining_at(step: u64, stop: &StopSignal) -> Self {
        Self { drain_at: Some((step, stop.clone())), ..Self::default() }
    }

    pub(crate) fn stopping_after(steps: usize, stop: &StopSignal) -> Self {
        Self { drain_after: Some((steps, stop.clone())), ..Self::default() }
    }

    pub(crate) fn losses(&self) -> Vec<f64> {
        self.steps.lock().unwrap().iter().map(|row| row.loss).collect()
    }

    pub(crate) fn digests(&self) -> Vec<String> {
        self.steps.lock().unwrap().iter().map(|row| row.digest.clone()).collect()
    }
}

impl Observer for Heard {
    fn step(&self, row: &StepRow) {
        self.steps.lock().unwrap().push(row.clone());
        if let Some((step, stop)) = &self.drain_at
            && row.step == *step
        {
            stop.drain("the test says so");
        }
        if let Some((steps, stop)) = &self.drain_after
            && self.steps.lock().unwrap().len() == *steps
        {
            stop.drain("the test says so");
        }
        if self.die_at == Some(row.step) {
            // Without a word, and without a chance to say one.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
    fn eval(&self, row: &EvalRow) {
        self.evals.lock().unwrap().push(row.clone());
    }
    fn durable(&self, row: &DurableRow) {
        self.durable.lock().unwrap().push(row.clone());
    }
    fn task(&self, status: &TaskStatus) {
        self.tasks.lock().unwrap().push(status.clone());
    }
    fn log(&self, _: Level, text: &str) {
        self.lines.lock().unwrap().push(text.to_owned());
    }
}

/// Runs a job as one rank of `group`.
pub(crate) fn run(
    job: Job,
    group: &dyn Collective,
    generation: u64,
    heard: &Arc<Heard>,
    stop: StopSignal,
) -> pleach_base::Result<Outcome> {
    tch::set_num_threads(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cx = JobContext {
        tenant: "default".into(),
        id: job.metadata.name.as_str().into(),
        job,
        fence: Fence { term: Term(1), generation: Generation(generation) },
        heads: Default::default(),
        recorded: pleach_train::Recorded::at_once(),
        feed: None,
        group,
        observer: Arc::<Heard>::clone(heard),
        stop,
        runtime: runtime.handle().clone(),
        clock: SystemClock::shared(),
    };
    run_job(cx, &mut Warm::default())
}

/// Runs a job alone, to its end.
pub(crate) fn run_alone(job: &Value) -> (pleach_base::Result<Outcome>, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let group = pleach_comm::local(tch::Device::Cpu);
    (run(parse(job), group.as_ref(), 1, &heard, StopSignal::default()), heard)
}

/// Content of every file of every step folder of task `a`, by path.
pub(crate) fn stored(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let steps = folder.join("store/default/tiny/a/steps");
    let mut files = BTreeMap::new();
    for step in std::fs::read_dir(steps).unwrap().map(Result::unwrap) {
        for file in std::fs::read_dir(step.path()).unwrap().map(Result::unwrap) {
            let name = format!("{}/{}", step.file_name().display(), file.file_name().display());
            files.insert(name, std::fs::read(file.path()).unwrap());
        }
    }
    files
}
