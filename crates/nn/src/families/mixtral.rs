//! Mixtral: Llama's shape with a feed-forward part of experts (Jiang et al., *Mixtral of Experts*, 2024).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Decoder, Experts, Names, NormShape, Rope, heads};
use crate::model::{Config, ModelDir, bad};

pub(super) static FAMILY: Mixtral = Mixtral;

pub(super) struct Mixtral;

const NAMES: Names =
    Names { renames: &[(".mlp.gate.", ".block_sparse_moe.gate.")], ..Names::decoder("mixtral", "Mixtral") };

impl Family for Mixtral {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "vocab_size": 270, "max_position_embeddings": 64,
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        // The loss of transformers would then hold a term for the router.
        config.only("output_router_logits", false)?;
        let heads = heads(config, None)?;
        let rope = Rope { theta: 1_000_000.0, ..Rope::whole(heads.dim) };
        let decoder = Decoder::with(config, heads, rope)?;
        let windows = vec![config.opt_size("sliding_window")?; decoder.blocks];
        let norm = NormShape { eps: config.float("rms_norm_eps", 1e-5)?, ..decoder.norm };
        let count = config.opt_size("num_local_experts")?.unwrap_or(8);
        let chosen = config.opt_size("num_experts_per_tok")?.unwrap_or(2);
        if chosen > count {
            return Err(bad("num_experts_per_tok", &format!("{chosen} is more than num_local_experts {count}")));
        }
        let experts = Some(Experts { count, chosen });
        Decoder { windows, norm, experts, ..decoder }.configure(NAMES, dir, head, options)
    }
}
