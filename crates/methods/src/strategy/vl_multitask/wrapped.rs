//! An adapter that several tasks share.

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Sites};
use pleach_spec::job::RowTasks;
use serde_json::{Map, Value, json};

use super::options::Config;
use super::plan;
use crate::adapter::bottleneck::{Bn, Of, Sequential};
use crate::adapter::{AdapterConfig, Export, HasCard, Owner, Virtual, compacter};
use crate::around::{AroundOptions as _, INNER};
use crate::card::Card;
use crate::plan::{Plan, PlannedTensor};

/// The adapter that is trained.
#[derive(Debug)]
pub(super) struct Wrapped {
    config: Config,
    /// As the job wrote it.
    inside: Box<dyn AdapterConfig>,
}

impl Wrapped {
    pub(super) fn new(config: Config, inside: Box<dyn AdapterConfig>) -> Self {
        Self { config, inside }
    }

    /// Calls `with` with the adapter that stands on a model with these sites: where the job wrote a bottleneck, that of
    /// the strategy's options.
    fn inner<T>(&self, sites: &Sites, with: impl FnOnce(&dyn AdapterConfig) -> T) -> T {
        let bn = |bn: Bn| self.config.bottleneck(bn, sites);
        match (self.inside.bottleneck(), self.inside.card().name) {
            (Some(own), "compacter") => with(&Of::<compacter::Compacter>::new(bn(own), None)),
            (Some(own), _) => with(&Of::<Sequential>::new(bn(own), None)),
            (None, _) => with(self.inside.as_ref()),
        }
    }
}

impl HasCard for Wrapped {
    fn card(&self) -> &'static Card {
        Config::CARD
    }
}

impl AdapterConfig for Wrapped {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.inner(model.sites(), |inner| plan::plan(&self.config, inner, model))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = match serde_json::to_value(&self.config) {
            Ok(Value::Object(own)) => own,
            _ => Map::new(),
        };
        let inside = self.inner(model.sites(), |inner| {
            let own = inner.plan(model).unwrap_or_default();
            inner.adapter_config(model, &own, export)
        });
        let about = [
            ("pleach_method", json!(Config::CARD.name)),
            ("base_model_name_or_path", json!(export.base)),
            ("task_type", json!(model.info().head.task_type())),
            (INNER, Value::Object(inside)),
        ];
        fields.extend(about.map(|(name, value)| (name.to_owned(), value)));
        fields.sort_keys();
        fields
    }

    fn virtual_tokens(&self) -> Virtual {
        self.inside.virtual_tokens()
    }

    fn row_tasks(&self) -> Option<RowTasks> {
        self.config.row_tasks()
    }

    fn owner(&self, tensor: &PlannedTensor) -> Owner {
        plan::owner_of(&self.config, tensor)
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        self.inside.lr_scale(tensor)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        let own = match plan::owner(&self.config, &tensor.name) {
            Some((_, name)) => PlannedTensor { name: name.to_owned(), ..tensor.clone() },
            None => tensor.clone(),
        };
        self.inner(base.config().sites(), |inner| inner.initial(&own, base, key))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        let mut hooks = match self.config.sharing {
            super::Sharing::Hyper => super::hyper::hooks(&self.config, parts)?,
            _ => self.inner(parts.sites, |inner| super::dispatch::hooks(&self.config, inner, parts))?,
        };
        super::dispatch::norms(parts, &mut hooks)?;
        Ok(hooks)
    }
}
