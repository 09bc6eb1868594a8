//! The modules at their sites.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{BaseOp, OpWeights, Part, Site, SiteCx, SiteHook, SiteId};
use tch::{Device, Tensor};

use super::run_names::{A, B, DOWN, DOWN_BIAS, SCALE, SIDES, UP, UP_BIAS};
use super::{Config, Kind, Mode};
use crate::adapter::common::sizes;
use crate::adapter::prefix::run::prepend;
use crate::adapter::{Hooks, Parts, SiteMethod};
use crate::continual::pet::{Bottleneck, Low, with_prefix};
use crate::plan::PlannedTensor;

impl Mode {
    /// A part of a block with the adapter, for the part's input.
    pub(crate) fn around(self, adapter: &Bottleneck, u: &Tensor, part: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        match self {
            Self::Before => part(&self.input(adapter, u)),
            Self::After | Self::Parallel => self.output(adapter, u, &part(u)),
        }
    }

    /// What the part reads in place of `u`.
    fn input(self, adapter: &Bottleneck, u: &Tensor) -> Tensor {
        match self {
            Self::Before => (adapter.run(u) + u).to_kind(u.kind()),
            Self::After | Self::Parallel => u.shallow_clone(),
        }
    }

    /// What comes out in place of `y`.
    fn output(self, adapter: &Bottleneck, u: &Tensor, y: &Tensor) -> Tensor {
        let sum = match self {
            Self::Before => return y.shallow_clone(),
            Self::After => adapter.run(y) + u,
            Self::Parallel => y + adapter.run(u),
        };
        sum.to_kind(y.kind())
    }
}

/// Uniform from 0 to a hundredth.
pub(super) fn table(tensor: &PlannedTensor, key: Key, device: Device) -> Tensor {
    let mut rng = key.rng();
    let values: Vec<f32> = (0..tensor.numel()).map(|_| rng.uniform_in(0.0, 0.01)).collect();
    Tensor::from_slice(&values).reshape(sizes(tensor)).to_device(device)
}

fn part(parts: &Parts<'_>, site: SiteId, name: &str) -> Result<Tensor> {
    parts.part(site, name).map(Tensor::shallow_clone)
}

fn scale(config: &Config, parts: &Parts<'_>, site: SiteId, name: &str, like: &Tensor) -> Result<Tensor> {
    match config.pet_kwargs.scale {
        Some(scale) => Ok(Tensor::from(scale as f32).to_device(like.device())),
        None => part(parts, site, name),
    }
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    match config.pet_cls {
        Kind::Adapter => beside(config, parts),
        Kind::LoRA => crate::adapter::common::at_sites(parts, |site| {
            let (a, b) = (part(parts, site.id, A)?, part(parts, site.id, B)?);
            Ok(OnMap(Low { scale: scale(config, parts, site.id, SCALE, &a)?, a, b }))
        }),
        Kind::Prefix => crate::adapter::common::at_sites(parts, |site| {
            let side = |(table, by): (&str, &str)| -> Result<(Tensor, Tensor)> {
                let table = part(parts, site.id, table)?;
                let scale = scale(config, parts, site.id, by, &table)?;
                Ok((table, scale))
            };
            let (heads, dim) = site.dims.heads.map_or((1, site.dims.output), |heads| (heads.kv, heads.dim));
            Ok(Front {
                sides: [side(SIDES[0])?, side(SIDES[1])?],
                compensatory: config.pet_kwargs.compensatory.unwrap_or(true),
                heads: [heads as i64, dim as i64],
            })
        }),
    }
}

/// Attention's input, from the map that reads it to the one that ends attention, within one pass over a block.
type Passed = Arc<Mutex<Option<Tensor>>>;

/// At maps that read attention's input.
struct AtInput {
    adapter: Bottleneck,
    mode: Mode,
    /// Of the first such map.
    keep: Option<Passed>,
}

/// At attention's last map.
struct AtOutput {
    adapter: Bottleneck,
    mode: Mode,
    input: Passed,
}

fn bottleneck(config: &Config, parts: &Parts<'_>, site: SiteId) -> Result<Bottleneck> {
    let down = part(parts, site, DOWN)?;
    Ok(Bottleneck {
        down_bias: part(parts, site, DOWN_BIAS)?,
        up: part(parts, site, UP)?,
        up_bias: part(parts, site, UP_BIAS)?,
        scale: scale(config, parts, site, SCALE, &down)?,
        down,
    })
}

fn beside(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let mode = config.pet_kwargs.mode.unwrap_or_default();
    let mut hooks = Hooks::new();
    let sites = || parts.plan.sites.iter().map(|id| parts.site(*id));
    let outs: BTreeMap<_, _> = sites().filter(|site| site.part == Part::AttnOut).map(|site| (site.block, site.id)).collect();
    for (block, out) in outs {
        let passed = Passed::default();
        let mut first = Some(Arc::clone(&passed));
        for site in sites().filter(|site| site.block == block && site.id != out) {
            let hook = AtInput { adapter: bottleneck(config, parts, out)?, mode, keep: first.take() };
            hooks.insert(site.id, Box::new(hook));
        }
        hooks.insert(out, Box::new(AtOutput { adapter: bottleneck(config, parts, out)?, mode, input: passed }));
    }
    Ok(hooks)
}

impl SiteHook for AtInput {
    fn shares_base(&self) -> bool {
        self.mode != Mode::Before
    }

    fn after(&self, _: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        if let Some(mut kept) = self.keep.as_ref().and_then(|kept| kept.lock().ok()) {
            *kept = x.first().map(Tensor::shallow_clone);
        }
        y
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let own: Vec<_> = x.iter().map(|x| self.mode.input(&self.adapter, x)).collect();
        let y = base.run(&own);
        self.after(cx, &x, y)
    }
}

impl SiteHook for AtOutput {
    fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let input = self.input.lock().ok().and_then(|mut kept| kept.take());
        let Some(u) = input else { return y };
        y.iter().map(|y| self.mode.output(&self.adapter, &u, y)).collect()
    }
}

/// LoRA at one map.
struct OnMap(Low);

impl SiteHook for OnMap {
    fn after(&self, _: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let added = self.0.run(&x[0]);
        y.iter().map(|y| (y + &added).to_kind(y.kind())).collect()
    }
}

/// A prefix in one attention.
struct Front {
    /// Table and scale of keys, then of values.
    sides: [(Tensor, Tensor); 2],
    compensatory: bool,
    /// Heads and their width.
    heads: [i64; 2],
}

impl SiteHook for Front {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let [q, k, v] = &x[..] else { return base.run(&x) };
        let [keys, values] = self.sides.each_ref().map(|(table, scale)| {
            (table * scale).unflatten(-1, self.heads.as_slice()).to_kind(v.kind())
        });
        let k = prepend(cx.keys, &keys, k);
        let y = with_prefix(&values, self.compensatory, &|front, tokens| {
            let front = front.map_or_else(|| values.zeros_like(), Tensor::shallow_clone);
            let own = if tokens { v.shallow_clone() } else { v.zeros_like() };
            let all = [q.shallow_clone(), k.shallow_clone(), prepend(cx.keys, &front, &own)];
            base.run(&all).remove(0)
        });
        vec![y]
    }
}

/// No weight of the model can hold what these do together.
macro_rules! unmergeable {
    ($($hook:ty),*) => {$(impl SiteMethod for $hook {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    })*};
}
unmergeable! { AtInput, AtOutput, OnMap, Front }

