//! The classifier, the scalings that are made of what it says, and the hooks that use them.

use std::sync::Arc;

use pleach_base::Result;
use pleach_nn::{BaseOp, OpWeights, SCORING_PASS, ScoredPass, Site, SiteCx, SiteHook};
use tch::{Kind, Tensor};

use super::{Config, PARTS, places};
use crate::adapter::common::keep_mask;
use crate::adapter::{Board, Hooks, Parts, SiteMethod};

/// The classifier: weights and biases, with ReLU and perhaps dropout between them.
pub(crate) struct Classifier(pub(crate) Vec<(Tensor, Tensor)>);

impl Classifier {
    /// Logits of `hidden` `[.., width]`; `drop` acts behind each activation.
    pub(crate) fn run(&self, hidden: &Tensor, drop: &dyn Fn(Tensor, usize) -> Tensor) -> Tensor {
        let mut x = hidden.shallow_clone();
        for (number, (weight, bias)) in self.0.iter().enumerate() {
            if number > 0 {
                x = drop(x.relu(), number);
            }
            x = x.linear(weight, Some(bias));
        }
        x
    }
}

impl Config {
    /// Logits `[.., layers experts]` as scalings `[.., layers, experts]`, the same for all layers where the classifier
    /// gives one set.
    pub(crate) fn scalings(&self, logits: &Tensor, layers: i64, experts: i64) -> Tensor {
        let mut shape = logits.size();
        let own = if self.layerwise_scalings { layers } else { 1 };
        shape.splice(shape.len() - 1.., [own, experts]);
        let logits = logits.reshape(&shape);
        let at = shape.len() - 2;
        shape[at] = layers;
        let all =
            if self.enable_softmax { (logits / self.softmax_temperature).softmax(-1, None::<Kind>) } else { logits };
        all.expand(shape, false)
    }

    /// The scalings of one layer `[.., experts]` as its experts are multiplied with them.
    pub(crate) fn effective(&self, scalings: &Tensor) -> Tensor {
        let kept = match self.top_k_lora {
            None => scalings.shallow_clone(),
            Some(k) => {
                let (_, best) = scalings.topk(i64::from(k), -1, true, true);
                scalings * scalings.zeros_like().scatter_value(-1, &best, 1.0)
            }
        };
        if !self.enable_softmax_topk {
            return kept;
        }
        let none = kept.eq(0.0);
        // A row of nothing but zeros stays one: its softmax would be no number, and neither would its gradient.
        let empty = none.all_dim(-1, true);
        let open = none.logical_and(&empty.logical_not());
        kept.masked_fill(&open, f64::NEG_INFINITY).softmax(-1, None::<Kind>).masked_fill(&none, 0.0)
    }
}

/// One adapted map.
struct Scaled {
    config: Config,
    /// Its number among the adapted maps.
    layer: i64,
    experts: Vec<Option<Box<dyn SiteMethod>>>,
    board: Arc<Board>,
}

impl Scaled {
    /// What the experts are multiplied with, `[.., experts]`.
    fn gates(&self, cx: &SiteCx<'_>) -> Option<Tensor> {
        let scalings = if cx.pass == SCORING_PASS {
            let mut shape = cx.layout.shape();
            shape.push(self.experts.len() as i64);
            Tensor::full(shape, self.config.scaling_pass_value, (Kind::Float, cx.layout.device()))
        } else {
            self.board.scores()?.select(-2, self.layer)
        };
        Some(self.config.effective(&scalings) * self.config.global_scaling_weight)
    }

    fn mixed(&self, cx: &SiteCx<'_>, x: &[Tensor], y: &Tensor, base: Option<&BaseOp<'_>>) -> Tensor {
        let Some(gates) = self.gates(cx) else { return y.shallow_clone() };
        let plain = y.to_kind(Kind::Float);
        let mut sum = plain.shallow_clone();
        for (number, hook) in self.experts.iter().enumerate() {
            let Some(hook) = hook else { continue };
            let result = match base {
                Some(base) if !hook.shares_base() => {
                    hook.around(cx, x.iter().map(Tensor::shallow_clone).collect(), base)
                }
                _ => hook.after(cx, x, vec![y.shallow_clone()]),
            };
            let change = result[0].to_kind(Kind::Float) - &plain;
            sum = sum.g_add(&(change * gates.narrow(-1, number as i64, 1)));
        }
        sum.to_kind(y.kind())
    }
}

impl SiteHook for Scaled {
    fn shares_base(&self) -> bool {
        self.experts.iter().flatten().all(|hook| hook.shares_base())
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        vec![self.mixed(cx, x, &y[0], None)]
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        vec![self.mixed(cx, &x, &y[0], Some(base))]
    }
}

impl SiteMethod for Scaled {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>, mut experts: Vec<Hooks>) -> Result<Hooks> {
    let mut hooks = Hooks::new();
    for (layer, place) in places::of(parts.plan, parts.sites, false)?.into_iter().enumerate() {
        let experts = experts.iter_mut().map(|hooks| hooks.remove(&place.site)).collect();
        let (config, board) = (config.clone(), Arc::clone(parts.board));
        hooks.insert(
            place.site,
            Box::new(Scaled { config, layer: layer as i64, experts, board }) as Box<dyn SiteMethod>,
        );
    }
    Ok(hooks)
}

/// Puts up the scalings of the next pass.
pub(super) fn score(config: &Config, parts: &Parts<'_>, experts: usize, pass: &ScoredPass<'_>, hidden: &Tensor) {
    let of = |part: &'static str| parts.plan.tensors.iter().filter(move |tensor| tensor.part == part);
    let maps = of(PARTS[0]).zip(of(PARTS[1])).filter_map(|(weight, bias)| {
        Some((parts.get(&weight.name).ok()?.shallow_clone(), parts.get(&bias.name).ok()?.shallow_clone()))
    });
    let drop = |x: Tensor, number: usize| {
        if !pass.train || config.xlora_dropout_p == 0.0 {
            return x;
        }
        let key = parts.key.named("xlora_dropout").with(number as u64).with(pass.step).with(u64::from(pass.pass));
        &x * keep_mask(pass.layout, config.xlora_size as usize, config.xlora_dropout_p, key)
    };
    let logits = Classifier(maps.collect()).run(&hidden.to_kind(Kind::Float), &drop);
    let layers = places::of(parts.plan, parts.sites, false).map_or(0, |places| places.len());
    parts.board.put_scores(config.scalings(&logits, layers as i64, experts as i64));
}
