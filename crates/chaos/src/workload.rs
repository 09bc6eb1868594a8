//! What is trained: a small llama that the harness makes itself, and rows of token ids of many lengths.
//!
//! The model is wide enough that a step is real work: a tenth of a second or more on two cores.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pleach_base::rng::Key;
use serde_json::{Map, Value, json};

use crate::history::Shape;

/// Rows of a step.
pub(crate) const BATCH: u64 = 16;
const VOCAB: u64 = 512;
pub(crate) const LAYERS: u64 = 4;
/// Longest row, in tokens.
const LONGEST: u64 = 160;

/// Name of the only task.
pub(crate) const TASK: &str = "words";

/// Where model and data are.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) model: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) shape: Shape,
}

impl Workload {
    /// Writes a model of this width and a dataset for `epochs` of `steps` steps in all. The last step of an epoch is short.
    pub(crate) fn write(folder: &Path, width: u32, lanes: u32, steps: u64, epochs: u64) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let an_epoch = steps.div_ceil(epochs).max(2);
        let shape = Shape { rows: an_epoch * BATCH - 5, batch: BATCH, lanes, steps: an_epoch * epochs };
        let (model, data) = (folder.join("model"), folder.join("rows.jsonl"));
        write_model(&model, u64::from(width)).context("writing the model")?;
        let rows: String = (0..shape.rows).map(row).collect();
        fs::write(&data, rows).context("writing the rows")?;
        Ok(Self { model, data, shape })
    }
}

/// A row of between 16 and [`LONGEST`] tokens.
fn row(number: u64) -> String {
    let mut rng = Key::seed(7).named("row").with(number).rng();
    let length = 16 + rng.below(LONGEST - 16);
    let ids: Vec<u64> = (0..length).map(|_| 3 + rng.below(VOCAB - 3)).collect();
    format!("{}\n", json!({"input_ids": ids}))
}

fn write_model(folder: &Path, width: u64) -> Result<()> {
    fs::create_dir_all(folder)?;
    let heads = (width / 32).max(2);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": width * 3,
        "num_attention_heads": heads, "num_key_value_heads": heads / 2, "head_dim": width / heads,
        "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false, "dtype": "float32",
    });
    fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    fs::write(folder.join("model.safetensors"), safetensors(&tensors(width, heads)))?;
    Ok(())
}

/// Names and shapes in the order of the file.
fn tensors(width: u64, heads: u64) -> Vec<(String, Vec<u64>)> {
    let (inner, keys) = (width * 3, width / heads * (heads / 2));
    let mut all = vec![("lm_head.weight".to_owned(), vec![VOCAB, width])];
    all.push(("model.embed_tokens.weight".to_owned(), vec![VOCAB, width]));
    all.push(("model.norm.weight".to_owned(), vec![width]));
    for layer in 0..LAYERS {
        let parts: [(&str, Vec<u64>); 9] = [
            ("input_layernorm", vec![width]),
            ("mlp.down_proj", vec![width, inner]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.k_proj", vec![keys, width]),
            ("self_attn.o_proj", vec![width, width]),
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.v_proj", vec![keys, width]),
        ];
        all.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    all
}

/// A file of float32 tensors: norms are ones, the rest is drawn by name.
fn safetensors(tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let (mut header, mut body) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let from = body.len();
        let mut rng = Key::seed(1).named(name).rng();
        for _ in 0..shape.iter().product::<u64>() {
            let value = if shape.len() == 1 { 1.0 } else { rng.uniform_in(-0.05, 0.05) };
            body.extend(value.to_le_bytes());
        }
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [from, body.len()]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = header.len() as u64;
    [&length.to_le_bytes()[..], &header, &body].concat()
}

/// The job file of an arm.
pub(crate) fn job(work: &Workload, name: &str, workers: u32, store: &str) -> Value {
    let checkpoint = json!({"store": store, "every": 5, "retention": {"last": 3, "min_age": 5}});
    json!({
        "apiVersion": "pleach.dev/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "backbone": {"path": work.model},
            "workers": {"min": 1, "max": workers, "threads": 1, "restarts": 100_000},
            "data": {"source": work.data, "task": "causal_lm", "max_length": LONGEST},
            "train": {
                "global_batch": BATCH, "lanes": work.shape.lanes, "max_steps": work.shape.steps, "determinism": "strict", "seed": 11,
                "optimizer": {"lr": 2e-3}, "log_every": 1,
            },
            "tasks": [{
                "name": TASK,
                "adapter": {"method": "lora", "r": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
            }],
            "checkpoint": checkpoint,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dataset_has_the_rows_that_the_account_expects() {
        let folder = tempfile::tempdir().unwrap();
        let work = Workload::write(folder.path(), 64, 4, 30, 3).unwrap();
        let text = fs::read_to_string(&work.data).unwrap();
        assert_eq!(text.lines().count() as u64, work.shape.rows);
        assert_eq!((work.shape.steps, work.shape.steps_per_epoch()), (30, 10));
        assert_eq!(work.shape.samples(), 3 * work.shape.rows);
        let lengths: std::collections::BTreeSet<usize> = text.lines().map(|line| line.matches(',').count()).collect();
        assert!(lengths.len() > 50, "rows have many lengths");
    }

    #[test]
    fn the_model_file_has_a_header_and_all_its_bytes() {
        let tensors = tensors(64, 2);
        let file = safetensors(&tensors);
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
        let last = &header[&tensors.last().unwrap().0]["data_offsets"][1];
        assert_eq!(last.as_u64().unwrap() as usize, file.len() - 8 - length);
    }
}
