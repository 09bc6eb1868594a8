//! A small job on a tiny model, and the programs that run it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pleach_testkit::process::{Process, binary};
use serde_json::{Value, json};

/// For anything that trains; the machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(180);

/// A folder with data and a job file in it.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Sixty-four rows of token ids of many lengths.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let row = |row: u64| {
            let ids: Vec<u64> = (0..5 + row % 11).map(|at| (row * 31 + at * 17) % 200 + 3).collect();
            json!({ "input_ids": ids }).to_string()
        };
        let rows: Vec<String> = (0..64).map(row).collect();
        std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n") + "\n").unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The job, to be changed at will: strict, two workers, a checkpoint every five steps.
    pub(crate) fn spec(&self, steps: u64) -> Value {
        json!({
            "backbone": {"path": model()},
            "workers": {"min": 1, "max": 2, "threads": 1},
            "data": {"source": self.path("rows.jsonl"), "task": "causal_lm", "max_length": 32},
            "train": {"global_batch": 8, "max_steps": steps, "determinism": "strict", "optimizer": {"lr": 5e-3}},
            "tasks": [{"name": "words", "adapter": {"method": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}}],
            "checkpoint": {"store": self.path("store"), "every": 5},
        })
    }

    /// Writes `NAME.yaml`.
    pub(crate) fn job(&self, name: &str, spec: &Value) -> PathBuf {
        // YAML is a superset of JSON.
        let job = json!({"apiVersion": "pleach.dev/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, serde_json::to_string_pretty(&job).unwrap()).unwrap();
        path
    }

    /// `pleach train` on a job, with a state of its own.
    pub(crate) fn train(&self, job: &Path, env: &[(&str, String)]) -> Process {
        let mut command = pleach();
        command.arg("train").arg(job).args(["-o", "json", "--state"]).arg(self.path("state"));
        command.envs(env.iter().map(|(name, value)| (*name, value.as_str())));
        Process::start("pleach train", command).unwrap()
    }

    /// Trains to the end and returns the job as reported.
    pub(crate) fn trained(&self, job: &Path, env: &[(&str, String)]) -> Value {
        finished(self.train(job, env))
    }
}

/// Waits for a `pleach ... -o json` that must succeed, and returns what it printed.
pub(crate) fn finished(mut process: Process) -> Value {
    let status = process.wait(LONG).unwrap();
    assert!(status.success(), "{}", process.text());
    printed(&process)
}

/// The JSON on standard output.
pub(crate) fn printed(process: &Process) -> Value {
    let out: Vec<String> = process.lines().into_iter().filter(|line| !line.is_stderr).map(|line| line.text).collect();
    serde_json::from_str(&out.join("\n")).unwrap_or_else(|error| panic!("{error}: {}", process.text()))
}

pub(crate) fn pleach() -> Command {
    let mut command = Command::new(binary("pleach").unwrap());
    for name in ["PLEACH_ADDRESS", "PLEACH_TOKEN", "PLEACH_TENANT"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/parity/llama-lora/model").canonicalize().unwrap()
}

/// The adapter that a job of [`Bench`] left in a folder store.
pub(crate) fn adapter(store: &Path, job: &Value) -> Vec<u8> {
    let folder = job["tasks"][0]["durable_folder"].as_str().unwrap();
    std::fs::read(store.join(folder).join("adapter_model.safetensors")).unwrap()
}

/// sha256 in hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
