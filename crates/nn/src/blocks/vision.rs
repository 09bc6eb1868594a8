//! What families that cut a picture (or a spectrogram) into patches share: sizes, blocks, names.

use pleach_base::Result;
use serde_json::Value;

use super::{
    Activation, BodySpec, Draft, FrontSpec, NormKind, NormShape, Order, PartNames, SamplesSpec, Stage, StageNames,
    TowerSpec, even_heads,
};
use crate::model::{Config, bad};

/// An image and its patches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    pub(crate) channels: usize,
    /// Height and width.
    pub(crate) image: [usize; 2],
    /// Height and width.
    pub(crate) patch: [usize; 2],
}

impl Patches {
    /// `num_channels`, `image_size` and `patch_size`.
    pub(crate) fn read(config: Config<'_>, patch: usize) -> Result<Self> {
        let channels = config.opt_size("num_channels")?.unwrap_or(3);
        let (image, patch) = (pair(config, "image_size", 224)?, pair(config, "patch_size", patch)?);
        if (0..2).any(|axis| patch[axis] > image[axis]) {
            return Err(bad("patch_size", &format!("{patch:?} is larger than image_size {image:?}")));
        }
        Ok(Self { channels, image, patch })
    }

    /// Patches an image.
    pub(crate) fn count(&self) -> usize {
        (0..2).map(|axis| self.image[axis] / self.patch[axis]).product()
    }

    /// Shape of one image.
    pub(crate) fn shape(&self) -> Vec<usize> {
        vec![self.channels, self.image[0], self.image[1]]
    }
}

/// One number for both axes, or a list of two.
pub(crate) fn pair(config: Config<'_>, field: &str, default: usize) -> Result<[usize; 2]> {
    let Some(list) = config.get(field).and_then(Value::as_array) else {
        return Ok([config.opt_size(field)?.unwrap_or(default); 2]);
    };
    let sizes: Vec<_> = list.iter().filter_map(Value::as_u64).filter(|n| *n > 0).map(|n| n as usize).collect();
    <[usize; 2]>::try_from(sizes).map_err(|_| bad(field, "must be a positive number or two of them"))
}

/// Names of tensors in the files of families whose classes transformers 5 renamed.
pub(crate) const RENAMES: &[(&str, &str)] = &[
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
];

/// The blocks of a vision transformer.
pub(crate) fn stage(config: Config<'_>) -> Result<Stage> {
    let width = config.size("hidden_size")?;
    let qkv = config.flag("qkv_bias", true)?;
    let maps = ["q_proj", "k_proj", "v_proj", "o_proj"];
    Ok(Stage {
        inner: config.size("intermediate_size")?,
        heads: even_heads(("hidden_size", width), ("num_attention_heads", config.size("num_attention_heads")?))?,
        causal: false,
        order: Order::Pre,
        norm: NormShape { kind: NormKind::Layer, width, eps: config.float("layer_norm_eps", 1e-12)? },
        activation: Activation::read(config, "hidden_act", "gelu")?,
        biases: [qkv, qkv, qkv, true, true],
        distances: None,
        names: StageNames {
            attention: PartNames { module: "attention", norm: "layernorm_before", maps },
            cross: None,
            mlp: ("mlp", "layernorm_after"),
            maps: (None, "mlp.fc1", "mlp.fc2"),
        },
    })
}

/// A vision transformer without its head, whose front is `samples`.
pub(crate) fn tower(
    draft: &mut Draft<'_>,
    input: &'static str,
    samples: SamplesSpec,
    stage: &Stage,
) -> Result<TowerSpec> {
    let count = draft.config.size("num_hidden_layers")?;
    let (layers, last) = (draft.path("layers"), draft.path("layernorm"));
    let (layers, relative) = stage.blocks(&mut draft.b, &layers, (0, count));
    draft.b.enter(None);
    let last_norm = Some(stage.norm.at(&mut draft.b, last));
    let front = FrontSpec { input, body: BodySpec::Samples(samples), positions: None, norm: None };
    Ok(TowerSpec { front, relative, layers, last_norm })
}
