//! Mistral: Llama's shape with a window of attention (Jiang et al., *Mistral 7B*, 2023).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Names};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Mistral = Mistral;

pub(super) struct Mistral;

const NAMES: Names = Names::decoder("mistral", "Mistral");

impl Family for Mistral {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "vocab_size": 270, "max_position_embeddings": 64,
            "sliding_window": 5}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let decoder = Decoder::read(config)?;
        let windows = vec![config.opt_size("sliding_window")?; decoder.blocks];
        Decoder { windows, ..decoder }.configure(NAMES, dir, head, options)
    }
}
