//! Adapters: trained on a frozen backbone, saved in PEFT's layout. One file a method; a new one is one word in the
//! registry below.

#[cfg(feature = "torch")]
mod built;
pub mod common;
pub(crate) mod saved;

use std::fmt::Debug;
use std::marker::PhantomData;

use pleach_base::Result;
use pleach_nn::BackboneConfig;
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[cfg(feature = "torch")]
pub use built::{Adapter, SiteMethod};

use crate::card::Card;
use crate::options::{Later, typed, under};
use crate::plan::Plan;
use crate::registry::Method;

/// Declares the files of this folder and their list.
macro_rules! registry {
    ($($method:ident),* $(,)?) => {
        $(pub mod $method;)*
        pub(crate) static METHODS: &[&dyn Method] = &[$(&Typed::<$method::Config>::NEW),*];
    };
}

registry! { lora }

/// The options of one method, typed: what its file implements.
pub trait Options: AdapterConfig + DeserializeOwned + JsonSchema + 'static {
    /// What the method is.
    const CARD: &'static Card;

    /// Options of PEFT's that this build does not have.
    const LATER: &'static [Later] = &[];

    /// Refuses values that no model could use.
    ///
    /// # Errors
    /// `METHOD_CONFIG`; the message begins with the option's name.
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// What an `adapter_config.json` says beside the method's own fields.
#[derive(Clone, Debug)]
pub struct Export<'a> {
    /// `base_model_name_or_path`.
    pub base: &'a str,
}

/// A method's configuration: plans on a model, and with tensors makes hooks.
pub trait AdapterConfig: Debug + Send + std::marker::Sync {
    /// What the method is.
    fn card(&self) -> &'static Card;

    /// Which sites, which tensors.
    ///
    /// # Errors
    /// `TARGET_NOTHING` when nothing is selected, `METHOD_CONFIG` for options that this model cannot have.
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan>;

    /// `adapter_config.json`, keys in order: PEFT's fields when PEFT knows the method.
    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value>;

    /// The hooks over these parameters, which are the plan's. `key` is that of the task, the root of all draws.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        plan: &Plan,
        params: &pleach_nn::ParamTree,
        key: pleach_base::rng::Key,
    ) -> Result<std::collections::BTreeMap<pleach_nn::SiteId, Box<dyn SiteMethod>>>;
}

/// The registry entry of a method with options `C`.
struct Typed<C>(PhantomData<fn() -> C>);

impl<C: Options> Typed<C> {
    const NEW: Self = Self(PhantomData);

    fn checked(options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>> {
        let config: C = typed(options, at, C::LATER)?;
        config.validate().map_err(|error| under(&error, at))?;
        Ok(Box::new(config))
    }
}

/// Fields of `adapter_config.json` that say nothing about the method's options.
const ABOUT: &[&str] = &[
    "peft_type",
    "peft_version",
    "base_model_name_or_path",
    "task_type",
    "inference_mode",
    "revision",
    "auto_mapping",
];

impl<C: Options> Method for Typed<C> {
    fn card(&self) -> &'static Card {
        C::CARD
    }

    fn schema(&self) -> Schema {
        schema_for!(C)
    }

    fn parse(&self, options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>> {
        Self::checked(options, at)
    }

    fn import(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        let options = config.iter().filter(|(key, _)| !ABOUT.contains(&key.as_str()));
        Self::checked(&options.map(|(key, value)| (key.clone(), value.clone())).collect(), "adapter_config.json")
    }
}
