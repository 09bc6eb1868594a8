//! What families of one stack share besides their blocks: the class and the prefix of its paths, the heads, and the
//! last assembly.

use pleach_base::{Result, code};

use super::builder::{Builder, Module};
use super::{
    Activation, Blueprint, EmbedSpec, EndSpec, HeadSpec, LinearSpec, MappedSpec, NormShape, NormSpec, TowerSpec,
    Towers, Trunk, embedding_options,
};
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Init, Mixing, ModelInfo, Pooling, TensorInfo};
use crate::model::{Config, ModelDir, bad};
use crate::reads::{Reads, ShiftIds};
use crate::site::{Dims, Part, Role, Sites, WeightLayout};

/// What is said of a family once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// `model_type`.
    pub(crate) family: &'static str,
    /// How names of its classes begin.
    pub(crate) class: &'static str,
    /// How they end for the heads that it has.
    pub(crate) heads: &'static [(HeadKind, &'static str)],
    /// Name of the bare model within the others.
    pub(crate) base: &'static str,
    /// Whether a token sees no later ones.
    pub(crate) causal: bool,
    /// As [`ModelInfo::renames`].
    pub(crate) renames: &'static [(&'static str, &'static str)],
}

impl Names {
    /// A decoder with the usual names.
    pub(crate) const fn decoder(family: &'static str, class: &'static str) -> Self {
        Self { family, class, heads: DECODER, base: "model", causal: true, renames: &[] }
    }

    /// An encoder with the usual names.
    pub(crate) const fn encoder(family: &'static str, class: &'static str, base: &'static str) -> Self {
        Self { family, class, heads: ENCODER, base, causal: false, renames: &[] }
    }
}

/// Classes of most decoders.
pub(crate) const DECODER: &[(HeadKind, &str)] = &[
    (HeadKind::CausalLm, "ForCausalLM"),
    (HeadKind::SequenceClassification, "ForSequenceClassification"),
    (HeadKind::TokenClassification, "ForTokenClassification"),
    (HeadKind::Embedding, "Model"),
];

/// Classes of most encoders.
pub(crate) const ENCODER: &[(HeadKind, &str)] = &[
    (HeadKind::MaskedLm, "ForMaskedLM"),
    (HeadKind::SequenceClassification, "ForSequenceClassification"),
    (HeadKind::TokenClassification, "ForTokenClassification"),
    (HeadKind::Embedding, "Model"),
];

/// A model being described.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) b: Builder,
    pub(crate) config: Config<'a>,
    pub(crate) head: HeadKind,
    pub(crate) num_labels: usize,
    names: Names,
    class: String,
    prefix: String,
    dir: &'a ModelDir,
    options: &'a HeadOptions,
}

/// The head of a decoder's language model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LmHead<'a> {
    pub(crate) name: &'a str,
    pub(crate) vocab: usize,
    /// The table of tokens, whose weight is the head's when `tied`.
    pub(crate) table: &'a str,
    pub(crate) tied: bool,
    /// Logits `l` become `cap tanh(l / cap)`.
    pub(crate) cap: Option<f64>,
}

/// Sizes that the others do not imply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) max_positions: usize,
}

impl<'a> Draft<'a> {
    /// Refuses a head that the family does not have.
    pub(crate) fn new(names: Names, dir: &'a ModelDir, head: HeadKind, options: &'a HeadOptions) -> Result<Self> {
        let config = Config(dir.config());
        let ending = names.heads.iter().find(|(kind, _)| *kind == head).map(|(_, ending)| *ending);
        let ending = ending.ok_or_else(|| no_head(names.family, head))?;
        let prefix = if head == HeadKind::Embedding { String::new() } else { format!("{}.", names.base) };
        let num_labels = options.num_labels.map_or_else(|| config.num_labels(), Ok)?;
        let (b, class) = (Builder::default(), format!("{}{ending}", names.class));
        Ok(Self { b, config, head, num_labels, names, class, prefix, dir, options })
    }

    /// The path of a module of the bare model.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A table of the bare model.
    pub(crate) fn table(&mut self, name: &str, rows: usize, width: usize) -> EmbedSpec {
        let path = self.path(name);
        EmbedSpec::new(&mut self.b, &path, rows, width)
    }

    /// How weights of new heads are drawn.
    fn new_head(&self) -> Result<Init> {
        Ok(Init::Normal { std: self.config.float("initializer_range", 0.02)? as f32 })
    }

    /// A map of a head, which may be missing from the files.
    pub(crate) fn fresh(&mut self, describe: impl FnOnce(&mut Builder) -> LinearSpec) -> Result<LinearSpec> {
        let new = self.new_head()?;
        Ok(self.b.fresh(new, describe))
    }

    /// What `describe` adds exists but is never run.
    pub(crate) fn idle<T>(&mut self, describe: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.b.set_idle(true);
        let result = describe(self);
        self.b.set_idle(before);
        result
    }

    /// One vector a sequence.
    pub(crate) fn vectors(&self, idle: Option<LinearSpec>) -> Result<HeadSpec> {
        let (pooling, normalize) = embedding_options(self.dir, self.options)?;
        Ok(HeadSpec::Vectors { pooling, normalize, idle })
    }

    /// The map to class logits.
    pub(crate) fn labels(&mut self, name: &str, width: usize, bias: bool) -> Result<LinearSpec> {
        let labels = self.num_labels;
        self.fresh(|b| LinearSpec::head(b, name, (width, labels), bias, None))
    }

    /// The head of a decoder. Classes are those of a sequence's last token, by a map `names.0` without bias, or of every
    /// token, by `names.1`.
    pub(crate) fn decoder_head(&mut self, lm: LmHead<'_>, names: (&str, &str), width: usize) -> Result<HeadSpec> {
        let (transform, cap) = (None, None);
        Ok(match self.head {
            HeadKind::SequenceClassification => {
                let out = self.labels(names.0, width, false)?;
                HeadSpec::Classes { pooling: Pooling::Last, pooler: None, out }
            }
            HeadKind::TokenClassification => {
                HeadSpec::Tokens { transform, out: self.labels(names.1, width, true)?, cap }
            }
            HeadKind::Embedding => self.vectors(None)?,
            _ => {
                let table = lm.tied.then(|| format!("{}.weight", self.path(lm.table)));
                let out = LinearSpec::head(&mut self.b, lm.name, (width, lm.vocab), false, table.as_deref());
                HeadSpec::Tokens { transform, out, cap: lm.cap }
            }
        })
    }

    /// The head of a masked language model: an affine map, the activation, a normalisation, and the table of tokens
    /// with a bias of its own, `bias`; or, when the configuration unties it, a map of its own, beside which `bias` lies
    /// idle.
    pub(crate) fn masked_lm(
        &mut self,
        [dense, norm, decoder, bias]: [&str; 4],
        (table, vocab): (&str, usize),
        (shape, activation): (NormShape, Activation),
    ) -> Result<HeadSpec> {
        let (width, table) = (shape.width, format!("{}.weight", self.path(table)));
        let map = LinearSpec::new(&mut self.b, dense.to_owned(), Part::Other, width, width, true);
        let norm = shape.at(&mut self.b, norm);
        let dims = Dims { input: width, output: vocab, heads: None };
        let module = Module::new(decoder, Role::Head, Part::Other, dims, WeightLayout::OutIn);
        let tied = self.config.flag("tie_word_embeddings", true)?;
        let (weight, bias_name) = if tied { (Some(table.as_str()), Some(bias)) } else { (None, None) };
        let out = LinearSpec::of(&mut self.b, Module { weight, bias: true, bias_name, ..module });
        if !tied {
            self.b.parameter(bias, &[vocab]);
        }
        Ok(HeadSpec::Tokens { transform: Some((MappedSpec { map, activation }, norm)), out, cap: None })
    }

    /// A tensor of the bare model that is no module's weight; its name.
    pub(crate) fn parameter(&mut self, name: &str, shape: &[usize]) -> String {
        let name = self.path(name);
        self.b.parameter(&name, shape);
        name
    }

    /// A normalisation of a head, which may be missing from the files.
    pub(crate) fn fresh_norm(&mut self, shape: NormShape, path: &str) -> NormSpec {
        self.b.fresh(Init::Ones, |b| shape.at(b, path))
    }

    /// `decoder_start_token_id` and `pad_token_id`.
    pub(crate) fn shift_ids(&self) -> Result<ShiftIds> {
        let id = |field: &str| self.config.opt_count(field);
        let start = id("decoder_start_token_id")?.ok_or_else(|| bad("decoder_start_token_id", "is missing"))?;
        Ok(ShiftIds { start: start as u32, pad: id("pad_token_id")?.unwrap_or(0) as u32 })
    }

    /// A backbone of one stack or two with fronts of their own.
    pub(crate) fn towers(
        self,
        (first, second): (TowerSpec, Option<TowerSpec>),
        end: EndSpec,
        sizes: Sizes,
        reads: Reads,
    ) -> Box<dyn BackboneConfig> {
        let normalized =
            matches!(end, EndSpec::Compare { .. } | EndSpec::Plain(HeadSpec::Vectors { normalize: true, .. }));
        let blocks = first.layers.len() + second.as_ref().map_or(0, |tower| tower.layers.len());
        let (info, sites, tensors) = self.described(sizes, blocks, normalized);
        let info = ModelInfo { reads, ..info };
        Box::new(Towers { info, sites, tensors, first, second, end })
    }

    /// A backbone of one stack that reads text.
    pub(crate) fn finish(self, trunk: Trunk, head: HeadSpec, sizes: Sizes) -> Box<dyn BackboneConfig> {
        let normalized = matches!(head, HeadSpec::Vectors { normalize: true, .. });
        let (info, sites, tensors) = self.described(sizes, trunk.layers.len(), normalized);
        let info = ModelInfo { mixing: trunk.mixing(&head), ..info };
        Box::new(Blueprint { info, sites, tensors, trunk, head })
    }

    fn described(self, sizes: Sizes, num_blocks: usize, normalized: bool) -> (ModelInfo, Sites, Vec<TensorInfo>) {
        let (sites, tensors) = self.b.finish();
        let info = ModelInfo {
            family: self.names.family,
            class: self.class,
            base_prefix: self.names.base,
            head: self.head,
            num_labels: self.num_labels,
            hidden_size: sizes.hidden,
            vocab_size: sizes.vocab,
            num_blocks,
            max_positions: sizes.max_positions,
            causal: self.names.causal,
            mixing: Mixing::None,
            normalized,
            pad_token: self.config.pad_token(),
            reads: Reads::TEXT,
            renames: self.names.renames,
        };
        (info, sites, tensors)
    }
}

/// The error for a head that a family does not have.
pub(crate) fn no_head(family: &str, head: HeadKind) -> pleach_base::Error {
    code::MODEL_CONFIG
        .error(format!("family {family} has no head for {}", head.name()))
        .hint("choose another spec.data.task or another model")
}
