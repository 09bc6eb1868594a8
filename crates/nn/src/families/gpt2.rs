//! GPT-2: a decoder with learnt positions, normalisation before each part, and weights stored the other way round
//! (Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{
    Activation, AttentionSpec, Builder, Core, Count, Draft, Frame, HalfNames, LayerSpec, LinearSpec, LmHead, Maps,
    MlpSpec, Names, NormKind, NormShape, Order, PositionSpec, Sizes, Trunk, even_heads,
};
use crate::model::{Config, ModelDir};
use crate::site::Part;

pub(super) static FAMILY: Gpt2 = Gpt2;

pub(super) struct Gpt2;

const NAMES: Names = Names {
    heads: &[
        (HeadKind::CausalLm, "LMHeadModel"),
        (HeadKind::SequenceClassification, "ForSequenceClassification"),
        (HeadKind::TokenClassification, "ForTokenClassification"),
        (HeadKind::Embedding, "Model"),
    ],
    base: "transformer",
    ..Names::decoder("gpt2", "GPT2")
};

impl Family for Gpt2 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_head": 4, "n_inner": 48,
            "n_layer": 2, "vocab_size": 270, "n_positions": 64, "scale_attn_by_inverse_layer_idx": true}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        config.only("add_cross_attention", false)?;
        let shape = Shape::read(config)?;
        let hidden = shape.norm.width;
        let sizes = Sizes { hidden, vocab: config.size("vocab_size")?, max_positions: config.size("n_positions")? };
        let mut trunk = Trunk::new(draft.table("wte", sizes.vocab, hidden));
        let table = draft.table("wpe", sizes.max_positions, hidden);
        trunk.positions = Some(PositionSpec { table, count: Count::From(0) });
        for number in 0..config.size("n_layer")? {
            let path = draft.path(&format!("h.{number}"));
            trunk.layers.push(shape.layer(&mut draft.b, &path, number));
        }
        draft.b.enter(None);
        let last = draft.path("ln_f");
        trunk.last_norm = Some(shape.norm.at(&mut draft.b, last));
        let tied = config.flag("tie_word_embeddings", true)?;
        let lm = LmHead { name: "lm_head", vocab: sizes.vocab, table: "wte", tied, cap: None };
        let head = draft.decoder_head(lm, ("score", "classifier"), hidden)?;
        Ok(draft.finish(trunk, head, sizes))
    }
}

struct Shape {
    inner: usize,
    core: Core,
    by_layer: bool,
    norm: NormShape,
    activation: Activation,
}

impl Shape {
    fn read(config: Config<'_>) -> Result<Self> {
        let hidden = config.size("n_embd")?;
        let core = Core::new(even_heads(("n_embd", hidden), ("n_head", config.size("n_head")?))?, true);
        let scale = if config.flag("scale_attn_weights", true)? { core.scale } else { 1.0 };
        Ok(Self {
            inner: config.opt_size("n_inner")?.unwrap_or(4 * hidden),
            core: Core { scale, ..core },
            by_layer: config.flag("scale_attn_by_inverse_layer_idx", false)?,
            norm: NormShape { kind: NormKind::Layer, width: hidden, eps: config.float("layer_norm_epsilon", 1e-5)? },
            activation: Activation::read(config, "activation_function", "gelu_new")?,
        })
    }

    fn layer(&self, b: &mut Builder, path: &str, number: usize) -> LayerSpec {
        let frame = Frame { path, number: number as u32, order: Order::Pre, norm: self.norm };
        let half = |module, norm| HalfNames { module, norm, after: None };
        let width = self.norm.width;
        let map = |b: &mut Builder, name: &str, part, input, output| {
            LinearSpec::conv1d(b, format!("{path}.{name}"), part, input, output)
        };
        let attention = |b: &mut Builder| {
            let divisor = if self.by_layer { (number + 1) as f64 } else { 1.0 };
            let core = Core { scale: self.core.scale / divisor, ..self.core };
            AttentionSpec {
                maps: Maps::Fused { map: map(b, "attn.c_attn", Part::Qkv, width, 3 * width), by_head: false },
                norms: None,
                core: core.at(b, &format!("{path}.attn")),
                out: map(b, "attn.c_proj", Part::AttnOut, width, width),
            }
        };
        let mlp = |b: &mut Builder| MlpSpec {
            gate: None,
            up: map(b, "mlp.c_fc", Part::Up, width, self.inner),
            fused: false,
            down: map(b, "mlp.c_proj", Part::Down, self.inner, width),
            activation: self.activation,
        };
        frame.layer(b, [half("attn", "ln_1"), half("mlp", "ln_2")], attention, mlp)
    }
}
