//! What compositions share: adapters of any method as options of another, their plans as one, and everything that a
//! method is asked for passed on to the adapter that it is about.
//!
//! Names of an adapter's tensors get its own name in front, `a.base_model.model...`, so that several of one method can
//! stand beside each other. Modules that are trained whole belong to the composition and keep their names.

mod child;
#[cfg(feature = "torch")]
mod run;

use std::collections::BTreeSet;

use pleach_base::{Error, Result, code};
use pleach_nn::{BackboneConfig, Site};

pub use child::Child;
#[cfg(feature = "torch")]
pub(crate) use run::{Fuser, Join, after_step, each, exported, hooks, initial, regulariser};

use super::AdapterConfig;
use super::{Passes, Virtual};
use crate::plan::{Keep, Plan, PlannedTensor};

/// Checks names and options of adapters.
///
/// # Errors
/// `METHOD_CONFIG`, or what an adapter's own method says; the message begins with its place.
pub(crate) fn validate(children: &[Child]) -> Result<()> {
    if children.is_empty() {
        return Err(refuse("adapters", "there is none"));
    }
    let mut seen = BTreeSet::new();
    let mut fronts = 0;
    for (index, child) in children.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if child.name.is_empty() || !child.name.chars().all(plain) {
            return Err(refuse(&format!("adapters[{index}].name"), "must be of letters, digits, `_` and `-`"));
        }
        if !seen.insert(&child.name) {
            return Err(refuse(&format!("adapters[{index}].name"), &format!("`{}` is taken", child.name)));
        }
        let config = child.config(index)?;
        fronts += usize::from(config.virtual_tokens() != Virtual::default());
        if child.frozen != Some(true) && sets_the_course(config.as_ref()) {
            let why = "sets the course of its own training, which adapters of a composition share; set `frozen: true`";
            return Err(refuse(&format!("adapters[{index}].method"), why));
        }
    }
    if fronts > 1 {
        return Err(refuse("adapters", "only one of them can put virtual tokens in front"));
    }
    Ok(())
}

/// Whether a method asks for phases, passes, masks or updates of its own.
pub(crate) fn sets_the_course(config: &dyn AdapterConfig) -> bool {
    const STEPS: u64 = 1 << 20;
    let several = config.phases(STEPS).len() > 1 || config.passes() != Passes::default();
    several || config.partial() || config.shapes_gradients() || config.row_tasks().is_some()
}

fn refuse(field: &str, why: &str) -> Error {
    code::METHOD_CONFIG.error(format!("{field}: {why}"))
}

/// Its adapters with their configurations.
///
/// # Errors
/// As [`validate`].
pub(crate) fn configs(children: &[Child]) -> Result<Vec<Box<dyn AdapterConfig>>> {
    children.iter().enumerate().map(|(index, child)| child.config(index)).collect()
}

/// The plans of all adapters as one. `frozen`: whether adapters that do not say so themselves are not trained.
///
/// # Errors
/// Those of the adapters' plans; `METHOD_CONFIG` when one acts on a module that another trains whole.
pub(crate) fn plan(children: &[Child], frozen: bool, model: &dyn BackboneConfig) -> Result<Plan> {
    let mut whole = Plan::default();
    for (index, (child, config)) in children.iter().zip(configs(children)?).enumerate() {
        let mut own =
            config.plan(model).map_err(|error| crate::options::under(&error, &format!("adapters[{index}]")))?;
        let saved = own.saved.clone();
        for tensor in &mut own.tensors {
            if saved.contains(&tensor.site) {
                continue;
            }
            tensor.name = format!("{}.{}", child.name, tensor.name);
            if child.init_from.is_some() && tensor.in_file() {
                tensor.init = pleach_nn::Init::Derived;
            }
            if child.frozen.unwrap_or(frozen) && tensor.keep == Keep::Trained {
                tensor.keep = Keep::Saved;
            }
        }
        whole
            .begins
            .extend(child.init_from.iter().map(|folder| (format!("adapters[{index}].init_from"), folder.into())));
        whole.notes.extend(own.notes.iter().map(|note| format!("{}: {note}", child.name)));
        whole.sites.extend(&own.sites);
        // One trained module serves all, whatever each method calls it.
        let fresh = |tensor: &&PlannedTensor| match saved.contains(&tensor.site) {
            true => whole.part(tensor.site, tensor.part).is_none(),
            false => true,
        };
        let (of_modules, mine): (Vec<_>, Vec<_>) =
            own.tensors.iter().filter(fresh).cloned().partition(|tensor| saved.contains(&tensor.site));
        whole.tensors.extend(mine);
        whole.tensors.extend(of_modules);
        whole.saved.extend(saved);
        whole.children.push(own);
    }
    whole.sites.sort_unstable();
    whole.sites.dedup();
    whole.saved.sort_unstable();
    whole.saved.dedup();
    // Modules that are trained whole come last, as those of every method do.
    let saved = whole.saved.clone();
    whole.tensors.sort_by_key(|tensor| saved.contains(&tensor.site));
    match whole.sites.iter().find(|site| whole.saved.contains(site)) {
        Some(site) => {
            let path = &model.sites()[*site].path;
            Err(refuse("adapters", &format!("one acts on `{path}`, another trains it whole")))
        }
        None => Ok(whole),
    }
}

/// The adapter that a tensor belongs to, with the tensor as that adapter planned it.
pub(crate) fn owner(children: &[Child], tensor: &PlannedTensor) -> Option<(usize, PlannedTensor)> {
    let (name, rest) = tensor.name.split_once('.')?;
    let index = children.iter().position(|child| child.name == name)?;
    Some((index, PlannedTensor { name: rest.to_owned(), ..tensor.clone() }))
}

/// Virtual tokens of the adapter that has any.
pub(crate) fn virtual_tokens(children: &[Child]) -> Virtual {
    let of = |config: Box<dyn AdapterConfig>| config.virtual_tokens();
    let mut all = configs(children).into_iter().flatten().map(of);
    all.find(|tokens| *tokens != Virtual::default()).unwrap_or_default()
}

/// The learning rate that its adapter has for a tensor.
pub(crate) fn lr_scale(children: &[Child], tensor: &PlannedTensor) -> f64 {
    let own = owner(children, tensor);
    let scale = own.and_then(|(index, own)| Some(children[index].config(index).ok()?.lr_scale(&own)));
    scale.unwrap_or(1.0)
}

/// Name of a gate's tensors.
pub(crate) fn gate_name(child: &str, site: &Site, part: &str) -> String {
    format!("{child}.base_model.model.{}.{part}", site.path.replace('@', "."))
}

/// What every composition passes on to its adapters in the same way.
macro_rules! passed_on {
    () => {
        fn adapter_config(
            &self,
            model: &dyn ::pleach_nn::BackboneConfig,
            _: &$crate::plan::Plan,
            export: &$crate::adapter::Export<'_>,
        ) -> ::serde_json::Map<String, ::serde_json::Value> {
            $crate::adapter::common::own_config(self, model, export)
        }

        fn virtual_tokens(&self) -> $crate::adapter::Virtual {
            $crate::adapter::compose::virtual_tokens(&self.adapters)
        }

        fn lr_scale(&self, tensor: &$crate::plan::PlannedTensor) -> f64 {
            $crate::adapter::compose::lr_scale(&self.adapters, tensor)
        }

        #[cfg(feature = "torch")]
        fn after_step(
            &self,
            parts: &$crate::adapter::Parts<'_>,
            step: $crate::adapter::StepInfo,
        ) -> ::pleach_base::Result<()> {
            $crate::adapter::compose::after_step(&self.adapters, parts, step)
        }

        #[cfg(feature = "torch")]
        fn exported(
            &self,
            parts: &$crate::adapter::Parts<'_>,
        ) -> ::pleach_base::Result<Option<Vec<(String, ::tch::Tensor)>>> {
            $crate::adapter::compose::exported(&self.adapters, parts)
        }
    };
}
pub(crate) use passed_on;

/// The same for compositions without tensors that have to be worked out, and without a term of the loss.
macro_rules! begins_and_regularises {
    () => {
        #[cfg(feature = "torch")]
        fn regulariser(&self, parts: &$crate::adapter::Parts<'_>) -> Option<::tch::Tensor> {
            $crate::adapter::compose::regulariser(&self.adapters, parts)
        }

        #[cfg(feature = "torch")]
        fn initial(
            &self,
            tensor: &$crate::plan::PlannedTensor,
            base: &dyn ::pleach_nn::Backbone,
            key: ::pleach_base::rng::Key,
        ) -> ::pleach_base::Result<::tch::Tensor> {
            $crate::adapter::compose::initial(&self.adapters, tensor, base, key)
        }
    };
}
pub(crate) use begins_and_regularises;
