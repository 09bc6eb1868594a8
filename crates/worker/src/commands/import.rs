//! `pleach import`: an adapter of others, checked against a model and written as Pleach would have.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pleach_base::{Result, ResultExt as _, Step, code, human};
use pleach_methods::files::{self, Opened};
use pleach_store::{ADAPTER_CONFIG, ADAPTER_MODEL, FORMAT_VERSION, Gate, MANIFEST, Manifest, ManifestFile};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::out::{Output, note};

/// `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with adapter_config.json and adapter_model.safetensors
    adapter: PathBuf,
    /// The base model's folder; `base_model_name_or_path` of the adapter when absent
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// New folder for the adapter; only checked when absent
    #[arg(long, value_name = "OUT")]
    to: Option<PathBuf>,
    /// Also take a step that did not pass its gate
    #[arg(long)]
    unpublishable: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let base = match &args.base {
        Some(base) => base.clone(),
        None => named(&args.adapter)?,
    };
    let opened = files::open_checked(&args.adapter, &base, args.unpublishable)?;
    let fingerprint = opened.dir.fingerprint()?;
    if let Some(to) = &args.to {
        files::write_adapter(&opened, to, &base.display().to_string())?;
        write_manifest(&opened, to, &fingerprint)?;
    }
    let plan = opened.adapter.plan();
    let method = opened.adapter.config().card().name;
    let value = json!({
        "method": method, "base": base, "base_fingerprint": fingerprint, "sites": plan.sites.len(),
        "saved_modules": plan.saved.len(), "params": plan.params(), "to": args.to,
    });
    args.output.emit(&value, || {
        let row = [method.to_owned(), plan.sites.len().to_string(), human::count(plan.params()), fingerprint.clone()];
        human::table(["METHOD", "SITES", "PARAMS", "BASE"], [row])
    })?;
    match &args.to {
        Some(to) => note(format!("`init_from: {}` starts from it", to.display())),
        None => note("it fits; `--to FOLDER` writes it"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder that the adapter itself names, relative to it or to the working directory.
fn named(adapter: &Path) -> Result<PathBuf> {
    let named = pleach_methods::import(adapter)?.base;
    let candidates = named.iter().flat_map(|name| [adapter.join(name), PathBuf::from(name)]);
    candidates.into_iter().find(|path| path.join("config.json").is_file()).ok_or_else(|| {
        let what = named.as_deref().unwrap_or("nothing");
        code::BAD_VALUE
            .error(format!("--base: not given, and the adapter names `{what}`, which is no model folder here"))
            .hint("name the folder of the model that the adapter was trained on")
    })
}

/// Records which base model it was checked against, so that no other is used with it later.
fn write_manifest(opened: &Opened, to: &Path, fingerprint: &str) -> Result<()> {
    let failed = |name: &str| format!("{}: cannot be read back", to.join(name).display());
    let mut listed = Vec::new();
    for name in [ADAPTER_CONFIG, ADAPTER_MODEL] {
        let bytes = std::fs::read(to.join(name)).or_code(code::IO, || failed(name))?;
        let (sha256, bytes) = (hex::encode(Sha256::digest(&bytes)), bytes.len() as u64);
        listed.push(ManifestFile { name: name.to_owned(), bytes, sha256 });
    }
    let meta =
        json!({"method": opened.adapter.config().card().name, "base_fingerprint": fingerprint, "imported": true});
    let meta = if let Value::Object(meta) = meta { meta } else { Map::new() };
    let manifest =
        Manifest { format_version: FORMAT_VERSION, step: Step(0), files: listed, gate: Gate::passed(), meta };
    let text = serde_json::to_vec_pretty(&manifest).or_code(code::INTERNAL, || "cannot write JSON".to_owned())?;
    let path = to.join(MANIFEST);
    std::fs::write(&path, text).or_code(code::IO, || format!("{}: cannot be written", path.display()))
}
