//! Llama: a decoder with rotary positions, root-mean-square normalisation before each part, and a gated feed-forward
//! part (Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Init, ModelInfo, Pooling};
use crate::blocks::{
    Activation, AttentionSpec, Blueprint, Builder, CoreSpec, EmbedSpec, HeadSpec, LayerSpec, LinearSpec, MlpSpec, NormKind,
    NormSpec, Order, RotarySpec, embedding_options, layer,
};
use crate::model::{Config, ModelDir, bad};
use crate::reads::Reads;
use crate::site::{Heads, Part};

pub(super) static FAMILY: Llama = Llama;

pub(super) struct Llama;

struct Sizes {
    hidden: usize,
    inner: usize,
    heads: Heads,
    eps: f64,
    activation: Activation,
    attention_bias: bool,
    mlp_bias: bool,
}

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        let sizes = Sizes::read(config)?;
        let (class, prefix) = match head {
            HeadKind::CausalLm => ("LlamaForCausalLM", "model."),
            HeadKind::SequenceClassification => ("LlamaForSequenceClassification", "model."),
            HeadKind::Embedding => ("LlamaModel", ""),
            other => return Err(super::no_head("llama", other)),
        };
        let vocab = config.size("vocab_size")?;
        let mut b = Builder::default();
        let tokens = EmbedSpec::new(&mut b, &format!("{prefix}embed_tokens"), vocab, sizes.hidden);
        let count = config.size("num_hidden_layers")?;
        let layers = (0..count).map(|i| sizes.layer(&mut b, &format!("{prefix}layers.{i}"), i as u32)).collect();
        b.enter(None);
        let last_norm = sizes.norm(&mut b, format!("{prefix}norm"));
        let num_labels = options.num_labels.map_or_else(|| config.num_labels(), Ok)?;
        let (head_spec, normalized) = end(&mut b, dir, head, options, (prefix, &sizes, vocab, num_labels))?;
        let (sites, tensors) = b.finish();
        let info = ModelInfo {
            family: "llama",
            class: class.to_owned(),
            base_prefix: "model",
            head,
            num_labels,
            hidden_size: sizes.hidden,
            vocab_size: vocab,
            num_blocks: count,
            max_positions: config.opt_size("max_position_embeddings")?.unwrap_or(2048),
            causal: true,
            normalized,
            pad_token: config.pad_token(),
            reads: Reads::TEXT,
            renames: &[],
        };
        Ok(Box::new(Blueprint {
            info,
            sites,
            tensors,
            tokens,
            types: None,
            positions: None,
            embed_norm: None,
            rotary: Some(RotarySpec::read(config, sizes.heads.dim, 10_000.0)?),
            layers,
            last_norm: Some(last_norm),
            head: head_spec,
        }))
    }
}

impl Sizes {
    fn read(config: Config<'_>) -> Result<Self> {
        let (hidden, query) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        let kv = config.opt_size("num_key_value_heads")?.unwrap_or(query);
        let dim = config.opt_size("head_dim")?.unwrap_or(hidden / query);
        if query % kv != 0 {
            return Err(bad("num_attention_heads", &format!("{query} is not a multiple of num_key_value_heads {kv}")));
        }
        if dim == 0 || dim % 2 != 0 {
            return Err(bad("head_dim", &format!("{dim} is not an even number, as rotation needs")));
        }
        Ok(Self {
            hidden,
            inner: config.size("intermediate_size")?,
            heads: Heads { query, kv, dim },
            eps: config.float("rms_norm_eps", 1e-6)?,
            activation: Activation::parse(config.text("hidden_act")?.unwrap_or("silu"))?,
            attention_bias: config.flag("attention_bias", false)?,
            mlp_bias: config.flag("mlp_bias", false)?,
        })
    }

    fn norm(&self, b: &mut Builder, path: String) -> NormSpec {
        NormSpec::new(b, path, NormKind::Rms, self.hidden, self.eps)
    }

    fn layer(&self, b: &mut Builder, path: &str, number: u32) -> LayerSpec {
        let (width, heads) = (self.hidden, self.heads);
        b.enter(Some(number));
        let input = layer::input(b, path, width);
        let attention_norm = self.norm(b, format!("{path}.input_layernorm"));
        let map = |b: &mut Builder, name: &str, part, input, output| {
            LinearSpec::new(b, format!("{path}.self_attn.{name}_proj"), part, input, output, self.attention_bias)
        };
        let (all, shared) = (heads.query * heads.dim, heads.kv * heads.dim);
        let attention = AttentionSpec {
            query: map(b, "q", Part::Query, width, all),
            key: map(b, "k", Part::Key, width, shared),
            value: map(b, "v", Part::Value, width, shared),
            core: CoreSpec::new(b, &format!("{path}.self_attn"), heads, true),
            out: map(b, "o", Part::AttnOut, all, width),
        };
        let attention_out = layer::sublayer(b, &format!("{path}.self_attn"), Part::Attention, width);
        let mlp_norm = self.norm(b, format!("{path}.post_attention_layernorm"));
        let map = |b: &mut Builder, name: &str, part, input, output| {
            LinearSpec::new(b, format!("{path}.mlp.{name}_proj"), part, input, output, self.mlp_bias)
        };
        let mlp = MlpSpec {
            gate: Some(map(b, "gate", Part::Gate, width, self.inner)),
            up: map(b, "up", Part::Up, width, self.inner),
            down: map(b, "down", Part::Down, self.inner, width),
            activation: self.activation,
        };
        let mlp_out = layer::sublayer(b, &format!("{path}.mlp"), Part::FeedForward, width);
        let output = layer::output(b, path, width);
        LayerSpec {
            order: Order::Pre,
            input,
            attention,
            attention_out,
            attention_norm,
            mlp,
            mlp_out,
            mlp_norm,
            output,
        }
    }
}

/// The head.
fn end(
    b: &mut Builder,
    dir: &ModelDir,
    head: HeadKind,
    options: &HeadOptions,
    (prefix, sizes, vocab, num_labels): (&str, &Sizes, usize, usize),
) -> Result<(HeadSpec, bool)> {
    let config = Config(dir.config());
    Ok(match head {
        HeadKind::CausalLm => {
            let table = format!("{prefix}embed_tokens.weight");
            let tied = config.flag("tie_word_embeddings", false)?.then_some(table.as_str());
            (HeadSpec::CausalLm(LinearSpec::head(b, "lm_head", (sizes.hidden, vocab), false, tied)), false)
        }
        HeadKind::SequenceClassification => {
            let new = Init::Normal { std: config.float("initializer_range", 0.02)? as f32 };
            let out = b.fresh(new, |b| LinearSpec::head(b, "score", (sizes.hidden, num_labels), false, None));
            (HeadSpec::Classes { pooling: Pooling::Last, pooler: None, out }, false)
        }
        _ => {
            let (pooling, normalize) = embedding_options(dir, options)?;
            (HeadSpec::Vectors { pooling, normalize, idle: None }, normalize)
        }
    })
}
