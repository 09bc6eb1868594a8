//! Gemma 2: Llama's shape with four normalisations a block, capped scores and logits, scaled embeddings, and windows in
//! every other block (Gemma Team, *Gemma 2: Improving Open Language Models at a Practical Size*, 2024).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Activation, Core, Decoder, Names, NormKind, NormShape, Rope, heads, windows};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: Gemma2 = Gemma2;

pub(super) struct Gemma2;

const NAMES: Names = Names::decoder("gemma2", "Gemma2");

impl Family for Gemma2 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 12, "hidden_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2,
            "vocab_size": 270, "max_position_embeddings": 64,
            "query_pre_attn_scalar": 20, "sliding_window": 5, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        config.only("use_bidirectional_attention", false)?;
        let heads = heads(config, Some(256))?;
        let decoder = Decoder::with(config, heads, Rope::whole(heads.dim))?;
        let window = config.opt_size("sliding_window")?;
        let windows = windows(config, decoder.blocks, window, |block| window.is_some() && block % 2 == 0)?;
        let bias = config.flag("attention_bias", false)?;
        let scale = 1.0 / config.float("query_pre_attn_scalar", 256.0)?.sqrt();
        let decoder = Decoder {
            activation: Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?,
            norm: NormShape { kind: NormKind::RmsPlusOne, ..decoder.norm },
            core: Core { scale, cap: config.opt_float("attn_logit_softcapping")?, ..decoder.core },
            windows,
            qkv_bias: bias,
            out_bias: bias,
            norms: [
                ("input_layernorm", Some("post_attention_layernorm")),
                ("pre_feedforward_layernorm", Some("post_feedforward_layernorm")),
            ],
            embed_scale: Some((decoder.hidden as f64).sqrt()),
            tied: config.flag("tie_word_embeddings", true)?,
            logit_cap: config.opt_float("final_logit_softcapping")?,
            ..decoder
        };
        decoder.configure(NAMES, dir, head, options)
    }
}
