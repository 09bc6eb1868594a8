//! The two factors of a site: their names and shapes by role, and the product that they stand for.

use pleach_base::Result;
use pleach_nn::{Init, Role, Site, WeightLayout};

use super::Config;
use super::start::Start;
use crate::plan::{Keep, PlannedTensor};

/// `A` and `B` of a site, what they begin at, DoRA's magnitudes and the bias of `B`, named below `module`.
pub(super) fn planned(config: &Config, start: Start, site: &Site, module: &str) -> Result<Vec<PlannedTensor>> {
    let r = config.rank(&site.path)? as usize;
    start.check(site, r)?;
    let input = site.dims.input;
    let (a, b, fan_in) = match site.role {
        Role::Conv => conv(site, r),
        Role::Experts => {
            let maps = site.weight.as_ref().and_then(|weight| weight.shape.first()).copied().unwrap_or(1);
            (vec![maps * r, input], vec![site.dims.output, r * maps], input)
        }
        _ => (vec![r, input], vec![site.dims.output, r], input),
    };
    let (first, second) = start.inits(site, r, fan_in, b[1]);
    let planned = |part, suffix: &str, shape: Vec<usize>, init| {
        PlannedTensor::trained(format!("base_model.model.{module}.{suffix}"), site.id, part, shape, init)
    };
    let mut tensors = match site.role {
        Role::Embed => vec![
            planned("lora_A", "lora_embedding_A", a.clone(), first),
            planned("lora_B", "lora_embedding_B", b.clone(), second),
        ],
        _ => vec![
            planned("lora_A", "lora_A.weight", a.clone(), first),
            planned("lora_B", "lora_B.weight", b.clone(), second),
        ],
    };
    if config.lora_bias {
        let init = if start == Start::Random { Init::Uniform { bound: 1.0 / (r as f32).sqrt() } } else { Init::Zeros };
        tensors.push(planned("lora_bias", "lora_B.bias", vec![site.dims.output], init));
    }
    if config.use_dora {
        let shape = match site.role {
            Role::Conv => [1, site.dims.output].into_iter().chain(a.iter().skip(2).map(|_| 1)).collect(),
            _ => vec![site.dims.output],
        };
        tensors.push(planned("magnitude", "lora_magnitude_vector", shape, Init::Derived));
    }
    if start.takes_from_base() && site.role != Role::Embed {
        let kept = |part, shape| planned(part, &format!("{part}#start"), shape, Init::Derived).keep(Keep::Derived);
        tensors.extend([kept("start_A", a), kept("start_B", b)]);
    }
    Ok(tensors)
}

/// `A` is a convolution like the frozen one to `r` channels, `B` mixes channels.
fn conv(site: &Site, r: usize) -> (Vec<usize>, Vec<usize>, usize) {
    let kernel: Vec<usize> = match &site.weight {
        Some(weight) if weight.layout == WeightLayout::Conv => weight.shape.iter().skip(1).copied().collect(),
        _ => vec![site.dims.input],
    };
    let fan_in = kernel.iter().product();
    let ones = kernel.iter().skip(1).map(|_| 1);
    (
        [r].into_iter().chain(kernel.iter().copied()).collect(),
        [site.dims.output, r].into_iter().chain(ones).collect(),
        fan_in,
    )
}

#[cfg(feature = "torch")]
pub(super) use imp::Factors;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteId};
    use tch::{Kind, Tensor};

    use super::Config;
    use crate::adapter::Parts;
    use crate::adapter::common::{Dropout, dense, with_weight};

    /// The factors of one site.
    pub(in super::super) struct Factors {
        a: Tensor, // [r, in], a convolution's [r, in, ..]
        b: Tensor, // [out, r], a convolution's [out, r, 1..]
        bias: Option<Tensor>,
        /// What the factors began at when that was taken from the frozen weight.
        start: Option<(Tensor, Tensor)>,
        scaling: f64,
        role: Role,
        /// Maps of a stack.
        maps: i64,
    }

    impl Factors {
        pub(in super::super) fn of(config: &Config, parts: &Parts<'_>, id: SiteId) -> Result<Self> {
            let site = parts.site(id);
            let has = |part| parts.plan.part(id, part).is_some();
            let part = |part| parts.part(id, part).map(Tensor::shallow_clone);
            Ok(Self {
                a: part("lora_A")?,
                b: part("lora_B")?,
                bias: if has("lora_bias") { Some(part("lora_bias")?) } else { None },
                start: if has("start_A") { Some((part("start_A")?, part("start_B")?)) } else { None },
                scaling: config.scaling(&site.path)?,
                role: site.role,
                maps: site.weight.as_ref().map_or(1, |weight| weight.shape[0] as i64),
            })
        }

        /// `A` and `s B` of a linear map, where they are all that is added.
        pub(in super::super) fn pair(&self) -> Option<(Tensor, Tensor)> {
            let all = matches!(self.role, Role::Linear | Role::Head) && self.bias.is_none() && self.start.is_none();
            all.then(|| (self.a.shallow_clone(), &self.b * self.scaling))
        }

        /// Whether the product is the frozen operation with other weights.
        pub(in super::super) fn reruns(&self) -> bool {
            matches!(self.role, Role::Conv | Role::Experts)
        }

        /// The input of the product: dropped in training, float32. Ids are not dropped.
        pub(in super::super) fn input(&self, cx: &SiteCx<'_>, dropout: &Dropout, x: &Tensor) -> Tensor {
            match self.role {
                Role::Embed | Role::Experts => x.shallow_clone(),
                Role::Conv => dropout.apply_rows(cx, x),
                _ => dropout.apply(cx, x),
            }
        }

        /// `s B A x` of an input that is dropped already: `[.., in]` to `[.., out]`, ids to `[.., out]`.
        pub(in super::super) fn delta(&self, x: &Tensor) -> Tensor {
            self.product(&self.a, &self.b, self.bias.as_ref(), x)
        }

        /// What was taken from the frozen weight, of the same input.
        pub(in super::super) fn taken(&self, x: &Tensor) -> Option<Tensor> {
            self.start.as_ref().map(|(a, b)| self.product(a, b, None, x))
        }

        fn product(&self, a: &Tensor, b: &Tensor, bias: Option<&Tensor>, x: &Tensor) -> Tensor {
            let low = match self.role {
                Role::Embed => Tensor::embedding(&a.tr(), x, -1, false, false),
                _ => x.to_kind(Kind::Float).linear(a, None::<&Tensor>),
            };
            low.linear(b, bias) * self.scaling
        }

        /// `s B A x` by the frozen operation with the factors as weights; `x` is dropped already.
        pub(in super::super) fn rerun(&self, x: &[Tensor], base: &BaseOp<'_>) -> Option<Tensor> {
            let run =
                |weight: Tensor, x: &[Tensor]| base.run_with(&OpWeights { weight, bias: None }, x).into_iter().next();
            if let Some((a, b)) = self.stacked() {
                let ids = x.get(1)?.shallow_clone();
                let low = run(a, &[x.first()?.to_kind(Kind::Float), ids.shallow_clone()])?; // [.., k, r]
                return Some(run(b, &[low, ids])? * self.scaling);
            }
            let low = run(self.a.shallow_clone(), x)?; // [batch, r, ..]
            let mixed = low.movedim_int(1, -1).linear(&self.b.flatten(1, -1), self.bias.as_ref()) * self.scaling;
            Some(mixed.movedim_int(-1, 1))
        }

        /// The factors of experts, map by map: `[maps, r, in]` and `[maps, out, r]`.
        fn stacked(&self) -> Option<(Tensor, Tensor)> {
            if self.role != Role::Experts {
                return None;
            }
            let ((input, output), maps) = ((self.a.size()[1], self.b.size()[0]), self.maps);
            Some((self.a.reshape([maps, -1, input]), self.b.reshape([output, -1, maps]).permute([2, 0, 1])))
        }

        /// `s B A`, less what was taken: `[out, in]`; of a convolution `[out, in, ..]`, of experts
        /// `[maps, out, in]`.
        pub(in super::super) fn dense(&self) -> Tensor {
            if let Some((a, b)) = self.stacked() {
                return b.matmul(&a) * self.scaling;
            }
            let product = |a: &Tensor, b: &Tensor| {
                let shape: Vec<i64> = [b.size()[0]].into_iter().chain(a.size().into_iter().skip(1)).collect();
                b.flatten(1, -1).matmul(&a.flatten(1, -1)).reshape(shape) * self.scaling
            };
            let now = product(&self.a, &self.b);
            match &self.start {
                Some((a, b)) => now - product(a, b),
                None => now,
            }
        }

        /// The frozen weight in the form of [`Factors::dense`], float32.
        pub(in super::super) fn frozen(site: &Site, base: &OpWeights) -> Tensor {
            match site.role {
                Role::Embed => base.weight.to_kind(Kind::Float).tr(),
                _ => dense(site, base),
            }
        }

        /// Weights in that form as the site stores them. `None` when the bias of `B` has no place to go.
        pub(in super::super) fn stored(&self, site: &Site, base: &OpWeights, weight: &Tensor) -> Option<OpWeights> {
            let merged = match site.role {
                Role::Embed => OpWeights { weight: weight.tr(), bias: None },
                _ => with_weight(site, base, weight),
            };
            match (&self.bias, merged.bias) {
                (None, bias) => Some(OpWeights { bias, ..merged }),
                (Some(own), Some(bias)) => {
                    Some(OpWeights { weight: merged.weight, bias: Some(bias + own * self.scaling) })
                }
                (Some(_), None) => None,
            }
        }
    }
}
