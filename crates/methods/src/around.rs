//! Methods that stand around the adapters of a job: training recipes (`spec.strategy`) and compressions
//! (`spec.compress`). Each makes of every task's adapter another one, which is trained in its stead.

use std::fmt::Debug;
use std::marker::PhantomData;

use pleach_base::Result;
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::adapter::{ABOUT, AdapterConfig};
use crate::card::{Card, MethodKind};
use crate::options::{typed, under};
use crate::registry::{Method, find};

/// The options of such a method, typed.
pub trait Around: Debug + Send + Sync {
    /// The adapter that is trained in place of `adapter`.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when the two do not go together; the message begins with an option's name.
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>>;
}

/// What the file of such a method implements.
pub trait AroundOptions: Around + DeserializeOwned + JsonSchema + 'static {
    /// What the method is.
    const CARD: &'static Card;

    /// Options for tests on tiny models, as JSON, where the defaults do not do.
    const EXAMPLE: &'static str = "{}";

    /// The adapter that it stands around in tests: method, and options as JSON.
    const INNER: (&'static str, &'static str) = ("lora", "{}");

    /// Refuses values that no adapter could use.
    ///
    /// # Errors
    /// `METHOD_CONFIG`; the message begins with the option's name.
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// Key of the adapter inside in the `adapter_config.json` of a wrapped one: the fields of its own file.
pub(crate) const INNER: &str = "adapter";

/// The registry entry of a method with options `C`.
pub(crate) struct Typed<C>(PhantomData<fn() -> C>);

impl<C: AroundOptions> Typed<C> {
    pub(crate) const NEW: Self = Self(PhantomData);

    fn checked(options: &Map<String, Value>, at: &str) -> Result<C> {
        let config: C = typed(options, at, &[])?;
        config.validate().map_err(|error| under(&error, at))?;
        Ok(config)
    }

    fn in_file(config: &Map<String, Value>, inside: Result<Box<dyn AdapterConfig>>) -> Result<Box<dyn AdapterConfig>> {
        const FILE: &str = "adapter_config.json";
        let own = config.iter().filter(|(key, _)| !ABOUT.contains(&key.as_str()) && *key != INNER);
        let own = Self::checked(&own.map(|(key, value)| (key.clone(), value.clone())).collect(), FILE)?;
        own.wrap(inside?).map_err(|error| under(&error, FILE))
    }
}

/// The fields of the adapter inside.
fn inner(config: &Map<String, Value>) -> Result<(&'static dyn Method, &Map<String, Value>)> {
    let missing = || pleach_base::code::ADAPTER_FORMAT.error(format!("adapter_config.json: {INNER} is missing"));
    let fields = config.get(INNER).and_then(Value::as_object).ok_or_else(missing)?;
    Ok((crate::import::method_of(fields)?, fields))
}

impl<C: AroundOptions> Method for Typed<C> {
    fn card(&self) -> &'static Card {
        C::CARD
    }

    fn example(&self) -> &'static str {
        C::EXAMPLE
    }

    fn schema(&self) -> Schema {
        schema_for!(C)
    }

    /// Around the adapter of the tests.
    fn parse(&self, options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>> {
        let own = Self::checked(options, at)?;
        let (method, inner) = C::INNER;
        let inner = serde_json::from_str(inner).unwrap_or_default();
        let adapter = find(MethodKind::Adapter, method)?.parse(&inner, at)?;
        own.wrap(adapter).map_err(|error| under(&error, at))
    }

    fn around(&self, options: &Map<String, Value>, at: &str) -> Result<Option<Box<dyn Around>>> {
        Ok(Some(Box::new(Self::checked(options, at)?)))
    }

    fn inner(&self) -> Option<(&'static str, &'static str)> {
        Some(C::INNER)
    }

    fn import(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        let (method, fields) = inner(config)?;
        Self::in_file(config, method.import(fields))
    }

    fn made_new(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        let (method, fields) = inner(config)?;
        Self::in_file(config, method.made_new(fields))
    }
}

/// `adapter_config.json` of a wrapped adapter: the options of what stands around it, and below them the fields that its own
/// file has.
pub(crate) fn wrapped_config<C: AroundOptions + serde::Serialize>(
    options: &C,
    inside: Map<String, Value>,
    model: &dyn pleach_nn::BackboneConfig,
    export: &crate::adapter::Export<'_>,
) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(options) {
        Ok(Value::Object(own)) => own,
        _ => Map::new(),
    };
    let shared = [
        ("pleach_method", Value::from(C::CARD.name)),
        ("base_model_name_or_path", Value::from(export.base)),
        ("task_type", Value::from(model.info().head.task_type())),
        (INNER, Value::Object(inside)),
    ];
    fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
    fields.sort_keys();
    fields
}

/// Declares the files of a kind's folder and their list.
macro_rules! registry {
    ($($method:ident),* $(,)?) => {
        $(pub mod $method;)*
        pub(crate) static METHODS: &[&dyn $crate::registry::Method] =
            &[$(&$crate::around::Typed::<$method::Config>::NEW),*];
    };
}
pub(crate) use registry;
