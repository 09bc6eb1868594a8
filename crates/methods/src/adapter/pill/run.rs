//! The hooks of PILL.

use pleach_base::Result;
use pleach_nn::{Layout, OpWeights, Role, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind as Element, Tensor};

use super::{ATTENTION, Config, Form, Glu, NAMES, STAGE, Stage};
use crate::adapter::{Hooks, Parts, SiteMethod};

/// An adapter: `U (silu(Dg x) * (D x))`, or `U gelu(D x)`.
struct Bottleneck {
    down: Tensor,              // [r, width]
    down_gate: Option<Tensor>, // [r, width]
    up: Tensor,                // [width, r]
}

impl Bottleneck {
    fn of(config: &Config, parts: &Parts<'_>, site: SiteId, names: Glu) -> Result<Self> {
        let part = |name| parts.part(site, name).map(Tensor::shallow_clone);
        let gated = config.adapter_activation == Form::Silu;
        let down_gate = if gated { Some(part(names.down_gate)?) } else { None };
        Ok(Self { down: part(names.down)?, down_gate, up: part(names.up)? })
    }

    /// `x` `[.., width]`, float32, to the same shape.
    fn run(&self, x: &Tensor) -> Tensor {
        let down = x.linear::<Tensor>(&self.down, None);
        let inner = match &self.down_gate {
            Some(gate) => x.linear::<Tensor>(gate, None).silu() * down,
            None => down.gelu("none"),
        };
        inner.linear::<Tensor>(&self.up, None)
    }
}

/// The stage of the pass at hand.
enum Now {
    Always(Stage),
    /// As this tensor says, which the end of a phase changes.
    Kept(Tensor),
}

impl Clone for Now {
    fn clone(&self) -> Self {
        match self {
            Self::Always(stage) => Self::Always(*stage),
            Self::Kept(tensor) => Self::Kept(tensor.shallow_clone()),
        }
    }
}

impl Now {
    fn aligns(&self) -> bool {
        match self {
            Self::Always(stage) => *stage == Stage::Align,
            Self::Kept(tensor) => tensor.double_value(&[0]) == 0.0,
        }
    }
}

/// Behind the token table: projected features at the places of other kinds than text.
struct Projections(Vec<(i64, Tensor)>);

/// Behind the normalisation before attention.
struct Attention(Bottleneck);

/// Behind the map of values: gates `[heads, hidden]` by kind.
struct Gates {
    gates: Vec<(i64, Tensor)>,
    now: Now,
}

/// Behind the normalisation before the feed-forward part: experts by kind.
struct Experts {
    experts: Vec<(i64, Bottleneck)>,
    /// In the last block, where text and the first other kind exchange theirs while aligning.
    exchanges: bool,
    now: Now,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let kinds = config.kinds()?;
    let last = parts.plan.sites.iter().filter_map(|id| parts.site(*id).block).max();
    let now = match config.stages() {
        [stage] => Now::Always(*stage),
        _ => Now::Kept(parts.get(STAGE)?.shallow_clone()),
    };
    let numbered = |site: SiteId, name: &dyn Fn(usize) -> &'static str| -> Result<Vec<(i64, Tensor)>> {
        let there = (0..kinds.len()).filter(|number| parts.plan.part(site, name(*number)).is_some());
        there.map(|number| Ok((number as i64, parts.part(site, name(number))?.shallow_clone()))).collect()
    };
    let mut hooks = Hooks::new();
    for id in &parts.plan.sites {
        let site = parts.site(*id);
        let hook: Box<dyn SiteMethod> = match site.role {
            Role::Embed => Box::new(Projections(numbered(*id, &|n| NAMES[n].project)?)),
            Role::Linear => Box::new(Gates { gates: numbered(*id, &|n| NAMES[n].gate)?, now: now.clone() }),
            _ if parts.plan.part(*id, ATTENTION.down).is_some() => {
                Box::new(Attention(Bottleneck::of(config, parts, *id, ATTENTION)?))
            }
            _ => {
                let there = (0..kinds.len()).filter(|n| parts.plan.part(*id, NAMES[*n].expert.down).is_some());
                let expert = |n: usize| Ok((n as i64, Bottleneck::of(config, parts, *id, NAMES[n].expert)?));
                let experts = there.map(expert).collect::<Result<_>>()?;
                let exchanges = config.align_invert_last_layer && site.block == last;
                Box::new(Experts { experts, exchanges, now: now.clone() })
            }
        };
        hooks.insert(*id, hook);
    }
    Ok(hooks)
}

/// Where tokens are of a kind, `[.., 1]`; `None` when all tokens are text and the kind is not.
fn places(layout: &Layout, kind: i64) -> Option<Tensor> {
    layout.modality().map(|modality| modality.eq(kind).unsqueeze(-1))
}

impl SiteHook for Projections {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let Some(features) = x.get(1) else { return y };
        let project = |y: &Tensor| {
            self.0.iter().fold(y.shallow_clone(), |y, (kind, weight)| match places(cx.layout, *kind) {
                Some(places) => {
                    let rows = features.to_kind(Element::Float).linear::<Tensor>(weight, None).to_kind(y.kind());
                    rows.where_self(&places, &y)
                }
                None => y,
            })
        };
        y.iter().map(project).collect()
    }
}

impl SiteHook for Attention {
    fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let one = |y: &Tensor| {
            let wide = y.to_kind(Element::Float);
            (&wide + self.0.run(&wide)).to_kind(y.kind())
        };
        y.iter().map(one).collect()
    }
}

impl Gates {
    /// `values` `[.., heads * width]` with those of each gated kind gated by `input` `[.., hidden]`.
    fn gated(&self, layout: &Layout, input: &Tensor, values: &Tensor) -> Tensor {
        let input = input.to_kind(Element::Float);
        self.gates.iter().fold(values.shallow_clone(), |values, (kind, weight)| {
            let Some(places) = places(layout, *kind) else { return values };
            let heads = weight.size()[0];
            let gate = input.linear::<Tensor>(weight, None).tanh().unsqueeze(-1); // [.., heads, 1]
            let gated = values.to_kind(Element::Float).unflatten(-1, [heads, -1]) * gate;
            gated.flatten(-2, -1).to_kind(values.kind()).where_self(&places, &values)
        })
    }
}

impl SiteHook for Gates {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        if self.now.aligns() {
            return y;
        }
        y.iter().map(|y| self.gated(cx.layout, &x[0], y)).collect()
    }
}

impl Experts {
    /// The kind whose tokens go through the expert of this number.
    fn routed(&self, number: i64, aligns: bool) -> i64 {
        match number {
            0 | 1 if self.exchanges && aligns => 1 - number,
            _ => number,
        }
    }
}

impl SiteHook for Experts {
    fn after(&self, cx: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let aligns = self.now.aligns();
        let one = |y: &Tensor| {
            let wide = y.to_kind(Element::Float);
            let mut sum = wide.shallow_clone();
            for (number, expert) in &self.experts {
                let kind = self.routed(*number, aligns);
                let given = match (places(cx.layout, kind), kind) {
                    (Some(places), _) => {
                        let given = expert.run(&wide);
                        given.where_self(&places, &given.zeros_like())
                    }
                    // Without other kinds every token is text.
                    (None, 0) => expert.run(&wide),
                    (None, _) => continue,
                };
                // A new tensor: the first is the model's own.
                sum = sum.g_add(&given);
            }
            sum.to_kind(y.kind())
        };
        y.iter().map(one).collect()
    }
}

macro_rules! never_merged {
    ($($hook:ty),*) => {
        $(impl SiteMethod for $hook {
            fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
                None
            }
        })*
    };
}

never_merged!(Projections, Attention, Gates, Experts);
