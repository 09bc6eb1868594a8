//! A router with its experts as one adapter: what is trained in place of a task's own.
//!
//! Experts are adapters of any method, named as in every composition (`e0.base_model.model...`); the router's own tensors
//! come before theirs. The file holds both, so that it can be read where the experts' folders are not.

use std::fmt::Debug;

use pleach_base::{Error, Result, code};
use pleach_nn::BackboneConfig;
use pleach_spec::job::RowTasks;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{RouterOptions, Source};
use crate::adapter::compose::{self, Child};
use crate::adapter::{AdapterConfig, Export, HasCard, Owner, Virtual};
use crate::card::Card;
use crate::plan::{Plan, PlannedTensor};

/// Key of the experts in `adapter_config.json`: the options of each.
pub(crate) const EXPERTS: &str = "experts";
/// Key of where they came from: name, address, digests.
pub(crate) const SOURCES: &str = "expert_sources";

/// A router of options `C` over experts.
#[derive(Clone, Debug)]
pub(crate) struct Mixture<C> {
    pub(crate) own: C,
    pub(crate) experts: Vec<Child>,
    pub(crate) sources: Vec<Source>,
}

impl<C: RouterOptions> Mixture<C> {
    /// # Errors
    /// `METHOD_CONFIG` for experts that cannot be mixed.
    pub(crate) fn new(own: C, experts: Vec<Child>, sources: Vec<Source>) -> Result<Self> {
        compose::validate(&experts).map_err(|error| expert(&error))?;
        for (index, config) in compose::configs(&experts)?.iter().enumerate() {
            let refuse = |why: &str| Err(code::METHOD_CONFIG.error(format!("{EXPERTS}[{index}]: {why}")));
            if config.virtual_tokens() != Virtual::default() {
                return refuse("puts virtual tokens in front of sequences, which a token cannot choose");
            }
            if config.row_tasks().is_some()
                || config.modalities().is_some()
                || config.segments().is_some()
                || config.encodes()
            {
                return refuse("asks more of rows or of its file than a mixture hands on");
            }
            if config.scores() || config.sums(&Plan::default()).is_some() {
                return refuse("is a mixture itself");
            }
        }
        Ok(Self { own, experts, sources })
    }
}

/// An error about `adapters[i]` as one about an expert.
fn expert(error: &Error) -> Error {
    let message = match error.message().strip_prefix("adapters") {
        Some(rest) => format!("{EXPERTS}{rest}"),
        None => error.message().to_owned(),
    };
    error.code().error(message).maybe_hint(error.hint_text().map(str::to_owned))
}

impl<C: RouterOptions> HasCard for Mixture<C> {
    fn card(&self) -> &'static Card {
        C::CARD
    }
}

impl<C: RouterOptions + Serialize> AdapterConfig for Mixture<C> {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = compose::plan(&self.experts, false, model).map_err(|error| expert(&error))?;
        let own = self.own.plan(model, &plan, self.experts.len())?;
        plan.sites.extend(own.sites);
        plan.sites.sort_unstable();
        plan.sites.dedup();
        plan.tensors.splice(0..0, own.tensors);
        plan.notes.extend(own.notes);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = match serde_json::to_value(&self.own) {
            Ok(Value::Object(own)) => own,
            _ => Map::new(),
        };
        let shared = [
            ("pleach_method", json!(C::CARD.name)),
            ("base_model_name_or_path", json!(export.base)),
            ("task_type", json!(model.info().head.task_type())),
            (EXPERTS, json!(self.experts)),
            (SOURCES, json!(self.sources)),
        ];
        fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
        fields.sort_keys();
        fields
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        match compose::owner(&self.experts, tensor) {
            Some(_) => compose::lr_scale(&self.experts, tensor),
            None => self.own.lr_scale(tensor),
        }
    }

    fn row_tasks(&self) -> Option<RowTasks> {
        self.own.row_tasks()
    }

    fn owner(&self, tensor: &PlannedTensor) -> Owner {
        match compose::owner(&self.experts, tensor) {
            Some(_) => Owner::All,
            None => self.own.owner(tensor),
        }
    }

    fn sums(&self, plan: &Plan) -> Option<[usize; 2]> {
        self.own.sums(plan, self.experts.len())
    }

    fn couples(&self) -> bool {
        self.own.couples()
    }

    fn exchanges(&self) -> bool {
        self.own.exchanges()
    }

    fn scores(&self) -> bool {
        self.own.scores()
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        let each = compose::each(&self.experts, parts)?;
        let hooks = each.iter().map(|(config, own)| config.hooks(own)).collect::<Result<_>>()?;
        self.own.hooks(parts, hooks)
    }

    #[cfg(feature = "torch")]
    fn score(&self, parts: &crate::adapter::Parts<'_>, pass: &pleach_nn::ScoredPass<'_>, hidden: &tch::Tensor) {
        self.own.score(parts, self.experts.len(), pass, hidden);
    }

    #[cfg(feature = "torch")]
    fn batch_loss(&self, sums: &tch::Tensor) -> Option<tch::Tensor> {
        self.own.batch_loss(sums)
    }

    fn routing(&self, plan: &Plan, sums: &[f64]) -> Option<crate::adapter::Routing> {
        self.own.routing(plan, &self.experts.iter().map(|child| child.name.clone()).collect::<Vec<_>>(), sums)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        compose::initial(&self.experts, tensor, base, key).map_err(|error| expert(&error))
    }

    /// The experts with the digests of what they are now.
    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &crate::adapter::Parts<'_>) -> Result<Map<String, Value>> {
        let mut sources = self.sources.clone();
        for (source, (_, own)) in sources.iter_mut().zip(compose::each(&self.experts, parts)?) {
            source.sha256 = digest(&own)?;
        }
        Ok(Map::from_iter([(SOURCES.to_owned(), json!(sources))]))
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &crate::adapter::Parts<'_>) -> Option<tch::Tensor> {
        compose::regulariser(&self.experts, parts)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::adapter::Parts<'_>, step: crate::adapter::StepInfo) -> Result<()> {
        compose::after_step(&self.experts, parts, step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        compose::exported(&self.experts, parts)
    }
}

/// sha256 over names, shapes and values of an expert's tensors.
#[cfg(feature = "torch")]
fn digest(own: &crate::adapter::Parts<'_>) -> Result<String> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for tensor in own.plan.tensors.iter().filter(|tensor| tensor.in_file()) {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        tensor.shape.iter().for_each(|size| hash.update((*size as u64).to_le_bytes()));
        hash.update(pleach_nn::to_le_bytes(own.get(&tensor.name)?).bytes);
    }
    Ok(hex::encode(hash.finalize()))
}

/// The experts of an `adapter_config.json`, and where they came from.
///
/// # Errors
/// `ADAPTER_FORMAT` when they are not there.
pub(crate) fn read(config: &Map<String, Value>) -> Result<(Vec<Child>, Vec<Source>)> {
    let bad = |what: &str| code::ADAPTER_FORMAT.error(format!("adapter_config.json: {what} cannot be read"));
    let experts = config.get(EXPERTS).cloned().unwrap_or_default();
    let experts: Vec<Child> = serde_json::from_value(experts).map_err(|error| bad(EXPERTS).caused_by(error))?;
    let sources = config.get(SOURCES).cloned().unwrap_or_else(|| json!([]));
    let sources = serde_json::from_value(sources).map_err(|error| bad(SOURCES).caused_by(error))?;
    Ok((experts.into_iter().map(Child::read).collect(), sources))
}
