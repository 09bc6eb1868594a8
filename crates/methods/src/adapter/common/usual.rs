//! What PEFT's tuners of linear maps have alike: where they stand, and the parts of their configuration that only join
//! what is theirs to what is shared.

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Role, Site};

use super::{Bias, Layers, Selection, Targets, biases, query_value};
use crate::plan::{Plan, PlannedTensor};

/// The sites of linear maps, the output head among them.
pub(crate) const LINEAR: &[Role] = &[Role::Linear, Role::Head];

/// Those and convolutions.
pub(crate) const LINEAR_AND_CONV: &[Role] = &[Role::Linear, Role::Head, Role::Conv];

/// The plan of a method of linear maps whose usual modules are those of LoRA: `tensors` for every selected site, then
/// the biases that are trained too.
///
/// # Errors
/// As [`Selection::plan`] and [`biases::plan`].
pub(crate) fn linear_plan<T: IntoIterator<Item = PlannedTensor>>(
    targets: &Targets,
    layers: &Layers,
    bias: Bias,
    model: &dyn BackboneConfig,
    tensors: impl FnMut(&Site) -> Result<T>,
) -> Result<Plan> {
    plan_at(LINEAR, targets, layers, bias, model, tensors)
}

/// The same for a method that stands at sites of these roles.
///
/// # Errors
/// As [`linear_plan`].
pub(crate) fn plan_at<T: IntoIterator<Item = PlannedTensor>>(
    roles: &[Role],
    targets: &Targets,
    layers: &Layers,
    bias: Bias,
    model: &dyn BackboneConfig,
    tensors: impl FnMut(&Site) -> Result<T>,
) -> Result<Plan> {
    let selection = Selection { targets, layers: Some(layers), roles, default: query_value };
    let mut plan = selection.plan(model, tensors)?;
    biases::plan(bias, model, &mut plan)?;
    Ok(plan)
}

/// Declares a method's options with their defaults: `field: Type = default`.
macro_rules! options {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$field_about:meta])* $field:ident: $kind:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default)]
        #[schemars(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_about])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}
pub(crate) use options;

/// Within `impl AdapterConfig for Config`: the file, written by the named function over the field `targets`, and
/// the hooks of the module `run`, with biases around them; `initial` too where it is named.
macro_rules! peft_tuner {
    ($write:ident $(, $initial:ident)?) => {
        fn adapter_config(
            &self,
            model: &dyn pleach_nn::BackboneConfig,
            plan: &$crate::plan::Plan,
            export: &$crate::adapter::Export<'_>,
        ) -> serde_json::Map<String, serde_json::Value> {
            $crate::adapter::common::$write(self, Some(&self.targets), model, plan, export)
        }

        #[cfg(feature = "torch")]
        fn hooks(&self, parts: &$crate::adapter::Parts<'_>) -> pleach_base::Result<$crate::adapter::Hooks> {
            let mut hooks = run::hooks(self, parts)?;
            $crate::adapter::common::biases::wrap(parts, &mut hooks)?;
            Ok(hooks)
        }

        $(
            #[cfg(feature = "torch")]
            fn $initial(
                &self,
                tensor: &$crate::plan::PlannedTensor,
                base: &dyn pleach_nn::Backbone,
                key: pleach_base::rng::Key,
            ) -> pleach_base::Result<tch::Tensor> {
                run::$initial(self, tensor, base, key)
            }
        )?
    };
}
pub(crate) use peft_tuner;
