//! The coordinator under measurement: the program as it is shipped, with its state in redb or in an etcd of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use pleach_testkit::etcd::Etcd;
use pleach_testkit::process::{Process, temp_dir};

use crate::control::State;

const START: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) process: Process,
    _etcd: Option<Etcd>,
    folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(program: &Path, state: State) -> Result<Self> {
        let folder = temp_dir()?;
        let etcd = match state {
            State::Redb => None,
            State::Etcd => Some(Etcd::start(1)?),
        };
        let kept = match &etcd {
            None => folder.path().join("state.redb").display().to_string(),
            Some(etcd) => format!("etcd://{}/bench", etcd.endpoints()),
        };
        let mut command = Command::new(program);
        command.args(["coordinator", "--listen", "127.0.0.1:0", "--http", "off", "--state", &kept]);
        command.current_dir(folder.path());
        let process = Process::start("coordinator", command)?;
        let url = process.wait_for("^http://", START)?.trim().to_owned();
        write_model(&folder.path().join("model"))?;
        Ok(Self { url, process, _etcd: etcd, folder })
    }

    /// A job of one task for one worker that never ends by itself.
    pub(crate) fn spec(&self, name: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  \
             backbone: {{path: {folder}/model}}\n  workers: {{min: 1, max: 1}}\n  \
             data: {{source: {folder}/train.jsonl, task: retrieval, text: '{{q}}', text_pair: '{{p}}'}}\n  \
             train: {{global_batch: 4, max_steps: 1000000}}\n  tasks:\n    \
             - {{name: {TASK}, adapter: {{method: lora, r: 4, target_modules: [query, value]}}}}\n  \
             checkpoint: {{store: {folder}/store, every: 1000}}\n"
        )
    }
}

/// The only task of every job.
pub(crate) const TASK: &str = "answers";

/// A BERT folder with a weights file that holds next to nothing: planning reads no weights.
fn write_model(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).context("writing the model")?;
    let config = serde_json::json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend([0; 4]);
    fs::write(folder.join("model.safetensors"), weights)?;
    Ok(())
}
