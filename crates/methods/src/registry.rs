//! All methods of all kinds, and one by name.

use pleach_base::{Result, code, suggest};
use pleach_spec::MethodSchemas;
use schemars::Schema;
use serde_json::{Map, Value};

use crate::adapter::{self, AdapterConfig};
use crate::around::Around;
use crate::card::{Card, MethodKind};
use crate::router::{self, RouterConfig};
use crate::{compress, strategy};

/// A method: its card, its options, and the way from options to a configuration.
pub trait Method: std::marker::Sync {
    /// What it is.
    fn card(&self) -> &'static Card;

    /// Options that make sense on a tiny model, as JSON: what the conformance tests run.
    fn example(&self) -> &'static str;

    /// JSON schema of its options.
    fn schema(&self) -> Schema;

    /// Types the options of a job file. `at` is the place of the section, for errors. A method that stands around
    /// adapters does so here around the one of its tests.
    ///
    /// # Errors
    /// `UNKNOWN_KEY` with the nearest option, `METHOD_CONFIG` naming the option and what is wrong with it.
    fn parse(&self, options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>>;

    /// The same of a method that stands around adapters; `None` for all others, adapters among them.
    ///
    /// # Errors
    /// As [`Method::parse`].
    fn around(&self, _options: &Map<String, Value>, _at: &str) -> Result<Option<Box<dyn Around>>> {
        Ok(None)
    }

    /// For a method that stands around adapters: the adapter of its tests, by method and options as JSON.
    fn inner(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// The same of a router; `None` for all others.
    ///
    /// # Errors
    /// As [`Method::parse`].
    fn router(&self, _options: &Map<String, Value>, _at: &str) -> Result<Option<Box<dyn RouterConfig>>> {
        Ok(None)
    }

    /// Types an `adapter_config.json`: the same options, beside fields that say nothing about the method.
    ///
    /// # Errors
    /// As [`Method::parse`].
    fn import(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>>;

    /// [`Method::import`] for an adapter that is made new with these options, not read.
    ///
    /// # Errors
    /// As [`Method::parse`].
    fn made_new(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>>;
}

/// The kinds, in the order in which they are listed.
#[must_use]
pub fn kinds() -> &'static [(MethodKind, &'static [&'static dyn Method])] {
    static KINDS: &[(MethodKind, &[&dyn Method])] = &[
        (MethodKind::Adapter, adapter::METHODS),
        (MethodKind::Router, router::METHODS),
        (MethodKind::Strategy, strategy::METHODS),
        (MethodKind::Compress, compress::METHODS),
    ];
    KINDS
}

/// All methods.
pub fn methods() -> impl Iterator<Item = &'static dyn Method> {
    kinds().iter().flat_map(|(_, methods)| methods.iter().copied())
}

/// The method of this kind and name.
///
/// # Errors
/// `METHOD_UNKNOWN` with the nearest.
pub fn find(kind: MethodKind, name: &str) -> Result<&'static dyn Method> {
    let of_kind = || methods().filter(move |method| method.card().kind == kind).map(|method| method.card().name);
    let found = methods().find(|method| method.card().kind == kind && method.card().name == name);
    found.ok_or_else(|| {
        let known: Vec<_> = of_kind().collect();
        let hint = match known.as_slice() {
            [] => format!("this build has no {kind} methods"),
            _ => suggest::did_you_mean(name, known),
        };
        code::METHOD_UNKNOWN.error(format!("no {kind} method is called `{name}`")).hint(hint)
    })
}

/// JSON schemas of all methods, by kind and name, to be joined with that of the job file.
#[must_use]
pub fn schemas() -> MethodSchemas {
    let mut all = MethodSchemas::new();
    for method in methods() {
        let Card { name, kind, .. } = method.card();
        all.entry(kind.to_string()).or_default().insert((*name).to_owned(), method.schema().to_value());
    }
    all
}
