//! Qwen3: Llama's shape with normalised heads of queries and keys, and windows in the upper blocks on request
//! (Yang et al., *Qwen3 Technical Report*, 2025).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Names, Rope, heads, upper_windows};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Qwen3 = Qwen3;

pub(super) struct Qwen3;

const NAMES: Names = Names::decoder("qwen3", "Qwen3");

impl Family for Qwen3 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 12, "hidden_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "vocab_size": 270, "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let heads = heads(config, Some(128))?;
        let decoder = Decoder::with(config, heads, Rope::whole(heads.dim))?;
        let windows = upper_windows(config, decoder.blocks)?;
        let bias = config.flag("attention_bias", false)?;
        let decoder = Decoder { qkv_bias: bias, out_bias: bias, qk_norm: true, windows, ..decoder };
        decoder.configure(NAMES, dir, head, options)
    }
}
