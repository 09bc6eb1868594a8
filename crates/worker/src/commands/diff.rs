//! `pleach diff`: two adapters or models, tensor by tensor.

use std::path::PathBuf;
use std::process::ExitCode;

use pleach_base::{Result, human};
use pleach_methods::files::{self, Diff, Row, State};

use super::out::Output;

/// `diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 nothing differs, 1 something does, 2 one of them cannot be read.")]
pub struct Args {
    /// An adapter folder, a model folder or a safetensors file
    a: PathBuf,
    /// Another
    b: PathBuf,
    /// Elements that differ by no more are equal; by default the bits decide
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    atol: f64,
    /// Only tensors that differ
    #[arg(long)]
    changed: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut diff = files::diff(&args.a, &args.b, args.atol)?;
    if args.changed {
        diff.tensors.retain(|row| row.state != State::Same);
    }
    args.output.emit(&diff, || page(&diff))?;
    Ok(ExitCode::from(u8::from(!diff.same)))
}

fn page(diff: &Diff) -> String {
    let heads = ["TENSOR", "SHAPE", "|A|", "|B|", "|A-B|", "MAX", "COSINE", "STATE"];
    let mut text = human::table(heads, diff.tensors.iter().map(line));
    for (field, values) in &diff.config {
        text.push_str(&format!("{field}: {} -> {}\n", values[0], values[1]));
    }
    let count = |state| diff.tensors.iter().filter(|row| row.state == state).count();
    let apart = number(diff.distance);
    text.push_str(&format!("{} tensors, {} the same, |A-B| {apart}\n", diff.tensors.len(), count(State::Same)));
    text
}

fn line(row: &Row) -> [String; 8] {
    let shape = match (&row.shape_a, &row.shape_b) {
        (Some(a), Some(b)) if a != b => format!("{a:?} -> {b:?}"),
        (a, b) => a.as_ref().or(b.as_ref()).map(|shape| format!("{shape:?}")).unwrap_or_default(),
    };
    let state = match row.state {
        State::Same => "same",
        State::Changed => "changed",
        State::Shape => "shapes differ",
        State::OnlyA => "only in A",
        State::OnlyB => "only in B",
    };
    let cosine = row.cosine.map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.6}"));
    let [a, b, apart, max] = [row.norm_a, row.norm_b, row.distance, row.max_abs].map(number);
    [row.name.clone(), shape, a, b, apart, max, cosine, state.to_owned()]
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| if value == 0.0 { "0".to_owned() } else { format!("{value:.4e}") })
}
