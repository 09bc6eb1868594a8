//! What a model ends in.

use pleach_base::Result;
use serde_json::Value;

use super::{Activation, LinearSpec, NormSpec};
use crate::backbone::{HeadOptions, Pooling};
use crate::model::ModelDir;

/// The end of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeadSpec {
    /// Logits for every token, of the vocabulary or of classes. Logits `l` become `cap tanh(l / cap)`.
    Tokens { transform: Option<(MappedSpec, NormSpec)>, out: LinearSpec, cap: Option<f64> },
    /// Class logits: one token of each sequence, perhaps through a pooler, then an affine map.
    Classes { pooling: Pooling, pooler: Option<MappedSpec>, out: LinearSpec },
    /// One vector a sequence. The pooler, if the class has one, is loaded but not run.
    Vectors { pooling: Pooling, normalize: bool, idle: Option<LinearSpec> },
}

/// An affine map with an activation behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappedSpec {
    pub(crate) map: LinearSpec,
    pub(crate) activation: Activation,
}

/// Pooling and scaling of embeddings: as asked, else as `1_Pooling/config.json` and `modules.json` say, else the mean
/// and no scaling.
pub(crate) fn embedding_options(dir: &ModelDir, options: &HeadOptions) -> Result<(Pooling, bool)> {
    let pooling = match options.pooling {
        Some(pooling) => pooling,
        None => {
            let file = dir.json("1_Pooling/config.json")?.unwrap_or(Value::Null);
            let on = |field: &str| file.get(field).and_then(Value::as_bool).unwrap_or(false);
            match () {
                () if on("pooling_mode_cls_token") => Pooling::Cls,
                () if on("pooling_mode_lasttoken") => Pooling::Last,
                () => Pooling::Mean,
            }
        }
    };
    let normalize = match options.normalize {
        Some(normalize) => normalize,
        None => {
            let file = dir.json("modules.json")?.unwrap_or(Value::Null);
            let is_norm = |module: &Value| module["type"].as_str().is_some_and(|name| name.ends_with(".Normalize"));
            file.as_array().is_some_and(|modules| modules.iter().any(is_norm))
        }
    };
    Ok((pooling, normalize))
}

#[cfg(feature = "torch")]
pub(crate) use imp::{Head, Mapped};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{HeadSpec, MappedSpec};
    use crate::backbone::Pooling;
    use crate::blocks::Activation;
    use crate::blocks::linear::Linear;
    use crate::blocks::norm::Norm;
    use crate::run::{Forward, Layout, OpWeights, Output, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded head.
    #[derive(Debug)]
    pub(crate) enum Head {
        Tokens { transform: Option<(Mapped, Norm)>, out: Linear, cap: Option<f64> },
        Classes { pooling: Pooling, pooler: Option<Mapped>, out: Linear },
        Vectors { pooling: Pooling, normalize: bool, idle: Option<Linear> },
    }

    /// A loaded map with its activation.
    #[derive(Debug)]
    pub(crate) struct Mapped {
        map: Linear,
        activation: Activation,
    }

    impl Mapped {
        pub(crate) fn load(spec: MappedSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self { map: Linear::load(spec.map, sites, weights)?, activation: spec.activation })
        }

        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            self.activation.run(&self.map.run(cx, x))
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.map.visit(see);
        }
    }

    impl Head {
        pub(crate) fn load(spec: &HeadSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let mapped = |spec: Option<MappedSpec>| spec.map(|spec| Mapped::load(spec, sites, weights)).transpose();
            Ok(match *spec {
                HeadSpec::Tokens { transform, out, cap } => {
                    let (map, norm) = transform.unzip();
                    let norm = norm.map(|norm| Norm::load(norm, sites, weights)).transpose()?;
                    Self::Tokens { transform: mapped(map)?.zip(norm), out: load(out)?, cap }
                }
                HeadSpec::Classes { pooling, pooler, out } => {
                    Self::Classes { pooling, pooler: mapped(pooler)?, out: load(out)? }
                }
                HeadSpec::Vectors { pooling, normalize, idle } => {
                    Self::Vectors { pooling, normalize, idle: idle.map(load).transpose()? }
                }
            })
        }

        pub(crate) fn run(&self, cx: &Forward<'_>, hidden: &Tensor) -> Output {
            match self {
                Self::Tokens { transform, out, cap } => {
                    let logits = match transform {
                        Some((map, norm)) => out.run(cx, &norm.run(cx, &map.run(cx, hidden))),
                        None => out.run(cx, hidden),
                    };
                    Output::Tokens(match cap {
                        Some(cap) => (logits / *cap).tanh() * *cap,
                        None => logits,
                    })
                }
                Self::Classes { pooling, pooler, out } => {
                    let pooled = pool(cx.layout, hidden, *pooling).to_kind(hidden.kind()); // [n, d]
                    // One row a sequence from here on: a packed batch of sequences of one token.
                    let rows = cx.layout.one_each();
                    let cx = &Forward { layout: &rows, ..*cx };
                    Output::Classes(match pooler {
                        Some(pooler) => out.run(cx, &pooler.run(cx, &pooled)),
                        None => out.run(cx, &pooled),
                    })
                }
                Self::Vectors { pooling, normalize, .. } => {
                    let pooled = pool(cx.layout, hidden, *pooling).to_kind(Kind::Float);
                    Output::Vectors(if *normalize { unit(&pooled) } else { pooled })
                }
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            let (first, second) = match self {
                Self::Tokens { transform, out, .. } => (transform.as_ref().map(|(mapped, _)| &mapped.map), Some(out)),
                Self::Classes { pooler, out, .. } => (pooler.as_ref().map(|mapped| &mapped.map), Some(out)),
                Self::Vectors { idle, .. } => (idle.as_ref(), None),
            };
            if let Self::Tokens { transform: Some((_, norm)), .. } = self {
                norm.visit(see);
            }
            for linear in first.into_iter().chain(second) {
                linear.visit(see);
            }
        }
    }

    fn pool(layout: &Layout, hidden: &Tensor, pooling: Pooling) -> Tensor {
        match pooling {
            Pooling::Mean => layout.mean(hidden),
            Pooling::Cls => layout.pick(hidden, |_| 0),
            Pooling::Last => layout.pick(hidden, |length| length - 1),
        }
    }

    /// Rows of length one.
    fn unit(x: &Tensor) -> Tensor {
        let norm = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
        x / norm.clamp_min(1e-12)
    }
}
