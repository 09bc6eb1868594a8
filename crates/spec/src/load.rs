//! From text to a valid [`Job`].

use std::path::Path;

use pleach_base::{Result, ResultExt, code};

use crate::job::{API_VERSION, Job};
use crate::places::Places;
use crate::tree::{Data, Node};
use crate::{check, inherit, overrides, schema, tree};

/// A job and where its keys stood.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The job: valid, defaults of absent keys filled in, not yet resolved.
    pub job: Job,
    /// Turns paths in later errors (of methods, say) into line and column.
    pub places: Places,
}

/// Parses a job file. `origin` names the text in errors: the file's name, `request`, ...
///
/// # Errors
/// `JOB_SYNTAX`, `API_VERSION`, `UNKNOWN_KEY`, `BAD_VALUE`, each with path, line and column.
pub fn parse(text: &str, origin: &str) -> Result<Job> {
    Ok(load(text, origin, &[])?.job)
}

/// Parses a job file after applying `--set` arguments (`path.to.key=value`) in order.
///
/// # Errors
/// As [`parse`], and `BAD_OVERRIDE` for an argument that cannot be applied.
pub fn load(text: &str, origin: &str, sets: &[String]) -> Result<Loaded> {
    let mut root = tree::parse(text, origin)?;
    for argument in sets {
        overrides::apply(&mut root, argument)?;
    }
    inherit::into_tasks(&mut root);
    let places = Places::of(&root, origin);
    let job = typed(&root).map_err(|error| places.locate(error))?;
    Ok(Loaded { job, places })
}

/// Reads and loads a job file; `-` is standard input.
///
/// # Errors
/// As [`load`], and `JOB_SYNTAX` when the file cannot be read.
pub fn read(path: &Path, sets: &[String]) -> Result<Loaded> {
    let origin = path.display().to_string();
    let text =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) }
            .or_code(code::JOB_SYNTAX, || format!("{origin}: cannot read the job file"))
            .map_err(|error| error.hint("name a YAML or JSON file, or `-` for standard input"))?;
    load(&text, if origin == "-" { "stdin" } else { &origin }, sets)
}

fn typed(root: &Node) -> Result<Job> {
    version(root)?;
    check::document(schema::job(), root)?;
    let job: Job =
        serde_json::from_value(root.to_value()).or_code(code::BAD_VALUE, || "spec: cannot be read".into())?;
    job.validate()?;
    Ok(job)
}

/// Looked at first: under another version every other complaint would mislead.
fn version(root: &Node) -> Result<()> {
    for (key, want) in [("apiVersion", API_VERSION), ("kind", "Job")] {
        let found = match &root.data {
            Data::Map(entries) => entries.get(key).map(|entry| entry.node.to_value()),
            _ => return Err(code::JOB_SYNTAX.error("spec: a job file is a map with apiVersion, kind, metadata, spec")),
        };
        if found.as_ref().and_then(serde_json::Value::as_str) != Some(want) {
            let found = found.map_or("nothing".into(), |value| value.to_string());
            return Err(code::API_VERSION
                .error(format!("{key}: this build reads `{want}`, found {found}"))
                .hint(format!("write `{key}: {want}`")));
        }
    }
    Ok(())
}
