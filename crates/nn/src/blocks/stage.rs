//! Blocks with a map each for queries, keys and values, a feed-forward part of two maps or three, and where wanted
//! attention on an encoder's output between the two: encoders, decoders and towers of most families of two stacks.

use pleach_base::Result;

use super::{
    Activation, AttentionSpec, Builder, Core, CoreSpec, Distances, Frame, HalfNames, LayerSpec, LinearSpec, Maps,
    MlpSpec, NormKind, NormShape, Order, RelativeSpec, even_heads,
};
use crate::model::Config;
use crate::site::{Heads, Part};

/// What the blocks of a stack have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    pub(crate) inner: usize,
    pub(crate) heads: Heads,
    pub(crate) causal: bool,
    pub(crate) order: Order,
    pub(crate) norm: NormShape,
    pub(crate) activation: Activation,
    /// Biases of the maps of queries, keys, values and attention's result, and of those of the feed-forward part.
    pub(crate) biases: [bool; 5],
    /// Attention has a bias by distance, and scores are not scaled.
    pub(crate) distances: Option<Distances>,
    pub(crate) names: StageNames,
}

/// Names of modules, below the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageNames {
    pub(crate) attention: PartNames,
    /// Attention on the other stack's output.
    pub(crate) cross: Option<PartNames>,
    /// The module around the feed-forward part, and its normalisation.
    pub(crate) mlp: (&'static str, &'static str),
    /// Gate, where there is one, first and last map.
    pub(crate) maps: (Option<&'static str>, &'static str, &'static str),
}

/// Names of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartNames {
    pub(crate) module: &'static str,
    pub(crate) norm: &'static str,
    /// Query, key, value, output, below the module.
    pub(crate) maps: [&'static str; 4],
}

/// Names that many families have.
pub(crate) const PROJ: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// A stack of blocks being described.
struct Block<'a> {
    stage: &'a Stage,
    path: String,
    number: usize,
}

impl Stage {
    /// The blocks `path.0`, `path.1` and so on, which count from `first` in the model, and the bias by distance that
    /// they share.
    pub(crate) fn blocks(
        &self,
        b: &mut Builder,
        path: &str,
        (first, count): (usize, usize),
    ) -> (Vec<LayerSpec>, Option<RelativeSpec>) {
        let mut relative = None;
        let layers = (0..count).map(|number| {
            let block = Block { stage: self, path: format!("{path}.{number}"), number };
            block.describe(b, first, &mut relative)
        });
        (layers.collect(), relative)
    }
}

impl Block<'_> {
    fn describe(&self, b: &mut Builder, first: usize, relative: &mut Option<RelativeSpec>) -> LayerSpec {
        let Stage { order, norm, names, .. } = *self.stage;
        let frame = Frame { path: &self.path, number: (first + self.number) as u32, order, norm };
        let half = |module, norm| HalfNames { module, norm, after: None };
        let own = names.attention;
        let input = frame.enter(b);
        let attention = frame.half(b, half(own.module, own.norm), Part::Attention, |b| {
            self.attention(b, own, self.stage.distances, relative)
        });
        let cross = names.cross.map(|cross| {
            frame.half(b, half(cross.module, cross.norm), Part::CrossAttention, |b| {
                let core = Core { causal: false, ..self.core(None) };
                self.maps(b, cross, |b, path| core.as_part(b, path, Part::CrossAttention))
            })
        });
        let mlp = frame.half(b, half(names.mlp.0, names.mlp.1), Part::FeedForward, |b| self.mlp(b).into());
        LayerSpec { order, input, attention, cross, mlp, output: frame.leave(b) }
    }

    fn core(&self, distances: Option<Distances>) -> Core {
        let plain = Core::new(self.stage.heads, self.stage.causal);
        let scale = if self.stage.distances.is_some() { 1.0 } else { plain.scale };
        Core { scale, distances, ..plain }
    }

    fn attention(
        &self,
        b: &mut Builder,
        names: PartNames,
        distances: Option<Distances>,
        relative: &mut Option<RelativeSpec>,
    ) -> AttentionSpec {
        let core = self.core(distances);
        self.maps(b, names, |b, path| {
            if let Some(distances) = distances.filter(|_| self.number == 0) {
                let table = format!("{path}.relative_attention_bias");
                *relative = Some(RelativeSpec::new(b, &table, core.heads.query, distances));
            }
            core.at(b, path)
        })
    }

    fn maps(
        &self,
        b: &mut Builder,
        names: PartNames,
        core: impl FnOnce(&mut Builder, &str) -> CoreSpec,
    ) -> AttentionSpec {
        let (path, width) = (format!("{}.{}", self.path, names.module), self.stage.norm.width);
        let (all, biases) = (self.stage.heads.query * self.stage.heads.dim, self.stage.biases);
        let parts = [Part::Query, Part::Key, Part::Value];
        let maps =
            [0, 1, 2].map(|i| LinearSpec::new(b, format!("{path}.{}", names.maps[i]), parts[i], width, all, biases[i]));
        let core = core(b, &path);
        let out = LinearSpec::new(b, format!("{path}.{}", names.maps[3]), Part::AttnOut, all, width, biases[3]);
        AttentionSpec { maps: Maps::Split(maps), norms: None, core, out }
    }

    fn mlp(&self, b: &mut Builder) -> MlpSpec {
        let Stage { inner, norm, activation, biases, names, .. } = *self.stage;
        let mut map = |name: &str, part, input, output| {
            LinearSpec::new(b, format!("{}.{name}", self.path), part, input, output, biases[4])
        };
        MlpSpec {
            gate: names.maps.0.map(|name| map(name, Part::Gate, norm.width, inner)),
            up: map(names.maps.1, Part::Up, norm.width, inner),
            fused: false,
            down: map(names.maps.2, Part::Down, inner, norm.width),
            activation,
        }
    }
}

/// Names of encoders in BART's line.
const ENCODER: StageNames = StageNames {
    attention: PartNames { module: "self_attn", norm: "self_attn_layer_norm", maps: PROJ },
    cross: None,
    mlp: ("fc2", "final_layer_norm"),
    maps: (None, "fc1", "fc2"),
};

/// Names of their decoders.
const DECODER: StageNames = StageNames {
    cross: Some(PartNames { module: "encoder_attn", norm: "encoder_attn_layer_norm", maps: PROJ }),
    ..ENCODER
};

impl Stage {
    /// Encoder and decoder by the fields of BART's line: `d_model`, `encoder_ffn_dim`, `decoder_ffn_dim` and so on.
    pub(crate) fn encoder_decoder(config: Config<'_>, order: Order) -> Result<[Self; 2]> {
        let width = config.size("d_model")?;
        let norm = NormShape { kind: NormKind::Layer, width, eps: 1e-5 };
        let activation = Activation::read(config, "activation_function", "gelu")?;
        let side = |causal: bool, [inner, heads]: [&str; 2], names| {
            Ok(Self {
                inner: config.size(inner)?,
                heads: even_heads(("d_model", width), (heads, config.size(heads)?))?,
                causal,
                order,
                norm,
                activation,
                biases: [true; 5],
                distances: None,
                names,
            })
        };
        Ok([
            side(false, ["encoder_ffn_dim", "encoder_attention_heads"], ENCODER)?,
            side(true, ["decoder_ffn_dim", "decoder_attention_heads"], DECODER)?,
        ])
    }
}
