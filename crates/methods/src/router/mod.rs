//! Routers: methods that choose among adapters, `spec.router`. One file a method; a new one is one word in the registry
//! below.
//!
//! A router with a list of `experts` (tasks of the job, folders, published steps) learns in a task of its own. Without
//! one it stands around the adapter of every task, which it has several copies of. Either way a `Mixture` is trained: an
//! adapter like any other.

#[cfg(feature = "torch")]
pub(crate) mod dispatch;
#[cfg(feature = "torch")]
mod exchange;
mod experts;
#[cfg(feature = "torch")]
pub(crate) mod gating;
pub(crate) mod losses;
mod mixture;
mod options;
mod places;
#[cfg(feature = "torch")]
mod routed;
mod stats;

use std::fmt::Debug;
use std::marker::PhantomData;

use pleach_base::Result;
use pleach_nn::BackboneConfig;
use pleach_spec::job::RowTasks;
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use experts::{Expert, fetched, is_remote};
pub use options::{Experts, Train};

use crate::adapter::compose::Child;
use crate::adapter::{ABOUT, AdapterConfig, Owner, Routing};
use crate::card::Card;
use crate::options::{typed, under};
use crate::plan::{Plan, PlannedTensor};
use crate::registry::Method;
use mixture::Mixture;

/// Declares the files of this folder and their list.
macro_rules! registry {
    ($($method:ident),* $(,)?) => {
        $(pub mod $method;)*
        pub(crate) static METHODS: &[&dyn Method] = &[$(&Typed::<$method::Config>::NEW),*];
    };
}

registry! {
    loramoe,
    mhr,
    mixlora,
    xlora,
}

/// Where an expert came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name in the mixture.
    pub name: String,
    /// Its method.
    pub method: String,
    /// The folder or address as the job named it, `task NAME` for a task of the job, `copy` for a new adapter.
    pub from: String,
    /// sha256 of the `adapter_model.safetensors` that it began with, hex; empty where there was none.
    #[serde(default)]
    pub file_sha256: String,
    /// sha256 of its tensors as they are now (names, shapes and values in the plan's order), hex.
    #[serde(default)]
    pub sha256: String,
}

/// The options of a router, typed.
pub trait RouterConfig: Debug + Send + Sync {
    /// The experts that were asked for.
    fn asked(&self) -> &Experts;

    /// The adapter that is trained: this router over `experts`.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for experts that cannot be mixed; the message begins with an option's name.
    fn combine(&self, experts: Vec<Expert>) -> Result<Box<dyn AdapterConfig>>;
}

/// What the file of a router implements.
pub trait RouterOptions: Debug + Clone + Send + Sync + Serialize + DeserializeOwned + JsonSchema + 'static {
    /// What the method is.
    const CARD: &'static Card;

    /// Options for tests on tiny models, as JSON, where the defaults do not do.
    const EXAMPLE: &'static str = "{}";

    /// The adapter that it has copies of in tests: method, and options as JSON.
    const INNER: (&'static str, &'static str) = ("lora", r#"{"r": 2, "target_modules": "all-linear"}"#);

    /// The experts that were asked for.
    fn experts(&self) -> &Experts;

    /// Whether experts of the list stay as they are.
    fn frozen(&self) -> bool {
        self.experts().frozen()
    }

    /// Refuses values that no model could use.
    ///
    /// # Errors
    /// `METHOD_CONFIG`; the message begins with the option's name.
    fn validate(&self) -> Result<()>;

    /// The router's own tensors and sites. `plan` is that of its experts, of which there are `experts`.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for experts at sites where it cannot choose.
    fn plan(&self, model: &dyn BackboneConfig, plan: &Plan, experts: usize) -> Result<Plan>;

    /// As [`AdapterConfig::sums`].
    fn sums(&self, _plan: &Plan, _experts: usize) -> Option<[usize; 2]> {
        None
    }

    /// As [`AdapterConfig::couples`].
    fn couples(&self) -> bool {
        false
    }

    /// As [`AdapterConfig::exchanges`].
    fn exchanges(&self) -> bool {
        false
    }

    /// As [`AdapterConfig::scores`].
    fn scores(&self) -> bool {
        false
    }

    /// As [`AdapterConfig::routing`].
    fn routing(&self, _plan: &Plan, _experts: &[String], _sums: &[f64]) -> Option<Routing> {
        None
    }

    /// As [`AdapterConfig::row_tasks`].
    fn row_tasks(&self) -> Option<RowTasks> {
        None
    }

    /// As [`AdapterConfig::owner`], of the router's own tensors.
    fn owner(&self, _tensor: &PlannedTensor) -> Owner {
        Owner::All
    }

    /// As [`AdapterConfig::lr_scale`], of the router's own tensors.
    fn lr_scale(&self, _tensor: &PlannedTensor) -> f64 {
        1.0
    }

    /// The hooks; `experts` are those of each expert.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: Vec<crate::adapter::Hooks>,
    ) -> Result<crate::adapter::Hooks>;

    /// As [`AdapterConfig::batch_loss`].
    #[cfg(feature = "torch")]
    fn batch_loss(&self, _sums: &tch::Tensor) -> Option<tch::Tensor> {
        None
    }

    /// As [`AdapterConfig::score`].
    #[cfg(feature = "torch")]
    fn score(
        &self,
        _parts: &crate::adapter::Parts<'_>,
        _experts: usize,
        _pass: &pleach_nn::ScoredPass<'_>,
        _hidden: &tch::Tensor,
    ) {
    }
}

impl<C: RouterOptions> RouterConfig for C {
    fn asked(&self) -> &Experts {
        self.experts()
    }

    fn combine(&self, experts: Vec<Expert>) -> Result<Box<dyn AdapterConfig>> {
        let frozen = self.experts().experts.is_some() && self.frozen();
        let (mut children, mut sources) = (Vec::new(), Vec::new());
        for Expert { child, source } in experts {
            children.push(Child { frozen: frozen.then_some(true), ..child });
            sources.push(source);
        }
        Ok(Box::new(Mixture::new(self.clone(), children, sources)?))
    }
}

/// The registry entry of a router with options `C`.
struct Typed<C>(PhantomData<fn() -> C>);

impl<C: RouterOptions> Typed<C> {
    const NEW: Self = Self(PhantomData);

    fn checked(options: &Map<String, Value>, at: &str) -> Result<C> {
        let config: C = typed(options, at, &[])?;
        config.experts().validate().and_then(|()| config.validate()).map_err(|error| under(&error, at))?;
        Ok(config)
    }

    fn in_file(config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        const FILE: &str = "adapter_config.json";
        let about = |key: &String| {
            ABOUT.contains(&key.as_str()) || [mixture::EXPERTS, mixture::SOURCES].contains(&key.as_str())
        };
        let own = config.iter().filter(|(key, _)| !about(key));
        let own: C = typed(&own.map(|(key, value)| (key.clone(), value.clone())).collect(), FILE, &[])?;
        own.validate().map_err(|error| under(&error, FILE))?;
        let (experts, sources) = mixture::read(config)?;
        Ok(Box::new(Mixture::new(own, experts, sources).map_err(|error| under(&error, FILE))?))
    }
}

impl<C: RouterOptions> Method for Typed<C> {
    fn card(&self) -> &'static Card {
        C::CARD
    }

    fn example(&self) -> &'static str {
        C::EXAMPLE
    }

    fn schema(&self) -> Schema {
        schema_for!(C)
    }

    /// Around copies of the adapter of the tests.
    fn parse(&self, options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>> {
        let own = Self::checked(options, at)?;
        let (method, inner) = C::INNER;
        let inner: Map<String, Value> = serde_json::from_str(inner).unwrap_or_default();
        let experts = Expert::copies(method, &inner, own.experts().copies());
        RouterConfig::combine(&own, experts).map_err(|error| under(&error, at))
    }

    fn router(&self, options: &Map<String, Value>, at: &str) -> Result<Option<Box<dyn RouterConfig>>> {
        Ok(Some(Box::new(Self::checked(options, at)?)))
    }

    fn import(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        Self::in_file(config)
    }

    fn made_new(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        Self::in_file(config)
    }
}

/// The name of the copy with this number.
fn copy_name(index: usize) -> String {
    format!("e{index}")
}

/// A new adapter of a method as an expert.
fn new_child(name: String, method: &str, options: &Map<String, Value>) -> Child {
    Child { name, method: method.to_owned(), init_from: None, frozen: None, options: options.clone(), saved: false }
}
