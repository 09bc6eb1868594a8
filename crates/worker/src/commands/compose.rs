//! `pleach compose`: sparse differences of several trainings on one model, added up.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pleach_base::Result;
use pleach_methods::files;
use serde_json::json;

use super::out::{Output, note};

/// `compose`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders of differences that `lt_sft` trained on the same model: a language's, then a task's
    #[arg(required = true)]
    adapters: Vec<PathBuf>,
    /// The base model's folder
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// New folder for the sum, an adapter as well
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// Leave out heads that were trained whole; otherwise they are those of the last folder
    #[arg(long)]
    without_heads: bool,
    /// Also take steps that did not pass their gate
    #[arg(long)]
    unpublishable: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let folders: Vec<&Path> = args.adapters.iter().map(PathBuf::as_path).collect();
    let opened = files::compose(&folders, &args.base, !args.without_heads, args.unpublishable)?;
    files::write_adapter(&opened, &args.to, &args.base.to_string_lossy())?;
    let tensors = opened.adapter.exported()?;
    let values = tensors.iter().filter(|(name, _)| name.ends_with(".values"));
    let entries: usize = values.map(|(_, values)| values.numel()).sum();
    args.output.emit(&json!({"to": args.to, "composed": args.adapters, "entries": entries}), || {
        format!("{entries} entries differ from the base model\n")
    })?;
    note(format!("the sum of {} differences is in {}", folders.len(), args.to.display()));
    Ok(ExitCode::SUCCESS)
}
