//! The job file from outside: what is read, what is refused, and with which words.

#![allow(clippy::unwrap_used)]

mod anything;
mod good;
mod refused;

/// A job that is valid as it stands.
pub(crate) const JOB: &str = r#"apiVersion: pleach.dev/v1
kind: Job
metadata: {name: demo}
spec:
  backbone:
    path: models/mini
  workers: {min: 1, max: 4}
  data:
    source: data/*.jsonl
    task: causal_lm
  train:
    global_batch: 12
    epochs: 2
    optimizer: {lr: 2e-4}
  tasks:
    - name: answers
      adapter: {method: lora, r: 16, target_modules: [q_proj, v_proj]}
  eval: {source: data/held.jsonl}
  checkpoint: {store: out}
"#;
