//! Llama: a decoder with rotary positions, root-mean-square normalisation before each part, and a gated feed-forward
//! part (Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Names};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Llama = Llama;

pub(super) struct Llama;

const NAMES: Names = Names::decoder("llama", "Llama");

impl Family for Llama {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let bias = config.flag("attention_bias", false)?;
        let mlp_bias = config.flag("mlp_bias", false)?;
        let decoder = Decoder { qkv_bias: bias, out_bias: bias, mlp_bias, ..Decoder::read(config)? };
        decoder.configure(NAMES, dir, head, options)
    }
}
