//! Configuration of a node (coordinator, worker): defaults, then a file, then `PLEACH_*` variables, then flags.
//!
//! What the keys are is the business of the crate whose node it is; this only layers them.

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Serialized};
use pleach_base::{Error, Result, code, suggest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tree;

/// Layers a configuration: `defaults`, then the YAML or JSON `file`, then variables that start with `prefix`
/// (`PLEACH_COORDINATOR_LEASE_TTL_MS` sets `lease_ttl_ms` for the prefix `PLEACH_COORDINATOR_`), then `flags`, whose
/// absent fields must not be serialised. `T` should deny unknown fields.
///
/// # Errors
/// `JOB_SYNTAX` for a file that is no YAML, `UNKNOWN_KEY` and `BAD_VALUE` with the key and where it came from.
pub fn layered<T: Serialize + DeserializeOwned>(
    defaults: &T,
    file: Option<&Path>,
    prefix: &str,
    flags: &impl Serialize,
) -> Result<T> {
    let mut layers = Figment::from(Serialized::defaults(defaults));
    if let Some(path) = file {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| code::JOB_SYNTAX.error(format!("{origin}: cannot be read")).caused_by(error))?;
        layers = layers.merge(Serialized::defaults(tree::parse(&text, &origin)?.to_value()));
    }
    layers.merge(Env::prefixed(prefix)).merge(Serialized::defaults(flags)).extract().map_err(|error| refused(&error))
}

fn refused(error: &figment::Error) -> Error {
    use figment::error::Kind;
    let from = error.metadata.as_ref().map_or_else(String::new, |from| format!(" ({})", from.name));
    let key = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(name, known) => code::UNKNOWN_KEY
            .error(format!("{name}: unknown key{from}"))
            .hint(suggest::did_you_mean(name, known.iter().copied())),
        kind if key.is_empty() => code::BAD_VALUE.error(format!("{kind}{from}")),
        kind => code::BAD_VALUE.error(format!("{key}: {kind}{from}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        listen: String,
        lease_ttl_ms: u64,
    }

    fn defaults() -> Config {
        Config { listen: "127.0.0.1:7700".into(), lease_ttl_ms: 3_000 }
    }

    #[test]
    fn later_layers_win_and_slips_are_refused() {
        let folder = std::env::temp_dir().join(format!("pleach-node-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("node.yaml");
        std::fs::write(&file, "listen: 0.0.0.0:1\nlease_ttl_ms: 5\n").unwrap();
        let flags = serde_json::json!({"lease_ttl_ms": 9});
        let got = layered(&defaults(), Some(&file), "PLEACH_NODE_TEST_", &flags).unwrap();
        assert_eq!(got, Config { listen: "0.0.0.0:1".into(), lease_ttl_ms: 9 });

        std::fs::write(&file, "lisen: 0.0.0.0:1\n").unwrap();
        let error = layered(&defaults(), Some(&file), "PLEACH_NODE_TEST_", &serde_json::json!({})).unwrap_err();
        assert_eq!(error.code(), code::UNKNOWN_KEY);
        assert_eq!(error.hint_text(), Some("did you mean `listen`?"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
