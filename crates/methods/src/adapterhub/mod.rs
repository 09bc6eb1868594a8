//! Adapter folders of AdapterHub's library `adapters` (1.3), as its `save_adapter(.., use_safetensors=True)` writes and
//! its `load_adapter(.., use_safetensors=True)` reads: `adapter_config.json`, `adapter.safetensors`, and for
//! classification `head_config.json` and `model_head.safetensors`.
//!
//! Bottleneck adapters, Compacter, invertible adapters and LoRA. Keys name the library's own modules, which differ by
//! family of models: [`keys`] says which families are known.
//!
//! Not here: its `.bin` files, AdapterFusion layers, heads of its `AutoAdapterModel`.

mod config;
#[cfg(feature = "torch")]
mod folder;
mod keys;

pub use config::{configure, describe};
#[cfg(feature = "torch")]
pub use folder::{export, import};
pub use keys::{Key, keys};

use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use serde_json::{Map, Value};

/// The release of the library whose files these are.
pub const VERSION: &str = "adapters.1.3.0";

/// Name of the options and of what was saved.
pub const CONFIG: &str = "adapter_config.json";

/// Name of the tensors.
pub const WEIGHTS: &str = "adapter.safetensors";

/// Name of the tensors of a trained head.
pub const HEAD: &str = "model_head.safetensors";

#[cfg(feature = "torch")]
const HEAD_CONFIG: &str = "head_config.json";

/// Whether a folder looks like one of AdapterHub's: its `adapter_config.json` has a `config` and a `model_type`.
#[must_use]
pub fn is_folder(dir: &Path) -> bool {
    read(dir).is_ok_and(|map| map.contains_key("config") && map.contains_key("model_type"))
}

/// The `adapter_config.json` of a folder.
fn read(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join(CONFIG);
    let text = std::fs::read_to_string(&path)
        .or_code(code::ADAPTER_FORMAT, || format!("{}: cannot be read", path.display()))?;
    serde_json::from_str(&text).or_code(code::ADAPTER_FORMAT, || format!("{}: not a JSON object", path.display()))
}
