//! A configured backbone: its sites, the tensors it wants and its sizes, without a tensor library.

use std::fmt;

use pleach_base::rng::Key;
use pleach_base::{Result, code};

use crate::model::{Entry, ModelDir};
use crate::reads::Reads;
#[cfg(feature = "torch")]
use crate::run::Backbone;
use crate::site::Sites;

/// What the model ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeadKind {
    /// Logits over the vocabulary for every token.
    CausalLm,
    /// One row of class logits a sequence.
    SequenceClassification,
    /// One vector a sequence.
    Embedding,
    /// Logits over the vocabulary for every token of the decoder.
    Seq2SeqLm,
    /// Logits over the vocabulary for every token, each seeing all others.
    MaskedLm,
    /// A row of class logits for every token.
    TokenClassification,
    /// One row of class logits an image.
    ImageClassification,
    /// One row of class logits a recording.
    AudioClassification,
    /// Similarities of texts and images.
    Contrastive,
}

impl HeadKind {
    /// PEFT's `task_type`; `None` where PEFT has none.
    #[must_use]
    pub fn task_type(self) -> Option<&'static str> {
        Some(match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::SequenceClassification => "SEQ_CLS",
            Self::Embedding => "FEATURE_EXTRACTION",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::TokenClassification => "TOKEN_CLS",
            Self::MaskedLm | Self::ImageClassification | Self::AudioClassification | Self::Contrastive => return None,
        })
    }

    /// The head of a `task_type` of PEFT's.
    #[must_use]
    pub fn of_task_type(name: &str) -> Option<Self> {
        let all =
            [Self::CausalLm, Self::SequenceClassification, Self::Embedding, Self::Seq2SeqLm, Self::TokenClassification];
        all.into_iter().find(|kind| kind.task_type() == Some(name))
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal language modelling",
            Self::SequenceClassification => "sequence classification",
            Self::Embedding => "embedding",
            Self::Seq2SeqLm => "sequence-to-sequence language modelling",
            Self::MaskedLm => "masked language modelling",
            Self::TokenClassification => "token classification",
            Self::ImageClassification => "image classification",
            Self::AudioClassification => "audio classification",
            Self::Contrastive => "contrastive learning",
        }
    }
}

/// How the vectors of a sequence's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over real tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last real token.
    Last,
}

/// Precision of frozen weights and hidden states. Adapters, their gradients and optimiser state are always float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// bfloat16.
    Bf16,
}

/// What the user wants of the head. What is absent comes from the model's folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadOptions {
    /// The kind; that of `architectures` in `config.json` when absent.
    pub kind: Option<HeadKind>,
    /// Classes; those of `config.json` when absent.
    pub num_labels: Option<usize>,
    /// Pooling of embeddings; that of `1_Pooling/config.json`, else the mean, when absent.
    pub pooling: Option<Pooling>,
    /// Scale embeddings to length one; whether `modules.json` says so when absent.
    pub normalize: Option<bool>,
}

/// How a tensor begins its life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
    /// Normal with mean zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// A copy of the frozen tensor that it stands in for.
    Base,
    /// Worked out by the method that plans it.
    Derived,
}

impl Init {
    /// The values of a new tensor of `numel` elements: a function of `key` alone, so that every rank draws the same.
    /// `None` for [`Init::Base`] and [`Init::Derived`], whose values are not drawn.
    #[must_use]
    pub fn draw(self, key: Key, numel: usize) -> Option<Vec<f32>> {
        let mut rng = key.rng();
        Some(match self {
            Self::Zeros => vec![0.0; numel],
            Self::Ones => vec![1.0; numel],
            Self::Uniform { bound } => (0..numel).map(|_| rng.uniform_in(-bound, bound)).collect(),
            Self::Normal { std } => (0..numel).map(|_| std * rng.normal()).collect(),
            Self::Base | Self::Derived => return None,
        })
    }
}

/// A frozen tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name under the model's class, such as `model.layers.0.mlp.up_proj.weight`. Files written by the bare model
    /// leave the first part out, files of another class may add it: both load.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// How the tensor is made when no file has it: for a new head on a bare model. Missing is an error otherwise.
    pub fresh: Option<Init>,
    /// How files may hold it in pieces, if they do.
    pub pieces: Option<Pieces>,
}

/// A tensor of experts one behind the other, `[experts, ..]`, that files hold expert by expert, as
/// `PATH.experts.NUMBER.PART`, the parts one behind the other along the first axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Pieces {
    /// What stands before the number, with its last point.
    pub path: String,
    /// What stands behind it.
    pub parts: &'static [&'static str],
}

impl Pieces {
    /// Names of the pieces, expert by expert.
    pub(crate) fn names(&self, experts: usize) -> impl Iterator<Item = Vec<String>> {
        (0..experts).map(|expert| self.parts.iter().map(|part| format!("{}{expert}.{part}", self.path)).collect())
    }
}

/// What a family reads from `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name of the family, `model_type`.
    pub family: &'static str,
    /// The class that PEFT's users open this as, such as `LlamaForCausalLM`.
    pub class: String,
    /// Name of the bare model within the class, such as `model`: the part of tensor names that may be absent.
    pub base_prefix: &'static str,
    /// The head.
    pub head: HeadKind,
    /// Classes, for classification.
    pub num_labels: usize,
    /// Width of hidden states.
    pub hidden_size: usize,
    /// Rows of the token table: ids must be below.
    pub vocab_size: usize,
    /// Blocks: those of the first stack, then those of the second.
    pub num_blocks: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Whether a token sees later ones.
    pub causal: bool,
    /// What a sequence knows of the others in its batch.
    pub mixing: Mixing,
    /// Embeddings come out with length one.
    pub normalized: bool,
    /// The padding token, if the configuration names one.
    pub pad_token: Option<u32>,
    /// Its inputs and their layouts.
    pub reads: Reads,
    /// Parts of tensor names that files write otherwise than the class, `(class, file)`, where the two differ.
    pub renames: &'static [(&'static str, &'static str)],
}

/// What a sequence of a batch knows of those that it shares the batch with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mixing {
    /// Nothing: not a bit, where products have 17 rows or more.
    #[default]
    None,
    /// The last bits.
    Rounding,
    /// How long the longest of them is.
    Lengths,
}

/// A configured backbone.
pub trait BackboneConfig: fmt::Debug + Send + Sync {
    /// Sizes and names.
    fn info(&self) -> &ModelInfo;

    /// Where methods may act.
    fn sites(&self) -> &Sites;

    /// Every frozen tensor, each once (tied ones have one entry). Their sizes sum to the base part of PEFT's
    /// `all params`.
    fn tensors(&self) -> &[TensorInfo];

    /// Parameters of the frozen model.
    fn num_params(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// Looks up every tensor in the folder and compares shapes, without reading values.
    ///
    /// # Errors
    /// `MODEL_MISMATCH` naming the tensor, with the shape expected and found.
    fn check(&self, dir: &ModelDir) -> Result<()> {
        self.tensors().iter().try_for_each(|tensor| find(self.info(), tensor, dir).map(|_| ()))
    }

    /// Reads the weights of `dir` and makes a model that runs.
    ///
    /// # Errors
    /// `MODEL_MISMATCH` as [`BackboneConfig::check`]; `SAFETENSORS` for elements of a kind that is not read.
    #[cfg(feature = "torch")]
    fn build(&self, dir: &ModelDir, device: tch::Device, precision: Precision) -> Result<Box<dyn Backbone>>;
}

/// Where the values of a tensor are.
#[cfg_attr(not(feature = "torch"), allow(dead_code))] // Without tensors it is only asked whether there are any.
#[derive(Debug)]
pub enum Found<'d> {
    /// In one entry.
    Whole(Entry<'d>),
    /// In the entries of each expert, which are parts of its rows, in order.
    Pieces(Vec<Vec<Entry<'d>>>),
    /// Nowhere: it is made anew.
    Nowhere,
}

/// Where a folder has the values of one of a model's tensors, under whatever names its files give them.
///
/// # Errors
/// `MODEL_MISMATCH` as [`BackboneConfig::check`], also for a tensor that the model does not have.
pub fn in_folder<'d>(model: &dyn BackboneConfig, name: &str, dir: &'d ModelDir) -> Result<Found<'d>> {
    match model.tensors().iter().find(|tensor| tensor.name == name) {
        Some(tensor) => find(model.info(), tensor, dir),
        None => {
            Err(code::MODEL_MISMATCH.error(format!("tensor `{name}`: {} has none of this name", model.info().class)))
        }
    }
}

/// A tensor's values in the folder, in one piece or in several.
pub(crate) fn find<'d>(info: &ModelInfo, tensor: &TensorInfo, dir: &'d ModelDir) -> Result<Found<'d>> {
    let whole = |found: Option<_>| found.map_or(Found::Nowhere, Found::Whole);
    let Some(pieces) = &tensor.pieces else { return locate(info, tensor, dir).map(whole) };
    let (experts, shape) = (tensor.shape[0], &tensor.shape[1..]);
    let of = |name: String| {
        let shape = [&[shape[0] / pieces.parts.len()], &shape[1..]].concat();
        let piece = TensorInfo { name, shape, fresh: Some(Init::Zeros), pieces: None };
        locate(info, &piece, dir).map(|entry| entry.ok_or(piece.name))
    };
    let first = pieces.names(1).flatten().next().map(of).transpose()?;
    if !matches!(first, Some(Ok(_))) {
        return locate(info, tensor, dir).map(whole);
    }
    let absent =
        |name: String| code::MODEL_MISMATCH.error(format!("tensor `{name}`: found none in {}", dir.path().display()));
    let expert = |names: Vec<String>| names.into_iter().map(|name| of(name)?.map_err(absent)).collect();
    Ok(Found::Pieces(pieces.names(experts).map(expert).collect::<Result<_>>()?))
}

/// A tensor's entry in the folder, under its own name or as files of the bare model or of another class name it;
/// `None` when there is none and the tensor can be made anew.
pub(crate) fn locate<'d>(info: &ModelInfo, tensor: &TensorInfo, dir: &'d ModelDir) -> Result<Option<Entry<'d>>> {
    let found = spellings(&tensor.name, info).into_iter().find_map(|name| dir.get(&name));
    let Some(entry) = found else {
        if tensor.fresh.is_some() {
            return Ok(None);
        }
        let (name, shape) = (&tensor.name, &tensor.shape);
        return Err(code::MODEL_MISMATCH
            .error(format!("tensor `{name}`: expected {shape:?}, found none in {}", dir.path().display()))
            .hint(format!("config.json asks for {}; are these weights of another model?", info.class)));
    };
    if entry.shape != tensor.shape {
        let (expected, found) = (&tensor.shape, entry.shape);
        return Err(code::MODEL_MISMATCH
            .error(format!("tensor `{}`: expected {expected:?}, found {found:?}", entry.name))
            .hint("config.json and the weights are of different models"));
    }
    Ok(Some(entry))
}

/// The names that files use for one tensor, most likely first.
fn spellings(name: &str, info: &ModelInfo) -> Vec<String> {
    let prefix = info.base_prefix;
    let other = match name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
        Some(bare) => bare.to_owned(),
        None => format!("{prefix}.{name}"),
    };
    let mut names = vec![name.to_owned(), other];
    if !info.renames.is_empty() {
        let renamed =
            |name: &String| info.renames.iter().fold(name.clone(), |name, (ours, file)| name.replace(ours, file));
        let old: Vec<_> = names.iter().map(renamed).collect();
        names.extend(old);
    }
    // Normalisations of the oldest files.
    for i in 0..2 {
        if let Some(start) = names[i].strip_suffix("LayerNorm.weight") {
            names.push(format!("{start}LayerNorm.gamma"));
        } else if let Some(start) = names[i].strip_suffix("LayerNorm.bias") {
            names.push(format!("{start}LayerNorm.beta"));
        }
    }
    names
}
