//! GPT-NeoX: a decoder whose parts see the same input, with one map for queries, keys and values and rotation of part of
//! each head (Black et al., *GPT-NeoX-20B: An Open-Source Autoregressive Language Model*, 2022).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{
    Activation, AttentionSpec, Builder, Core, Draft, Frame, HalfNames, LayerSpec, LinearSpec, LmHead, Maps, MlpSpec,
    Names, NormKind, NormShape, Order, Rope, RotarySpec, Sizes, Trunk, even_heads,
};
use crate::model::{Config, ModelDir};
use crate::site::Part;

pub(super) static FAMILY: GptNeox = GptNeox;

pub(super) struct GptNeox;

const NAMES: Names =
    Names { base: "gpt_neox", renames: &[("lm_head.", "embed_out.")], ..Names::decoder("gpt_neox", "GPTNeoX") };

impl Family for GptNeox {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "max_position_embeddings": 64, "rotary_pct": 0.5}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        config.only("is_decoder", false)?;
        let shape = Shape::read(config)?;
        let hidden = shape.norm.width;
        let vocab = config.size("vocab_size")?;
        let sizes = Sizes { hidden, vocab, max_positions: config.size("max_position_embeddings")? };
        let mut trunk = Trunk::new(draft.table("embed_in", vocab, hidden));
        for number in 0..config.size("num_hidden_layers")? {
            let path = draft.path(&format!("layers.{number}"));
            trunk.layers.push(shape.layer(&mut draft.b, &path, number));
        }
        draft.b.enter(None);
        let last = draft.path("final_layer_norm");
        trunk.last_norm = Some(shape.norm.at(&mut draft.b, last));
        let share = Some(("rotary_pct", 0.25));
        let rope = Rope { theta_field: "rotary_emb_base", share, ..Rope::whole(shape.core.heads.dim) };
        trunk.rotary = Some(RotarySpec::read(config, rope)?);
        let tied = config.flag("tie_word_embeddings", false)?;
        let lm = LmHead { name: "lm_head", vocab, table: "embed_in", tied, cap: None };
        let head = draft.decoder_head(lm, ("score", "classifier"), hidden)?;
        Ok(draft.finish(trunk, head, sizes))
    }
}

struct Shape {
    inner: usize,
    core: Core,
    order: Order,
    bias: bool,
    norm: NormShape,
    activation: Activation,
}

impl Shape {
    fn read(config: Config<'_>) -> Result<Self> {
        let (hidden, count) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        let parallel = config.flag("use_parallel_residual", true)?;
        Ok(Self {
            inner: config.size("intermediate_size")?,
            core: Core::new(even_heads(("hidden_size", hidden), ("num_attention_heads", count))?, true),
            order: if parallel { Order::Parallel } else { Order::Pre },
            bias: config.flag("attention_bias", true)?,
            norm: NormShape { kind: NormKind::Layer, width: hidden, eps: config.float("layer_norm_eps", 1e-5)? },
            activation: Activation::read(config, "hidden_act", "gelu")?,
        })
    }

    fn layer(&self, b: &mut Builder, path: &str, number: usize) -> LayerSpec {
        let frame = Frame { path, number: number as u32, order: self.order, norm: self.norm };
        let half = |module, norm| HalfNames { module, norm, after: None };
        let width = self.norm.width;
        let map = |b: &mut Builder, name: &str, part, (input, output), bias| {
            LinearSpec::new(b, format!("{path}.{name}"), part, input, output, bias)
        };
        let attention = |b: &mut Builder| {
            let all = map(b, "attention.query_key_value", Part::Qkv, (width, 3 * width), self.bias);
            AttentionSpec {
                maps: Maps::Fused { map: all, by_head: true },
                norms: None,
                core: self.core.at(b, &format!("{path}.attention")),
                out: map(b, "attention.dense", Part::AttnOut, (width, width), self.bias),
            }
        };
        let mlp = |b: &mut Builder| MlpSpec {
            gate: None,
            up: map(b, "mlp.dense_h_to_4h", Part::Up, (width, self.inner), true),
            fused: false,
            down: map(b, "mlp.dense_4h_to_h", Part::Down, (self.inner, width), true),
            activation: self.activation,
        };
        let names = [half("attention", "input_layernorm"), half("mlp", "post_attention_layernorm")];
        frame.layer(b, names, attention, mlp)
    }
}
