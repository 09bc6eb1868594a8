//! What a model ends in.

use pleach_base::Result;
use serde_json::Value;

use super::LinearSpec;
use crate::backbone::{HeadOptions, Pooling};
use crate::model::ModelDir;

/// The end of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeadSpec {
    /// Logits over the vocabulary.
    CausalLm(LinearSpec),
    /// Class logits: one token of each sequence, perhaps through a pooler with tanh, then an affine map.
    Classes { pooling: Pooling, pooler: Option<LinearSpec>, out: LinearSpec },
    /// One vector a sequence. The pooler, if the class has one, is loaded but not run.
    Vectors { pooling: Pooling, normalize: bool, idle: Option<LinearSpec> },
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
pub(crate) use imp::Head;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::HeadSpec;
    use crate::backbone::Pooling;
    use crate::blocks::linear::Linear;
    use crate::run::{Forward, Layout, OpWeights, Output, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded head.
    #[derive(Debug)]
    pub(crate) enum Head {
        CausalLm(Linear),
        Classes { pooling: Pooling, pooler: Option<Linear>, out: Linear },
        Vectors { pooling: Pooling, normalize: bool, idle: Option<Linear> },
    }

    impl Head {
        pub(crate) fn load(spec: &HeadSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            Ok(match *spec {
                HeadSpec::CausalLm(out) => Self::CausalLm(load(out)?),
                HeadSpec::Classes { pooling, pooler, out } => {
                    Self::Classes { pooling, pooler: pooler.map(load).transpose()?, out: load(out)? }
                }
                HeadSpec::Vectors { pooling, normalize, idle } => {
                    Self::Vectors { pooling, normalize, idle: idle.map(load).transpose()? }
                }
            })
        }

        pub(crate) fn run(&self, cx: &Forward<'_>, hidden: &Tensor) -> Output {
            match self {
                Self::CausalLm(out) => Output::Tokens(out.run(cx, hidden)),
                Self::Classes { pooling, pooler, out } => {
                    let pooled = pool(cx.layout, hidden, *pooling).to_kind(hidden.kind()); // [n, d]
                    // One row a sequence from here on: a packed batch of sequences of one token.
                    let rows = cx.layout.one_each();
                    let cx = &Forward { layout: &rows, ..*cx };
                    let pooled = match pooler {
                        Some(pooler) => pooler.run(cx, &pooled).tanh(),
                        None => pooled,
                    };
                    Output::Classes(out.run(cx, &pooled))
                }
                Self::Vectors { pooling, normalize, .. } => {
                    let pooled = pool(cx.layout, hidden, *pooling).to_kind(Kind::Float);
                    Output::Vectors(if *normalize { unit(&pooled) } else { pooled })
                }
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            let (first, second) = match self {
                Self::CausalLm(out) => (Some(out), None),
                Self::Classes { pooler, out, .. } => (Some(out), pooler.as_ref()),
                Self::Vectors { idle, .. } => (idle.as_ref(), None),
            };
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
