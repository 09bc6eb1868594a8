//! Stage 1: a domain adapter that learns from rows of its domain and is drawn to the frozen map on general rows.

use pleach_base::Result;
use pleach_nn::BackboneConfig;
use pleach_spec::job::Masking;
use serde_json::{Map, Value};

use super::options::Config;
use crate::adapter::{AdapterConfig, Export, HasCard, Passes, Routing};
use crate::card::Card;
use crate::plan::Plan;

/// The training of a domain adapter. What it leaves is a domain adapter like any other.
#[derive(Debug)]
pub(super) struct First {
    pub(super) options: Config,
    pub(super) domain: Box<dyn AdapterConfig>,
}

impl HasCard for First {
    fn card(&self) -> &'static Card {
        self.domain.card()
    }
}

impl AdapterConfig for First {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.domain.plan(model)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        self.domain.adapter_config(model, plan, export)
    }

    fn beside(&self) -> Option<&str> {
        self.options.general_data.as_deref()
    }

    fn masking(&self) -> Masking {
        Masking { probability: self.options.mlm_probability, mix: self.options.mlm_mix }
    }

    fn of_language(&self) -> bool {
        true
    }

    fn passes(&self) -> Passes {
        Passes { weights: vec![self.options.knowledge_loss_factor], ..Passes::default() }
    }

    /// For each place the sum over tokens of general rows of the mean over features of `|F - K|^2`, and those tokens.
    fn sums(&self, plan: &Plan) -> Option<[usize; 2]> {
        self.beside().map(|_| [plan.sites.len(), 2])
    }

    fn couples(&self) -> bool {
        self.beside().is_some()
    }

    fn routing(&self, plan: &Plan, sums: &[f64]) -> Option<Routing> {
        self.sums(plan)?;
        let means: Vec<f64> = sums.chunks_exact(2).map(|place| place[0] / place[1].max(1.0)).collect();
        let mean = means.iter().sum::<f64>() / means.len().max(1) as f64;
        Some(Routing { metrics: vec![("mixda/old_knowledge".to_owned(), mean)], warnings: Vec::new() })
    }

    /// `L_S`: the mean over places of the mean over tokens.
    #[cfg(feature = "torch")]
    fn batch_loss(&self, sums: &tch::Tensor) -> Option<tch::Tensor> {
        self.beside()?;
        Some((sums.select(1, 0) / sums.select(1, 1).clamp_min(1.0)).mean(None::<tch::Kind>))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        run::hooks(parts)
    }
}

#[cfg(feature = "torch")]
mod run {
    use std::sync::Arc;

    use pleach_base::Result;
    use pleach_nn::{Layout, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::super::gate::apart;
    use crate::adapter::common::every_token;
    use crate::adapter::domain::run::Domain;
    use crate::adapter::{Board, Hooks, Parts, SiteMethod};

    /// At the last map of a feed-forward part.
    struct Drawn {
        domain: Domain,
        /// Its number among the places.
        place: usize,
        board: Arc<Board>,
    }

    pub(super) fn hooks(parts: &Parts<'_>) -> Result<Hooks> {
        let mut hooks = Hooks::new();
        for (place, id) in parts.plan.sites.iter().enumerate() {
            let (domain, board) = (Domain::new(parts, *id)?, Arc::clone(parts.board));
            hooks.insert(*id, Box::new(Drawn { domain, place, board }));
        }
        Ok(hooks)
    }

    /// 1 at tokens of general rows and 0 at others, `[batch, 1, 1]` or `[tokens, 1]`; `None` when no row is general.
    fn general(layout: &Layout) -> Option<Tensor> {
        let tasks: Vec<f32> = layout.tasks().iter().map(|task| if *task == 1 { 1.0 } else { 0.0 }).collect();
        let any = tasks.contains(&1.0);
        any.then(|| every_token(layout, &Tensor::from_slice(&tasks).to_device(layout.device()).unsqueeze(1)))
    }

    impl Drawn {
        /// Adds what is between `F` and `K` at tokens of general rows. The frozen map gives all that those rows go
        /// through, so nothing but `K` itself learns of it.
        fn note(&self, layout: &Layout, general: &Tensor, frozen: &Tensor, own: &Tensor) {
            let counted = match layout.real() {
                Some(real) => general.squeeze_dim(-1) * real.to_kind(Kind::Float), // [batch, width]
                None => general.squeeze_dim(-1),
            };
            let distances = apart(&frozen.detach(), own);
            let counted = counted.expand_as(&distances);
            let sums = [(distances * &counted).sum(Kind::Float), counted.sum(Kind::Float)];
            self.board.add(self.place, Tensor::stack(&sums, 0));
        }
    }

    impl SiteHook for Drawn {
        fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            let own = self.domain.run(&x[0].to_kind(Kind::Float));
            let Some(general) = general(cx.layout) else { return y.iter().map(|y| own.to_kind(y.kind())).collect() };
            let one = |y: &Tensor| {
                let frozen = y.to_kind(Kind::Float);
                if cx.train {
                    self.note(cx.layout, &general, &frozen, &own);
                }
                frozen.where_self(&general.gt(0.5), &own).to_kind(y.kind())
            };
            y.iter().map(one).collect()
        }
    }

    impl SiteMethod for Drawn {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }
}
