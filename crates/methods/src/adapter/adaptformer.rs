//! AdaptFormer: a bottleneck beside the feed-forward part of every block, `y + s (U drop(relu(D h + d)) + u)`, where `h`
//! is what the part's own normalisation reads: the block's residual.
//!
//! Attaches to the sum behind the feed-forward part, before it in blocks that normalise afterwards. `U` and the biases
//! begin at zero, which leaves the model unchanged. Computed in float32; the sum is in the base's precision.
//!
//! Chen, Ge, Tong, Wang, Song, Wang, Luo, *AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition*,
//! 2022.

use pleach_nn::Part;

use super::common::{positive_number, own_config, usual_init};
use super::prelude::*;
use super::saved;

options! {
    /// Options of AdaptFormer.
    pub struct Config {
        /// Width of the bottleneck.
        dim: u32 = 64,
        /// What the branch is multiplied with.
        scale: f64 = 0.1,
        /// Share of the bottleneck's values that is dropped in training.
        dropout: f64 = 0.1,
        /// Whether both maps have biases.
        bias: bool = true,
        /// Numbers of blocks without a branch.
        leave_out: Vec<u32> = Vec::new(),
        /// Modules that are trained and saved whole. Classification adds its head by itself.
        modules_to_save: Option<Vec<String>> = None,
    }
}

const DOWN: [&str; 2] = ["adapter_down.weight", "adapter_down.bias"];
const UP: [&str; 2] = ["adapter_up.weight", "adapter_up.bias"];

const ROLES: &[Role] = &[Role::SublayerOut, Role::Head];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "adaptformer",
        title: "AdaptFormer",
        summary: "Puts a bottleneck beside the feed-forward part of every block.",
        formula: "`y + s (U drop(relu(D h + d)) + u)`, `h` the block's residual; `D` `[dim, hidden]`, `U` back; `U` and \
                  biases begin at zero.",
        paper: "Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, 2022 \
                (arXiv:2205.13535)",
        roles: ROLES,
        mergeable: false,
        sample_job: sample_job!("adaptformer", ", dim: 16"),
        invalid: &[
            Invalid { options: r#"{"dim": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"scale": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"leave_out": [0, 1, 2, 3]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"width": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"dim": 4, "scale": 1.0}"#;

    fn validate(&self) -> Result<()> {
        positive("dim", self.dim)?;
        positive_number("scale", self.scale)?;
        share("dropout", self.dropout)
    }
}

impl Config {
    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (hidden, dim) = (site.dims.output, self.dim as usize);
        let mut all = vec![parameter(site, DOWN[0], [dim, hidden], usual_init(hidden))];
        if self.bias {
            all.push(parameter(site, DOWN[1], [dim], Init::Zeros));
        }
        all.push(parameter(site, UP[0], [hidden, dim], Init::Zeros));
        if self.bias {
            all.push(parameter(site, UP[1], [hidden], Init::Zeros));
        }
        all
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let wanted = |site: &&Site| {
            site.part == Part::FeedForward && site.block.is_some_and(|block| !self.leave_out.contains(&block))
        };
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for site in model.sites().with_role(Role::SublayerOut).filter(wanted) {
            plan.tensors.extend(self.tensors(site));
            plan.sites.push(site.id);
        }
        if plan.sites.is_empty() {
            return Err(code::TARGET_NOTHING
                .error("leave_out: no block of the model gets a branch")
                .hint(format!("the model has {} blocks, numbered from 0", model.info().num_blocks)));
        }
        plan.tensors.extend(whole);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn sized(&self, dim: Option<u32>, scale: Option<f64>, dropout: Option<f64>) -> Option<Box<dyn AdapterConfig>> {
        Some(Box::new(Self {
            dim: dim.unwrap_or(self.dim),
            scale: scale.unwrap_or(self.scale),
            dropout: dropout.unwrap_or(self.dropout),
            ..self.clone()
        }))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::{Config, DOWN, UP};
    use crate::adapter::common::{Activation, Branch, Dropout, at_sites, keep_mask};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    struct AdaptFormer {
        branch: Branch,
        dim: usize,
        dropout: Dropout,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let part = |name| parts.part(site.id, name).map(Tensor::shallow_clone);
            let bias = |name| if config.bias { part(name).map(Some) } else { Ok(None) };
            let (down, up) = ((part(DOWN[0])?, bias(DOWN[1])?), (part(UP[0])?, bias(UP[1])?));
            let dropout = Dropout::new(config.dropout, parts.key, "adaptformer", &site.path);
            let branch = Branch { down, up, activation: Activation::Relu, scale: config.scale };
            Ok(AdaptFormer { branch, dim: config.dim as usize, dropout })
        })
    }

    impl SiteHook for AdaptFormer {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let drop = &self.dropout;
            let keep = drop.is_on(cx).then(|| keep_mask(cx.layout, self.dim, drop.p, drop.now(cx)));
            let added = self.branch.run(&x[1].to_kind(Kind::Float), keep.as_ref());
            let output = (&x[0] + added).to_kind(x[0].kind());
            base.run(&[output, x[1].shallow_clone()])
        }
    }

    impl SiteMethod for AdaptFormer {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }
}
