//! Qwen2: Llama's shape with biases on queries, keys and values, and windows in the upper blocks on request
//! (Yang et al., *Qwen2 Technical Report*, 2024).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Names, upper_windows};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Qwen2 = Qwen2;

pub(super) struct Qwen2;

const NAMES: Names = Names::decoder("qwen2", "Qwen2");

impl Family for Qwen2 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "max_position_embeddings": 64, "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let decoder = Decoder::read(config)?;
        let windows = upper_windows(config, decoder.blocks)?;
        Decoder { qkv_bias: true, windows, ..decoder }.configure(NAMES, dir, head, options)
    }
}
