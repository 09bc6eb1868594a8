//! `pleach generate`: a generator's adapter of a context.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use pleach_base::{Result, ResultExt as _, code, human};
use pleach_data::Tokenizer;
use pleach_methods::files;
use pleach_methods::{Context, Feeding};
use pleach_nn::{OutTensor, TensorFile, tensor_from_entry, write_tensors};
use serde_json::json;
use tch::Tensor;

use super::out::{Output, note};

/// How the context is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// As one sequence
    Concat,
    /// In chunks that know nothing of each other
    Parallel,
    /// In chunks, each with what those before it gave
    Sequential,
    /// The same chunk by chunk: memory does not grow with the context
    SequentialLong,
}

/// `generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The generator's folder: a trained adapter of the method `generative`
    generator: PathBuf,
    /// The base model's folder
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// What is read: text, or with .json an array of token ids
    #[arg(long, value_name = "FILE")]
    context: PathBuf,
    /// How it is fed
    #[arg(long, value_enum, default_value = "sequential-long")]
    mode: Mode,
    /// New folder for the adapter, a LoRA
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// States of an earlier part of the context, `states.safetensors` of what was written of it
    #[arg(long, value_name = "FILE")]
    states: Option<PathBuf>,
    /// Also take a step that did not pass its gate
    #[arg(long)]
    unpublishable: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    files::new_folder(&args.to)?;
    let opened = files::open_checked(&args.generator, &args.base, args.unpublishable)?;
    let ids = ids(&args.context, &args.base)?;
    let before = args.states.as_deref().map(states).transpose()?;
    let feeding = match args.mode {
        Mode::Concat => Feeding::Concat,
        Mode::Parallel => Feeding::Parallel,
        Mode::Sequential => Feeding::Sequential,
        Mode::SequentialLong => Feeding::SequentialLong,
    };
    let base = args.base.display().to_string();
    let context = Context { ids: &ids, feeding, before: before.as_ref(), base: &base };
    let written = opened.adapter.write(opened.backbone.as_ref(), &context)?;
    let failed = || format!("{}: cannot be written", args.to.display());
    let config = serde_json::to_string_pretty(&written.config).or_code(code::INTERNAL, failed)?;
    std::fs::write(args.to.join("adapter_config.json"), config + "\n").or_code(code::IO, failed)?;
    let out = |tensors: &[(String, &Tensor)]| -> BTreeMap<String, OutTensor<'static>> {
        tensors.iter().map(|(name, tensor)| (name.clone(), OutTensor::of(&tensor.contiguous()))).collect()
    };
    let tensors: Vec<_> = written.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    let kept: Vec<_> = written.states.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    write_tensors(&args.to.join("adapter_model.safetensors"), out(&tensors))?;
    write_tensors(&args.to.join("states.safetensors"), out(&kept))?;
    let numbers: usize = tensors.iter().map(|(_, tensor)| tensor.numel()).sum();
    let value = json!({"to": args.to, "tokens": ids.len(), "rank": written.config.get("r"), "numbers": numbers});
    args.output.emit(&value, || human::table(["TOKENS", "NUMBERS"], [[ids.len().to_string(), numbers.to_string()]]))?;
    note(format!("the adapter of {} tokens is in {}", ids.len(), args.to.display()));
    Ok(ExitCode::SUCCESS)
}

/// The tokens of a file.
fn ids(file: &Path, model: &Path) -> Result<Vec<i64>> {
    let text = std::fs::read_to_string(file).or_code(code::IO, || format!("{}: cannot be read", file.display()))?;
    if file.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text)
            .or_code(code::BAD_VALUE, || format!("{}: not an array of token ids", file.display()));
    }
    let tokenizer = Tokenizer::open(&model.join("tokenizer.json"))?;
    let ids = tokenizer.encode(&text, None, usize::MAX).map_err(|why| code::TOKENIZER.error(why))?;
    Ok(ids.ids.into_iter().map(i64::from).collect())
}

/// The tensors of a file.
fn states(file: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = TensorFile::open(file)?;
    let entries = file.names().filter_map(|name| file.get(name));
    entries.map(|entry| Ok((entry.name.to_owned(), tensor_from_entry(&entry)?))).collect()
}
