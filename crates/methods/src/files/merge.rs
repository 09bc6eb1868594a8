//! An adapter folded into its base model, as a model folder that transformers opens.

use std::path::Path;

use pleach_base::Result;
use pleach_nn::{BackboneConfig, HeadKind};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tch::Kind;

use super::Opened;
use super::folder::{copy_companions, new_folder, write_json};
use super::rewrite::Rewrite;
use super::tied::{Changes, changes};

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Written {
    /// Class of the model.
    pub class: String,
    /// Sites whose weights changed.
    pub sites: usize,
    /// Sites that got a tensor of their own, which the base shares: `tie_word_embeddings` is false now.
    pub untied: Vec<String>,
    /// Files of weights, with their sizes.
    pub weights: Vec<(String, u64)>,
    /// Files that were copied.
    pub copied: Vec<String>,
}

/// Writes the model with the adapter folded in into the new folder `to`. Floating-point tensors keep the base's kinds,
/// or all become `kind`.
///
/// # Errors
/// `METHOD_CONFIG` naming the site when the method cannot be merged there, or when sites that share a tensor would
/// differ and the architecture cannot hold them apart; `BAD_VALUE` when `to` is not empty; `IO`.
pub fn merge(opened: &Opened, to: &Path, kind: Option<Kind>) -> Result<Written> {
    let config = opened.backbone.config();
    let merged = opened.adapter.merge(config.sites(), opened.backbone.as_ref())?;
    write(opened, &changes(opened.backbone.as_ref(), &merged)?, merged.len(), to, kind)
}

pub(super) fn write(
    opened: &Opened,
    changes: &Changes,
    sites: usize,
    to: &Path,
    kind: Option<Kind>,
) -> Result<Written> {
    new_folder(to)?;
    let (model, dir) = (opened.backbone.config(), &opened.dir);
    let class_names = is_other_class(model, dir.config());
    let weights = Rewrite { model, dir, changes, kind, class_names }.write(to)?;
    let copied = copy_companions(dir.path(), to)?;
    // Last: a folder without it is no model yet.
    write_json(&to.join("config.json"), &configuration(model, dir.config(), changes, kind))?;
    Ok(Written { class: model.info().class.clone(), sites, untied: changes.untied.clone(), weights, copied })
}

fn is_other_class(model: &dyn BackboneConfig, config: &Map<String, Value>) -> bool {
    let classes = config.get("architectures").and_then(Value::as_array);
    classes.is_some_and(|classes| !classes.iter().any(|class| class.as_str() == Some(&model.info().class)))
}

/// `config.json` of the base with what is true of the new model.
fn configuration(
    model: &dyn BackboneConfig,
    base: &Map<String, Value>,
    changes: &Changes,
    kind: Option<Kind>,
) -> Map<String, Value> {
    let (mut config, info) = (base.clone(), model.info());
    config.insert("architectures".to_owned(), json!([info.class]));
    if !changes.untied.is_empty() {
        config.insert("tie_word_embeddings".to_owned(), json!(false));
    }
    if let Some(kind) = kind {
        let old = config.contains_key("torch_dtype") && !config.contains_key("dtype");
        let key = if old { "torch_dtype" } else { "dtype" };
        config.insert(key.to_owned(), json!(kind_name(kind)));
    }
    if matches!(info.head, HeadKind::SequenceClassification | HeadKind::TokenClassification) {
        let named = base.get("id2label").and_then(Value::as_object).map(Map::len);
        if named.unwrap_or(2) != info.num_labels {
            let labels = (0..info.num_labels).map(|label| (label, format!("LABEL_{label}")));
            let (by_id, by_name): (Map<_, _>, Map<_, _>) =
                labels.map(|(id, name)| ((id.to_string(), json!(name)), (name.clone(), json!(id)))).unzip();
            config.insert("id2label".to_owned(), Value::Object(by_id));
            config.insert("label2id".to_owned(), Value::Object(by_name));
            config.shift_remove("num_labels");
        }
    }
    config
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    }
}
