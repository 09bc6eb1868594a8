//! BERT: an encoder with learnt positions and normalisation after each sum
//! (Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers*, 2018).

use pleach_base::Result;

use super::{Family, no_head};
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Init, ModelInfo, Pooling};
use crate::blocks::{
    Activation, AttentionSpec, Blueprint, Builder, CoreSpec, EmbedSpec, HeadSpec, LayerSpec, LinearSpec, MlpSpec, NormKind,
    NormSpec, Order, embedding_options, layer,
};
use crate::model::{Config, ModelDir, bad};
use crate::reads::Reads;
use crate::site::{Heads, Part};

pub(super) static FAMILY: Bert = Bert;

pub(super) struct Bert;

struct Sizes {
    hidden: usize,
    inner: usize,
    heads: Heads,
    eps: f64,
    activation: Activation,
}

impl Family for Bert {
    fn name(&self) -> &'static str {
        "bert"
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "type_vocab_size": 2, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let config = Config(dir.config());
        if let Some(kind) = config.text("position_embedding_type")?.filter(|kind| *kind != "absolute") {
            return Err(bad("position_embedding_type", &format!("`{kind}` is not built, only `absolute`")));
        }
        if config.flag("is_decoder", false)? {
            return Err(bad("is_decoder", "must be false: BERT is built as an encoder"));
        }
        let sizes = Sizes::read(config)?;
        let (class, prefix) = match head {
            HeadKind::SequenceClassification => ("BertForSequenceClassification", "bert."),
            HeadKind::Embedding => ("BertModel", ""),
            other => return Err(no_head("bert", other)),
        };
        let (vocab, types, max_positions) =
            (config.size("vocab_size")?, config.size("type_vocab_size")?, config.size("max_position_embeddings")?);
        let mut b = Builder::default();
        let table = |b: &mut Builder, name: &str, rows| {
            EmbedSpec::new(b, &format!("{prefix}embeddings.{name}_embeddings"), rows, sizes.hidden)
        };
        let tokens = table(&mut b, "word", vocab);
        let positions = table(&mut b, "position", max_positions);
        let types = table(&mut b, "token_type", types);
        let embed_norm = sizes.norm(&mut b, format!("{prefix}embeddings.LayerNorm"));
        let count = config.size("num_hidden_layers")?;
        let layers = (0..count).map(|i| sizes.layer(&mut b, &format!("{prefix}encoder.layer.{i}"), i as u32)).collect();
        b.enter(None);
        let num_labels = options.num_labels.map_or_else(|| config.num_labels(), Ok)?;
        let (head_spec, normalized) = end(&mut b, dir, head, options, (prefix, sizes.hidden, num_labels))?;
        let (sites, tensors) = b.finish();
        let info = ModelInfo {
            family: "bert",
            class: class.to_owned(),
            base_prefix: "bert",
            head,
            num_labels,
            hidden_size: sizes.hidden,
            vocab_size: vocab,
            num_blocks: count,
            max_positions,
            causal: false,
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
            types: Some(types),
            positions: Some(positions),
            embed_norm: Some(embed_norm),
            rotary: None,
            layers,
            last_norm: None,
            head: head_spec,
        }))
    }
}

impl Sizes {
    fn read(config: Config<'_>) -> Result<Self> {
        let (hidden, count) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        if hidden % count != 0 {
            return Err(bad("hidden_size", &format!("{hidden} is not a multiple of num_attention_heads {count}")));
        }
        Ok(Self {
            hidden,
            inner: config.size("intermediate_size")?,
            heads: Heads { query: count, kv: count, dim: hidden / count },
            eps: config.float("layer_norm_eps", 1e-12)?,
            activation: Activation::parse(config.text("hidden_act")?.unwrap_or("gelu"))?,
        })
    }

    fn norm(&self, b: &mut Builder, path: String) -> NormSpec {
        NormSpec::new(b, path, NormKind::Layer, self.hidden, self.eps)
    }

    fn layer(&self, b: &mut Builder, path: &str, number: u32) -> LayerSpec {
        let width = self.hidden;
        b.enter(Some(number));
        let input = layer::input(b, path, width);
        let square = |b: &mut Builder, name: &str, part| {
            LinearSpec::new(b, format!("{path}.attention.{name}"), part, width, width, true)
        };
        let attention = AttentionSpec {
            query: square(b, "self.query", Part::Query),
            key: square(b, "self.key", Part::Key),
            value: square(b, "self.value", Part::Value),
            core: CoreSpec::new(b, &format!("{path}.attention.self"), self.heads, false),
            out: square(b, "output.dense", Part::AttnOut),
        };
        let attention_out = layer::sublayer(b, &format!("{path}.attention"), Part::Attention, width);
        let attention_norm = self.norm(b, format!("{path}.attention.output.LayerNorm"));
        let mlp = MlpSpec {
            gate: None,
            up: LinearSpec::new(b, format!("{path}.intermediate.dense"), Part::Up, width, self.inner, true),
            down: LinearSpec::new(b, format!("{path}.output.dense"), Part::Down, self.inner, width, true),
            activation: self.activation,
        };
        let mlp_out = layer::sublayer(b, &format!("{path}.output"), Part::FeedForward, width);
        let mlp_norm = self.norm(b, format!("{path}.output.LayerNorm"));
        let output = layer::output(b, path, width);
        LayerSpec {
            order: Order::Post,
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

/// The pooler, which the class always has, and the head.
fn end(
    b: &mut Builder,
    dir: &ModelDir,
    head: HeadKind,
    options: &HeadOptions,
    (prefix, width, num_labels): (&str, usize, usize),
) -> Result<(HeadSpec, bool)> {
    let new = Init::Normal { std: Config(dir.config()).float("initializer_range", 0.02)? as f32 };
    let idle = head == HeadKind::Embedding;
    let pooler = b.idle(idle, |b| {
        b.fresh(new, |b| LinearSpec::new(b, format!("{prefix}pooler.dense"), Part::Other, width, width, true))
    });
    if idle {
        let (pooling, normalize) = embedding_options(dir, options)?;
        return Ok((HeadSpec::Vectors { pooling, normalize, idle: Some(pooler) }, normalize));
    }
    let out = b.fresh(new, |b| LinearSpec::head(b, "classifier", (width, num_labels), true, None));
    Ok((HeadSpec::Classes { pooling: Pooling::Cls, pooler: Some(pooler), out }, false))
}
