//! One adapter of a composition.

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adapter::AdapterConfig;
use crate::card::MethodKind;
use crate::registry::find;

/// One adapter of a composition: a name, a method, and the method's options beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Child {
    /// Its name, in front of the names of its tensors.
    pub name: String,
    /// Its method.
    pub method: String,
    /// A local folder of a saved adapter of this method with these options, of this build, PEFT or AdapterHub, to begin
    /// with. Every worker reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Do not train it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// The method's options.
    #[serde(flatten)]
    pub options: Map<String, Value>,
    /// Whether the options come from a saved adapter.
    #[serde(skip)]
    pub(crate) saved: bool,
}

impl Child {
    /// Its configuration. `index` is its place, for errors.
    ///
    /// # Errors
    /// `METHOD_UNKNOWN`, `UNKNOWN_KEY`, `METHOD_CONFIG`, with the place.
    pub(crate) fn config(&self, index: usize) -> Result<Box<dyn AdapterConfig>> {
        let at = format!("adapters[{index}]");
        let method = find(MethodKind::Adapter, &self.method).map_err(|error| error.at(format!("{at}.method")))?;
        if self.saved { method.import(&self.options) } else { method.parse(&self.options, &at) }
    }

    /// One that is not trained.
    pub(crate) fn frozen(name: &str, method: &str, init_from: Option<String>, options: Map<String, Value>) -> Self {
        let (name, method) = (name.to_owned(), method.to_owned());
        Self { name, method, init_from, frozen: Some(true), options, saved: false }
    }

    /// The same, read from a saved adapter: its values are in the file, not elsewhere.
    pub(crate) fn read(self) -> Self {
        Self { saved: true, init_from: None, ..self }
    }
}
