//! `pleach export`: an adapter in a form that others open.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use pleach_base::{Result, code};
use pleach_methods::files;
use serde_json::json;

use super::merge::{Dtype, show};
use super::out::{Output, note};

/// What it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum To {
    /// A folder that PEFT opens
    Peft,
    /// A folder that AdapterHub's `adapters` opens
    Adapterhub,
    /// A model folder that transformers opens, with the adapter folded in
    Merged,
}

/// `export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The adapter's folder, such as one that `pleach pull` brought
    adapter: PathBuf,
    /// What it becomes
    #[arg(long, value_enum)]
    format: To,
    /// New folder for the result
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// The base model's folder: the adapter is checked against it; needed for all formats but PEFT's
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// What `base_model_name_or_path` is to say, such as a name on a hub; unchanged when absent
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Name of the adapter in AdapterHub's files
    #[arg(long, default_value = "pleach")]
    name: String,
    /// Element kind of a merged model
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Also take a step that did not pass its gate
    #[arg(long)]
    unpublishable: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let opened = match &args.base {
        Some(base) => Some(files::open_checked(&args.adapter, base, args.unpublishable)?),
        None => None,
    };
    match (args.format, opened) {
        (To::Peft, _) => {
            files::copy_adapter(&args.adapter, &args.to, args.base_name.as_deref(), args.unpublishable)?;
            args.output.emit(&json!({"to": args.to, "format": "peft"}), String::new)?;
            note(format!("a PEFT folder is in {}", args.to.display()));
            Ok(ExitCode::SUCCESS)
        }
        (To::Adapterhub, Some(opened)) => {
            let base = args.base.as_ref().map(|base| base.display().to_string()).unwrap_or_default();
            let base = args.base_name.as_deref().unwrap_or(&base);
            files::write_adapterhub(&opened, &args.to, base, &args.name)?;
            args.output.emit(&json!({"to": args.to, "format": "adapterhub"}), String::new)?;
            note(format!("a folder of AdapterHub's is in {}", args.to.display()));
            Ok(ExitCode::SUCCESS)
        }
        (To::Merged, Some(opened)) => {
            let written = files::merge(&opened, &args.to, args.dtype.map(Dtype::kind))?;
            show(args.output, &written, &args.to)
        }
        (To::Merged | To::Adapterhub, None) => Err(code::BAD_VALUE
            .error("--base: this format needs the base model, and none is given")
            .hint("name the folder of the model that the adapter was trained on")),
    }
}
