//! `pleach merge` and `pleach unmerge`: an adapter folded into its base model, and taken out again.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use pleach_base::{Result, human};
use pleach_methods::files::{self, Written};
use serde_json::json;
use tch::Kind;

use super::out::{Output, note};

/// Kind of floating-point elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floats
    #[value(alias = "fp32")]
    Float32,
    /// bfloat16
    #[value(alias = "bf16")]
    Bfloat16,
    /// 16-bit floats
    #[value(alias = "fp16")]
    Float16,
}

impl Dtype {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
            Self::Float16 => Kind::Half,
        }
    }
}

/// `merge`.
#[derive(Debug, clap::Args)]
pub struct Merge {
    /// The adapter's folder
    adapter: PathBuf,
    /// The base model's folder
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// New folder for the merged model
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// Element kind of the merged model; that of each tensor of the base when absent
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Also take a step that did not pass its gate
    #[arg(long)]
    unpublishable: bool,
    #[command(flatten)]
    output: Output,
}

/// `unmerge`.
#[derive(Debug, clap::Args)]
pub struct Unmerge {
    /// The merged model's folder
    merged: PathBuf,
    /// The adapter that was merged into it
    #[arg(long, value_name = "ADAPTER")]
    adapter: PathBuf,
    /// New folder for the base model
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// Element kind; that of each tensor of the merged model when absent
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn merge(args: &Merge) -> Result<ExitCode> {
    let opened = files::open_checked(&args.adapter, &args.base, args.unpublishable)?;
    let written = files::merge(&opened, &args.to, args.dtype.map(Dtype::kind))?;
    show(args.output, &written, &args.to)
}

pub(super) fn unmerge(args: &Unmerge) -> Result<ExitCode> {
    // The recorded fingerprint is the base's, not that of the merged model.
    let opened = files::open_on(&args.adapter, &args.merged, None)?;
    let written = files::unmerge(&opened, &args.to, args.dtype.map(Dtype::kind))?;
    show(args.output, &written, &args.to)
}

/// Says what was written.
pub(super) fn show(output: Output, written: &Written, to: &std::path::Path) -> Result<ExitCode> {
    let value = json!({"to": to, "written": written});
    output.emit(&value, || {
        let rows = written.weights.iter().map(|(name, bytes)| [name.clone(), human::bytes(*bytes)]);
        let copied = written.copied.iter().map(|name| [name.clone(), "copied".to_owned()]);
        human::table(["FILE", "SIZE"], rows.chain(copied))
    })?;
    for site in &written.untied {
        note(format!("`{site}` has a tensor of its own now: tie_word_embeddings is false"));
    }
    note(format!("{} with {} changed sites is in {}", written.class, written.sites, to.display()));
    Ok(ExitCode::SUCCESS)
}
