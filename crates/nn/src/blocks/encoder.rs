//! Encoders of BERT's shape: learnt positions, normalisation after each sum, attention of all tokens on all.

use pleach_base::Result;

use super::{
    Activation, AttentionSpec, Core, Distances, Draft, Frame, HalfNames, HeadSpec, LayerSpec, LinearSpec, MappedSpec,
    MlpSpec, Names, NormKind, NormShape, Order, PositionSpec, Sizes, Trunk,
};
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Pooling};
use crate::blocks::{Builder, Count};
use crate::model::{Config, ModelDir, bad};
use crate::site::{Heads, Part};

/// Sizes of an encoder, however its configuration names them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder {
    pub(crate) inner: usize,
    pub(crate) blocks: usize,
    pub(crate) vocab: usize,
    pub(crate) max_positions: usize,
    /// Rows of the table of kinds of tokens, if there is one.
    pub(crate) types: Option<usize>,
    pub(crate) heads: Heads,
    pub(crate) norm: NormShape,
    pub(crate) activation: Activation,
    /// Bias by distance, of a table that all blocks share.
    pub(crate) distances: Option<Distances>,
}

/// Names of the modules of a block, below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncoderNames {
    /// The list of blocks.
    pub(crate) blocks: &'static str,
    /// Query, key, value, output.
    pub(crate) maps: [&'static str; 4],
    /// The module that attention itself is in.
    pub(crate) core: &'static str,
    /// The module around attention, and its normalisation.
    pub(crate) attention: (&'static str, &'static str),
    /// First and last map of the feed-forward part.
    pub(crate) mlp: [&'static str; 2],
    /// The module around the feed-forward part, and its normalisation.
    pub(crate) output: (&'static str, &'static str),
}

/// BERT's names, and RoBERTa's.
pub(crate) const BERT: EncoderNames = EncoderNames {
    blocks: "encoder.layer",
    maps: ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    core: "attention.self",
    attention: ("attention", "attention.output.LayerNorm"),
    mlp: ["intermediate.dense", "output.dense"],
    output: ("output", "output.LayerNorm"),
};

impl Encoder {
    /// Sizes by BERT's names.
    pub(crate) fn read(config: Config<'_>) -> Result<Self> {
        if let Some(kind) = config.text("position_embedding_type")?.filter(|kind| *kind != "absolute") {
            return Err(bad("position_embedding_type", &format!("`{kind}` is not built, only `absolute`")));
        }
        if config.flag("is_decoder", false)? {
            return Err(bad("is_decoder", "must be false: the family is built as an encoder"));
        }
        let width = config.size("hidden_size")?;
        Ok(Self {
            inner: config.size("intermediate_size")?,
            blocks: config.size("num_hidden_layers")?,
            vocab: config.size("vocab_size")?,
            max_positions: config.size("max_position_embeddings")?,
            types: config.opt_size("type_vocab_size")?,
            heads: even_heads(("hidden_size", width), ("num_attention_heads", config.size("num_attention_heads")?))?,
            norm: NormShape { kind: NormKind::Layer, width, eps: config.float("layer_norm_eps", 1e-12)? },
            activation: Activation::read(config, "hidden_act", "gelu")?,
            distances: None,
        })
    }

    /// Tables and blocks. Positions begin as `count` says.
    pub(crate) fn trunk(&self, draft: &mut Draft<'_>, names: &EncoderNames, count: Count) -> Trunk {
        let width = self.norm.width;
        let mut table = |name: &str, rows| draft.table(&format!("embeddings.{name}_embeddings"), rows, width);
        let mut trunk = Trunk::new(table("word", self.vocab));
        trunk.positions = Some(PositionSpec { table: table("position", self.max_positions), count });
        trunk.types = self.types.map(|rows| table("token_type", rows));
        let norm = draft.path("embeddings.LayerNorm");
        trunk.embed_norm = Some(self.norm.at(&mut draft.b, norm));
        for number in 0..self.blocks {
            let path = draft.path(&format!("{}.{number}", names.blocks));
            trunk.layers.push(self.layer(&mut draft.b, &path, number, names));
        }
        draft.b.enter(None);
        trunk
    }

    fn layer(&self, b: &mut Builder, path: &str, number: usize, names: &EncoderNames) -> LayerSpec {
        let (width, activation) = (self.norm.width, self.activation);
        let frame = Frame { path, number: number as u32, order: Order::Post, norm: self.norm };
        let half = |(module, norm): (&'static str, &'static str)| HalfNames { module, norm, after: None };
        let at = |name: &str| format!("{path}.{name}");
        let attention = |b: &mut Builder| {
            let core = Core { distances: self.distances, ..Core::new(self.heads, false) };
            AttentionSpec::split(b, (&at(names.core), names.maps.map(at)), (width, core), (true, true))
        };
        let mlp = |b: &mut Builder| MlpSpec {
            gate: None,
            up: LinearSpec::new(b, at(names.mlp[0]), Part::Up, width, self.inner, true),
            fused: false,
            down: LinearSpec::new(b, at(names.mlp[1]), Part::Down, self.inner, width, true),
            activation,
        };
        frame.layer(b, [half(names.attention), half(names.output)], attention, mlp)
    }

    /// What the description of the model needs besides.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes { hidden: self.norm.width, vocab: self.vocab, max_positions: self.max_positions }
    }

    /// Class logits of every token.
    pub(crate) fn token_classes(&self, draft: &mut Draft<'_>) -> Result<HeadSpec> {
        let out = draft.labels("classifier", self.norm.width, true)?;
        Ok(HeadSpec::Tokens { transform: None, out, cap: None })
    }

    /// Class logits of a sequence: its first token through a map and an activation, and the classifier.
    pub(crate) fn classes(
        &self,
        draft: &mut Draft<'_>,
        (pooler, activation): (&str, Activation),
        classifier: &str,
    ) -> Result<HeadSpec> {
        let map = self.square(draft, pooler)?;
        let out = draft.labels(classifier, self.norm.width, true)?;
        Ok(HeadSpec::Classes { pooling: Pooling::Cls, pooler: Some(MappedSpec { map, activation }), out })
    }

    /// One vector a sequence; the pooler is not run.
    pub(crate) fn vectors(&self, draft: &mut Draft<'_>, pooler: &str) -> Result<HeadSpec> {
        let map = draft.idle(|draft| self.square(draft, pooler))?;
        draft.vectors(Some(map))
    }

    /// Logits over the vocabulary; `names` are those of the map, its normalisation, the decoder and the bias.
    pub(crate) fn masked_lm(
        &self,
        draft: &mut Draft<'_>,
        names: [String; 4],
        activation: Activation,
    ) -> Result<HeadSpec> {
        let table = ("embeddings.word_embeddings", self.vocab);
        draft.masked_lm(names.each_ref().map(String::as_str), table, (self.norm, activation))
    }

    /// The heads of RoBERTa and of those that took them over.
    pub(crate) fn roberta_head(&self, draft: &mut Draft<'_>) -> Result<HeadSpec> {
        Ok(match draft.head {
            HeadKind::SequenceClassification => {
                self.classes(draft, ("classifier.dense", Activation::Tanh), "classifier.out_proj")?
            }
            HeadKind::TokenClassification => self.token_classes(draft)?,
            HeadKind::Embedding => self.vectors(draft, "pooler.dense")?,
            _ => {
                let names = ["dense", "layer_norm", "decoder", "bias"].map(|name| format!("lm_head.{name}"));
                self.masked_lm(draft, names, Activation::Gelu)?
            }
        })
    }

    /// The sizes where positions are counted behind the padding token.
    pub(crate) fn sizes_behind(&self, pad: usize) -> Sizes {
        Sizes { max_positions: self.max_positions.saturating_sub(pad + 1), ..self.sizes() }
    }

    fn square(&self, draft: &mut Draft<'_>, name: &str) -> Result<LinearSpec> {
        let width = self.norm.width;
        draft.fresh(|b| LinearSpec::new(b, name.to_owned(), Part::Other, width, width, true))
    }
}

/// RoBERTa and what descends from it: BERT's modules, positions counted behind the padding token, heads of its own.
pub(crate) fn roberta(
    names: Names,
    dir: &ModelDir,
    head: HeadKind,
    options: &HeadOptions,
) -> Result<Box<dyn BackboneConfig>> {
    let mut draft = Draft::new(names, dir, head, options)?;
    let encoder = Encoder::read(draft.config)?;
    let pad = draft.config.opt_count("pad_token_id")?.unwrap_or(1);
    let trunk = encoder.trunk(&mut draft, &BERT, Count::Behind(pad));
    let head = encoder.roberta_head(&mut draft)?;
    Ok(draft.finish(trunk, head, encoder.sizes_behind(pad)))
}

/// Heads that share the width evenly. Fields are named for errors.
pub(crate) fn even_heads((width_field, width): (&str, usize), (field, count): (&str, usize)) -> Result<Heads> {
    if width % count != 0 {
        return Err(bad(width_field, &format!("{width} is not a multiple of {field} {count}")));
    }
    Ok(Heads { query: count, kv: count, dim: width / count })
}
