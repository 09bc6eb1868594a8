//! Stage 1: a domain adapter learns its domain's rows in the place of the frozen map, and on general rows to give what that
//! map gives.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::BackboneConfig;
use serde_json::{Map, Value};

use super::options::Config;
use crate::adapter::{AdapterConfig, Export, HasCard, Passes};
use crate::card::Card;
use crate::plan::{Plan, PlannedTensor};

/// Numbers of the tasks that rows name.
pub(super) const DOMAIN: u32 = 0;
pub(super) const GENERAL: u32 = 1;

/// The domain adapter as it is taught.
#[derive(Debug)]
pub(super) struct Taught {
    pub(super) options: Config,
    pub(super) inner: Box<dyn AdapterConfig>,
}

impl HasCard for Taught {
    fn card(&self) -> &'static Card {
        self.inner.card()
    }
}

impl AdapterConfig for Taught {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.inner.plan(model)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        self.inner.adapter_config(model, plan, export)
    }

    fn passes(&self) -> Passes {
        Passes { weights: vec![self.options.knowledge_loss_factor], ..Passes::default() }
    }

    /// A layer's squared distance over its general tokens, and their number.
    fn sums(&self, plan: &Plan) -> Option<[usize; 2]> {
        (!self.options.no_old_knowledge).then_some([plan.sites.len(), 2])
    }

    fn couples(&self) -> bool {
        !self.options.no_old_knowledge
    }

    #[cfg(feature = "torch")]
    fn batch_loss(&self, sums: &tch::Tensor) -> Option<tch::Tensor> {
        Some(super::gate::sampling(sums))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        super::run::taught(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(&self, tensor: &PlannedTensor, base: &dyn pleach_nn::Backbone, key: Key) -> Result<tch::Tensor> {
        self.inner.initial(tensor, base, key)
    }
}
