//! The options with which PEFT's tuners choose modules, and the plan that begins with them.
//!
//! A method flattens [`Targets`] (and [`Layers`], where PEFT's has those two) into its options:
//!
//! ```text
//! #[serde(flatten)]
//! pub targets: Targets,
//! ```
//!
//! With `flatten` the options say `#[schemars(deny_unknown_fields)]` in place of serde's attribute; unknown keys are
//! refused before serde sees them.

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Indices, Modules, Part, Patterns, Role, Site, SiteId, Sites, Target};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{IndicesSchema, ModulesSchema};
use crate::adapter::saved;
use crate::plan::{Plan, PlannedTensor};

/// Which modules are acted on, which are trained whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Targets {
    /// Which modules: names or last parts of paths, a regular expression for the whole path, or `all-linear`; the
    /// method's usual ones when left out.
    #[schemars(with = "Option<ModulesSchema>")]
    pub target_modules: Option<Modules>,
    /// Modules that are left out although they match.
    #[schemars(with = "Option<ModulesSchema>")]
    pub exclude_modules: Option<Modules>,
    /// Modules that are trained and saved whole. Classification adds its head by itself.
    pub modules_to_save: Option<Vec<String>>,
}

/// Which blocks are acted on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Layers {
    /// Numbers of the blocks to act on; all when left out.
    #[schemars(with = "Option<IndicesSchema>")]
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of blocks, when `layers_to_transform` is given and the name is not the usual one.
    #[schemars(with = "Option<ModulesSchema>")]
    pub layers_pattern: Option<Patterns>,
}

/// The options and what the method brings to them.
pub(crate) struct Selection<'a> {
    /// The options.
    pub(crate) targets: &'a Targets,
    /// Those about blocks, if the method has them.
    pub(crate) layers: Option<&'a Layers>,
    /// Roles that the method can act on.
    pub(crate) roles: &'a [Role],
    /// Which sites are meant when `target_modules` is left out.
    pub(crate) default: fn(&Site) -> bool,
}

impl Selection<'_> {
    /// The selected sites in order.
    ///
    /// # Errors
    /// As [`Target::select`].
    pub(crate) fn sites(&self, model: &dyn BackboneConfig) -> Result<Vec<SiteId>> {
        let sites = model.sites();
        let saved = saved::names(self.targets.modules_to_save.as_deref(), model);
        let default;
        let modules = match &self.targets.target_modules {
            Some(modules) => modules,
            None => {
                default = names_of(sites, self.default);
                &default
            }
        };
        let target = Target {
            modules,
            exclude: self.targets.exclude_modules.as_ref(),
            saved: &saved,
            layers: self.layers.and_then(|layers| layers.layers_to_transform.as_ref()),
            pattern: self.layers.and_then(|layers| layers.layers_pattern.as_ref()),
            roles: self.roles,
        };
        target.select(sites)
    }

    /// The plan: for every selected site its `tensors`, then those of modules that are saved whole.
    ///
    /// # Errors
    /// As [`Selection::sites`] and [`saved::plan`]; those of `tensors`.
    pub(crate) fn plan<T: IntoIterator<Item = PlannedTensor>>(
        &self,
        model: &dyn BackboneConfig,
        tensors: impl FnMut(&Site) -> Result<T>,
    ) -> Result<Plan> {
        self.plan_of(model, self.sites(model)?, tensors)
    }

    /// The same for these sites, whoever chose them.
    ///
    /// # Errors
    /// As [`saved::plan`]; those of `tensors`.
    pub(crate) fn plan_of<T: IntoIterator<Item = PlannedTensor>>(
        &self,
        model: &dyn BackboneConfig,
        sites: Vec<SiteId>,
        mut tensors: impl FnMut(&Site) -> Result<T>,
    ) -> Result<Plan> {
        let (saved, whole) = saved::plan(self.targets.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for id in &sites {
            let site = &model.sites()[*id];
            plan.tensors.extend(tensors(site)?);
            if !site.runs {
                plan.notes.push(format!("`{}` is never run with this head: its tensors will not change", site.path));
            }
        }
        plan.tensors.extend(whole);
        plan.sites = sites;
        Ok(plan)
    }
}

impl Targets {
    /// The same with these modules where `target_modules` is left out: for defaults that depend on the family.
    pub(crate) fn or_usual(&self, model: &dyn BackboneConfig, usual: impl Fn(&Site) -> bool) -> Self {
        let modules = self.target_modules.clone().unwrap_or_else(|| names_of(model.sites(), usual));
        Self { target_modules: Some(modules), ..self.clone() }
    }

    /// The fields as PEFT's file has them. Targets that PEFT would have to work out (defaults, `all-linear`) are
    /// written as names.
    pub(super) fn resolve(&self, fields: &mut Map<String, Value>, model: &dyn BackboneConfig, plan: &Plan) {
        let sites: &Sites = model.sites();
        let targets = match &self.target_modules {
            Some(modules) if !is_all_linear(modules) => json!(modules),
            _ => json!(sites.shortest_names(&plan.sites)),
        };
        let saved = saved::names(self.modules_to_save.as_deref(), model);
        fields.insert("target_modules".to_owned(), targets);
        fields.insert("modules_to_save".to_owned(), if saved.is_empty() { Value::Null } else { json!(saved) });
    }
}

fn names_of(sites: &Sites, chosen: impl Fn(&Site) -> bool) -> Modules {
    let chosen: Vec<_> = sites.iter().filter(|site| chosen(site)).map(|site| site.id).collect();
    Modules::List(sites.shortest_names(&chosen))
}

fn is_all_linear(modules: &Modules) -> bool {
    matches!(modules, Modules::Regex(text) if text.eq_ignore_ascii_case("all-linear"))
}

/// Queries and values of attention, or the map that makes both: PEFT's usual targets of LoRA and its kin.
pub(crate) fn query_value(site: &Site) -> bool {
    site.role == Role::Linear && matches!(site.part, Part::Query | Part::Value | Part::Qkv)
}

/// Keys and values of attention, or the map that makes both.
pub(crate) fn key_value(site: &Site) -> bool {
    site.role == Role::Linear && matches!(site.part, Part::Key | Part::Value | Part::Qkv)
}
