//! Jobs, programs, scripts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pleach_testkit::process::{Process, binary};
use serde_json::{Value, json};

/// For anything that trains; these machines may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(240);

/// What `cargo xtask test` sets.
pub(crate) fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test interop`"))
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Runs a script of `py/` and returns the JSON value that it prints last.
pub(crate) fn python(script: &str, args: &[&str], env: &[(&str, &str)]) -> Value {
    python_of("PLEACH_INTEROP_PYTHON", script, args, env)
}

/// The same in the environment of AdapterHub's library.
pub(crate) fn adapters_python(script: &str, args: &[&str]) -> Value {
    python_of("PLEACH_ADAPTERS_PYTHON", script, args, &[])
}

fn python_of(interpreter: &str, script: &str, args: &[&str], env: &[(&str, &str)]) -> Value {
    let mut command = Command::new(variable(interpreter));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("py").join(script)).args(args);
    command.envs(env.iter().copied()).env("HF_HUB_OFFLINE", "1").env("TRANSFORMERS_VERBOSITY", "error");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let out = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script} failed:\n{stdout}\n{stderr}");
    let last = stdout.lines().last().unwrap_or_else(|| panic!("{script} printed nothing:\n{stderr}"));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{script} printed `{last}`: {error}"))
}

/// A retrieval job on the pretrained BERT.
pub(crate) fn bert_job(folder: &Path, name: &str, store: &str, steps: u64) -> PathBuf {
    let pairs = [
        ("parses JSON text", "reads objects, arrays and numbers from a stream of characters"),
        ("compresses data", "makes byte streams smaller with dictionaries and entropy coding"),
        ("an HTTP client", "sends requests to web servers and follows their redirects"),
        ("random numbers", "draws integers and floats from several distributions"),
        ("command line arguments", "turns flags and values of a program call into typed options"),
        ("regular expressions", "finds patterns in text in linear time"),
        ("a hash map", "stores values under keys and finds them again quickly"),
        ("date and time", "calendars, time zones and durations"),
    ];
    let rows = pairs.map(|(query, passage)| json!({"query": query, "passage": passage}).to_string()).join("\n");
    std::fs::write(folder.join("pairs.jsonl"), rows + "\n").unwrap();
    let spec = json!({
        "backbone": {"path": variable("PLEACH_MINILM")},
        "workers": {"min": 2, "max": 2, "threads": 1},
        "data": {"source": folder.join("pairs.jsonl"), "task": "retrieval", "text": "{query}", "text_pair": "{passage}",
            "max_length": 32},
        "train": {"global_batch": 8, "max_steps": steps, "optimizer": {"lr": 2e-3}},
        "tasks": [{"name": "pairs", "adapter": {"method": "lora", "r": 4, "lora_alpha": 8,
            "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"]}}],
        "checkpoint": {"store": store, "every": 2},
    });
    job(folder, name, &spec)
}

/// A language-modelling job on the tiny llama of the recorded cases; rows are token ids.
pub(crate) fn llama_job(folder: &Path, name: &str, store: &str, steps: u64) -> PathBuf {
    let row =
        |row: u64| json!({"input_ids": (0..12).map(|at| (row * 7 + at * 3) % 50 + 3).collect::<Vec<_>>()}).to_string();
    let rows: Vec<String> = (0..16).map(row).collect();
    std::fs::write(folder.join("ids.jsonl"), rows.join("\n") + "\n").unwrap();
    let spec = json!({
        "backbone": {"path": llama_model()},
        "workers": {"min": 2, "max": 2, "threads": 1},
        "data": {"source": folder.join("ids.jsonl"), "task": "causal_lm", "max_length": 16},
        "train": {"global_batch": 4, "max_steps": steps, "optimizer": {"lr": 1e-2}},
        "tasks": [{"name": "ids", "adapter": {"method": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}}],
        "checkpoint": {"store": store, "every": 1000},
    });
    job(folder, name, &spec)
}

pub(crate) fn llama_model() -> PathBuf {
    root().join("tests/fixtures/parity/llama-lora/model")
}

fn job(folder: &Path, name: &str, spec: &Value) -> PathBuf {
    // YAML is a superset of JSON, and the Python client edits this text.
    let job = json!({"apiVersion": "pleach.dev/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, serde_json::to_string_pretty(&job).unwrap()).unwrap();
    path
}

/// `pleach train`; returns the job's only task as reported.
pub(crate) fn train(folder: &Path, job: &Path, env: &[(&str, &str)]) -> Value {
    let mut command = Command::new(binary("pleach").unwrap());
    command.arg("train").arg(job).args(["-o", "json", "--workers", "2", "--state"]).arg(folder.join("state"));
    command.envs(env.iter().copied());
    let mut process = Process::start("pleach train", command).unwrap();
    let status = process.wait(LONG).unwrap();
    assert!(status.success(), "{}", process.text());
    let out: Vec<String> = process.lines().into_iter().filter(|line| !line.is_stderr).map(|line| line.text).collect();
    let job: Value = serde_json::from_str(&out.join("\n")).unwrap();
    assert_eq!(job["state"], "succeeded", "{job}");
    job["tasks"][0].clone()
}
