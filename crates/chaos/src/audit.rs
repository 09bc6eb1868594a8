//! What `pleach audit` says of an arm: the product's own proof, beside the harness's account. The two must agree.

use std::process::Command;

use anyhow::{Context, Result};
use pleach_testkit::process::binary;
use serde_json::{Value, json};

use crate::cluster::TOKEN;

/// Runs the audit of a job at the first coordinator that answers.
pub(crate) fn audit(endpoints: &[String], env: &[(String, String)], job: &str) -> Result<Value> {
    let mut said = String::new();
    for endpoint in endpoints {
        let mut command = Command::new(binary("pleach")?);
        command.args(["audit", job, "-o", "json", "--address", endpoint, "--token", TOKEN]);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let out = command.output().context("cannot run `pleach audit`")?;
        if let Ok(report) = serde_json::from_slice::<Value>(&out.stdout) {
            return Ok(report);
        }
        said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    }
    Ok(json!({"holds": false, "error": said}))
}
