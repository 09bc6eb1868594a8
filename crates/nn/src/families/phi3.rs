//! Phi-3: Llama's shape with one map for queries, keys and values and one for gate and first map, and rotation of part
//! of each head on request (Abdin et al., *Phi-3 Technical Report*, 2024).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Names, NormShape, Rope, heads};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Phi3 = Phi3;

pub(super) struct Phi3;

const NAMES: Names = Names::decoder("phi3", "Phi3");

impl Family for Phi3 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "vocab_size": 270, "max_position_embeddings": 64,
            "partial_rotary_factor": 0.5, "sliding_window": 5, "pad_token_id": 0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let heads = heads(config, None)?;
        let rope =
            Rope { share: Some(("partial_rotary_factor", 1.0)), long_names: &["su", "yarn"], ..Rope::whole(heads.dim) };
        let decoder = Decoder::with(config, heads, rope)?;
        let windows = vec![config.opt_size("sliding_window")?; decoder.blocks];
        let norm = NormShape { eps: config.float("rms_norm_eps", 1e-5)?, ..decoder.norm };
        Decoder { fused: true, windows, norm, ..decoder }.configure(NAMES, dir, head, options)
    }
}
