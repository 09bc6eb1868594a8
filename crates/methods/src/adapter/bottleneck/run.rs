//! A bottleneck adapter at the sum behind a part of a block.

use pleach_base::{Result, code};
use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::options::{Bn, PostAdd, Residual, Scaling};
use super::phm::{End, Products};
use super::plan::{BIAS, GATE, NORM_AFTER, NORM_BEFORE, SCALING, WEIGHT, shared_site};
use super::sublayer::{Io, State, Sublayer, around};
use crate::adapter::common::{Activation, Dropout, sequence_mean};
use crate::adapter::{Hooks, Parts, SiteMethod};

/// An affine map.
#[derive(Debug)]
pub(crate) enum Affine {
    Plain { weight: Tensor, bias: Tensor },
    Products(Products),
}

impl Affine {
    fn new(bn: &Bn, end: End, parts: &Parts<'_>, site: SiteId) -> Result<Self> {
        if !bn.phm_layer {
            let get = |name| parts.part(site, name).map(Tensor::shallow_clone);
            return Ok(Self::Plain { weight: get(end.pick(WEIGHT))?, bias: get(end.pick(BIAS))? });
        }
        let shared = shared_site(parts.plan).unwrap_or(site);
        Ok(Self::Products(Products::new(bn, end, parts, site, shared)?))
    }

    pub(crate) fn run(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Plain { weight, bias } => x.linear(weight, Some(bias)),
            Self::Products(products) => products.run(x),
        }
    }
}

/// Weight and bias of a normalisation or a gate.
#[derive(Debug)]
pub(crate) struct Pair(pub(crate) Tensor, pub(crate) Tensor);

impl Pair {
    fn new(on: bool, parts: &Parts<'_>, site: SiteId, names: [&str; 2]) -> Result<Option<Self>> {
        if !on {
            return Ok(None);
        }
        let [weight, bias] = names.map(|name| parts.part(site, name).map(Tensor::shallow_clone));
        Ok(Some(Self(weight?, bias?)))
    }

    fn norm(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.0.size(), Some(&self.0), Some(&self.1), 1e-5, true)
    }
}

/// The bottleneck itself: `U act(D norm(h))`.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) norm_before: Option<Pair>,
    pub(crate) down: Affine,
    pub(crate) activation: Activation,
    pub(crate) up: Affine,
}

impl Net {
    /// `[.., hidden]` to the same shape, without the residual.
    pub(crate) fn run(&self, x: &Tensor) -> Tensor {
        let normed = self.norm_before.as_ref().map(|norm| norm.norm(x));
        self.up.run(&self.activation.run(&self.down.run(normed.as_ref().unwrap_or(x))))
    }
}

/// The adapter's end: its result, normalised where it has a normalisation of its own, with the residual.
pub(crate) fn finished(result: &Tensor, own: &Tensor, norm_after: Option<&Pair>) -> Tensor {
    match norm_after {
        Some(norm) => norm.norm(result) + own,
        None => result + own,
    }
}

enum Factor {
    Constant(f64),
    Trained(Tensor),
}

/// A bottleneck adapter at one site.
pub struct Bottleneck {
    bn: Bn,
    net: Net,
    scaling: Factor,
    gate: Option<Pair>,
    norm_after: Option<Pair>,
    dropout: Dropout,
    depth: Dropout,
}

impl Bottleneck {
    fn new(bn: &Bn, parts: &Parts<'_>, site: SiteId) -> Result<Self> {
        let path = &parts.site(site).path;
        let scaling = match bn.scaling {
            Scaling::Factor(factor) => Factor::Constant(factor),
            Scaling::Trained(_) => Factor::Trained(parts.part(site, SCALING)?.shallow_clone()),
        };
        Ok(Self {
            net: Net {
                activation: Activation::parse("non_linearity", &bn.non_linearity)?,
                norm_before: Pair::new(bn.ln_before, parts, site, NORM_BEFORE)?,
                down: Affine::new(bn, End::Down, parts, site)?,
                up: Affine::new(bn, End::Up, parts, site)?,
            },
            scaling,
            gate: Pair::new(bn.use_gating, parts, site, GATE)?,
            norm_after: Pair::new(bn.ln_after, parts, site, NORM_AFTER)?,
            dropout: Dropout::new(bn.dropout, parts.key, "bottleneck_dropout", path),
            depth: Dropout::new(bn.stochastic_depth, parts.key, "stochastic_depth", path),
            bn: bn.clone(),
        })
    }

    /// What goes into the adapter, given what came out of the part or of the adapter before. `query_early`: for
    /// AdapterFusion, take its queries before the normalisation.
    pub(crate) fn before(&self, io: &Io<'_>, hidden: &Tensor, query_early: bool) -> Before {
        if self.bn.is_parallel {
            let input = || io.residual.shallow_clone();
            return Before { hidden: input(), own: input(), query: input() };
        }
        let start = hidden.shallow_clone();
        let (mut own, mut hidden) = (hidden.shallow_clone(), hidden.shallow_clone());
        if self.bn.original_ln_before {
            if self.bn.residual_before_ln == Residual::Between(PostAdd::PostAdd) {
                own = &hidden + &io.residual;
            }
            hidden = io.finish(&hidden);
        }
        if self.bn.residual_before_ln == Residual::Before(false) {
            own = hidden.shallow_clone();
        }
        let query = if query_early { start } else { hidden.shallow_clone() };
        Before { hidden, own, query }
    }

    /// The adapter itself: its result, with its own residual unless it stands in parallel, and before that.
    pub(crate) fn adapt(&self, io: &Io<'_>, state: &State) -> State {
        let input = &state.hidden;
        let mut up = self.depth.sequences(io.cx, &self.net.run(input));
        up = match &self.scaling {
            Factor::Constant(factor) => up * *factor,
            Factor::Trained(factor) => up * factor,
        };
        let kept = self.dropout.apply(io.cx, &up);
        // Never in place: without dropout this is `up` itself.
        let out = match &self.gate {
            Some(Pair(weight, bias)) => {
                kept * sequence_mean(io.cx.layout, &input.linear(weight, Some(bias)).sigmoid())
            }
            None => kept,
        };
        let after = |x: Tensor| self.norm_after.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.norm(&x));
        let hidden = match (self.bn.is_parallel, self.bn.adapter_residual_before_ln) {
            (true, _) => after(out),
            (false, true) => after(out + &state.own),
            (false, false) => finished(&out, &state.own, self.norm_after.as_ref()),
        };
        State { hidden, own: state.own.shallow_clone(), up: Some(up) }
    }

    /// What goes on to the next part of the block.
    pub(crate) fn after(&self, io: &Io<'_>, hidden: &Tensor) -> Tensor {
        let hidden = if self.bn.is_parallel { hidden + &io.output } else { hidden.shallow_clone() };
        if self.bn.original_ln_after { io.finish(&hidden) } else { hidden }
    }

    /// Whether results contain the adapter's own residual.
    pub(crate) fn is_parallel(&self) -> bool {
        self.bn.is_parallel
    }
}

/// What goes into an adapter.
pub struct Before {
    /// Its input.
    pub(crate) hidden: Tensor,
    /// What it adds its result to.
    pub(crate) own: Tensor,
    /// AdapterFusion's query.
    pub(crate) query: Tensor,
}

impl Sublayer for Bottleneck {
    fn first(&self) -> &Bottleneck {
        self
    }

    fn last(&self) -> &Bottleneck {
        self
    }

    fn alone(&self, io: &Io<'_>, state: State) -> State {
        let Before { hidden, own, .. } = self.before(io, &state.hidden, false);
        self.adapt(io, &State { hidden, own, up: None })
    }

    fn within(&self, io: &Io<'_>, state: &State) -> State {
        self.adapt(io, state)
    }
}

impl SiteHook for Bottleneck {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        around(self, cx, &x, base)
    }
}

impl SiteMethod for Bottleneck {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }

    fn sublayer(&self) -> Option<&dyn Sublayer> {
        Some(self)
    }
}

/// The adapters at all their sites.
pub(super) fn hooks(bn: &Bn, parts: &Parts<'_>, to: &mut Hooks) -> Result<()> {
    for id in &parts.plan.sites {
        if parts.site(*id).role == pleach_nn::Role::SublayerOut {
            to.insert(*id, Box::new(Bottleneck::new(bn, parts, *id)?));
        }
    }
    if to.is_empty() { Err(code::INTERNAL.error("no site is planned")) } else { Ok(()) }
}

/// Normal values with standard deviation 0.01 that lie within two of them.
pub(super) fn cut_normal(shape: &[usize], key: pleach_base::rng::Key, device: tch::Device) -> Tensor {
    let mut rng = key.rng();
    let mut draw = || loop {
        let value = rng.normal();
        if value.abs() <= 2.0 {
            return value * 0.01;
        }
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| draw()).collect();
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    Tensor::from_slice(&values).reshape(shape).to_kind(Kind::Float).to_device(device)
}
