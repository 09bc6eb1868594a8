//! Fields of `config.json`, with errors that name them.

use pleach_base::{Error, Result, code};
use serde_json::{Map, Value};

/// A reader of `config.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Config<'a> {
    /// A field that is there and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn size(&self, field: &str) -> Result<usize> {
        self.opt_size(field)?.ok_or_else(|| bad(field, "is missing"))
    }

    pub(crate) fn opt_size(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        number.map(Some).ok_or_else(|| bad(field, &format!("must be a positive number, not {value}")))
    }

    /// A number that may be zero.
    pub(crate) fn opt_count(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| bad(field, &format!("must be a number from 0, not {value}")))
    }

    /// Refuses a flag whose other value is not built.
    pub(crate) fn only(&self, field: &str, built: bool) -> Result<()> {
        if self.flag(field, built)? == built {
            return Ok(());
        }
        Err(bad(field, &format!("must be {built}: the other is not built")))
    }

    /// A list of texts.
    pub(crate) fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| bad(field, &format!("must be a list of texts, not {value}")))
    }

    /// A positive number, if there is one.
    pub(crate) fn opt_float(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| *number > 0.0) {
                None => Err(bad(field, &format!("must be a positive number, not {value}"))),
                number => Ok(number),
            },
        }
    }

    /// A list of numbers.
    pub(crate) fn floats(&self, field: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| bad(field, &format!("must be a list of numbers, not {value}")))
    }

    pub(crate) fn float(&self, field: &str, default: f64) -> Result<f64> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| bad(field, &format!("must be a number, not {value}"))),
        }
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| bad(field, &format!("must be true or false, not {value}"))),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| bad(field, &format!("must be a text, not {value}"))),
        }
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(value) => Err(bad(field, &format!("must be an object, not {value}"))),
        }
    }

    /// The first class of `architectures`.
    pub(crate) fn architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.as_array()?.first()?.as_str()
    }

    /// Classes as transformers counts them: `id2label`, else `num_labels`, else two.
    pub(crate) fn num_labels(&self) -> Result<usize> {
        if let Some(labels) = self.get("id2label").and_then(Value::as_object).filter(|labels| !labels.is_empty()) {
            return Ok(labels.len());
        }
        Ok(self.opt_size("num_labels")?.unwrap_or(2))
    }

    pub(crate) fn pad_token(&self) -> Option<u32> {
        self.get("pad_token_id")?.as_u64().and_then(|id| u32::try_from(id).ok())
    }
}

pub(crate) fn bad(field: &str, why: &str) -> Error {
    code::MODEL_CONFIG.error(format!("config.json: {field} {why}"))
}
