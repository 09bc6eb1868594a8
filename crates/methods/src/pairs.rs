//! Which methods work on which families of backbones: each is planned with its example options on a tiny model.

use pleach_base::{Result, ResultExt, code};
use pleach_nn::{HeadOptions, ModelDir, configure, families};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::adapter::AdapterConfig;
use crate::card::MethodKind;
use crate::registry::{Method, methods};

/// An adapter method and a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Name of the method.
    pub method: &'static str,
    /// Name of the family.
    pub family: &'static str,
    /// Why the plan refuses them together; `None` when they work.
    pub refused: Option<String>,
}

/// All pairs, by family and method.
///
/// # Errors
/// `INTERNAL` when a family's tiny configuration or a method's example options are not usable: a defect.
pub fn pairs() -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for family in families() {
        let config = parsed(family.tiny(), family.name())?;
        let model = configure(&ModelDir::of_config(config), &HeadOptions::default())?;
        for method in methods().filter(|method| method.card().kind == MethodKind::Adapter) {
            let planned = example(method)?.plan(&*model);
            let refused = planned.err().map(|error| error.message().to_owned());
            pairs.push(Pair { method: method.card().name, family: family.name(), refused });
        }
    }
    Ok(pairs)
}

/// The method with its example options.
fn example(method: &dyn Method) -> Result<Box<dyn AdapterConfig>> {
    let name = method.card().name;
    method.parse(&parsed(method.example(), name)?, name)
}

fn parsed(text: &str, whose: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).or_code(code::INTERNAL, || format!("the example of {whose} is no JSON object"))
}
