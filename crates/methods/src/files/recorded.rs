//! What a step folder of Pleach's says of itself in `manifest.json`, and what follows for its use.

use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use serde::Deserialize;

/// What is recorded beside an adapter. All of it is absent in folders that others wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Whether the step passed its gate.
    pub publishable: Option<bool>,
    /// What the gate found.
    pub findings: Vec<String>,
    /// Fingerprint of the base model that it was trained on.
    pub base_fingerprint: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Manifest {
    gate: Option<Gate>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Gate {
    publishable: bool,
    #[serde(default)]
    findings: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Meta {
    base_fingerprint: Option<String>,
}

impl Recorded {
    /// Reads `manifest.json` of a folder; nothing is recorded when there is none.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when it is there and is no manifest.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("manifest.json");
        let Ok(text) = std::fs::read(&path) else { return Ok(Self::default()) };
        let manifest: Manifest = serde_json::from_slice(&text)
            .or_code(code::ADAPTER_FORMAT, || format!("{}: not a manifest", path.display()))?;
        Ok(Self {
            publishable: manifest.gate.as_ref().map(|gate| gate.publishable),
            findings: manifest.gate.map(|gate| gate.findings).unwrap_or_default(),
            base_fingerprint: manifest.meta.base_fingerprint,
        })
    }

    /// Refuses another base model than the recorded one.
    ///
    /// # Errors
    /// `ADAPTER_BASE`; the message begins with `what`.
    pub fn check_base(&self, what: &str, fingerprint: &str) -> Result<()> {
        match self.base_fingerprint.as_deref() {
            Some(recorded) if recorded != fingerprint => Err(code::ADAPTER_BASE
                .error(format!(
                    "{what} was trained on a base model with fingerprint {}, this one has {}",
                    short(recorded),
                    short(fingerprint)
                ))
                .hint("give the model that the adapter was trained on, or start a job of another name")),
            _ => Ok(()),
        }
    }

    /// Refuses a step that did not pass its gate.
    ///
    /// # Errors
    /// `ADAPTER_GATE` with what the gate found.
    pub fn check_gate(&self, folder: &Path) -> Result<()> {
        if self.publishable != Some(false) {
            return Ok(());
        }
        let why = if self.findings.is_empty() { "no reason is recorded".to_owned() } else { self.findings.join("; ") };
        Err(code::ADAPTER_GATE
            .error(format!("{}: this step did not pass its gate: {why}", folder.display()))
            .hint("take a later step, or say `--unpublishable` to use it all the same"))
    }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_decides_and_what_is_not_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let none = Recorded::read(folder.path()).unwrap();
        assert_eq!(none, Recorded::default());
        none.check_gate(folder.path()).unwrap();
        none.check_base("it", "aaaa").unwrap();
        let text = r#"{"format_version": 1, "step": 3, "files": [], "gate": {"publishable": false, "findings": ["b is zero"]},
            "meta": {"base_fingerprint": "aaaa", "seed": 1}}"#;
        std::fs::write(folder.path().join("manifest.json"), text).unwrap();
        let recorded = Recorded::read(folder.path()).unwrap();
        recorded.check_base("it", "aaaa").unwrap();
        assert_eq!(recorded.check_base("it", "bbbb").unwrap_err().code(), code::ADAPTER_BASE);
        let refused = recorded.check_gate(folder.path()).unwrap_err();
        assert!(refused.code() == code::ADAPTER_GATE && refused.message().contains("b is zero"), "{refused}");
        std::fs::write(folder.path().join("manifest.json"), "[").unwrap();
        assert_eq!(Recorded::read(folder.path()).unwrap_err().code(), code::ADAPTER_FORMAT);
    }
}
