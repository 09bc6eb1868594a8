//! `pleach parity`: recorded trainings, repeated and compared.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pleach_base::{Error, Result, code, human};
use pleach_train::parity::{self, Measure, Repeated};
use serde::Serialize;

use super::out::{self, Output};

/// `parity`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Folders of recorded cases; plain files are skipped
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

const HELP: &str = "\
A case is a folder with
  case.json        case, task, peft_type, optimizer (AdamW, constant rate), tolerance: logits_abs, loss_rel and,
                   if given, trained_abs (5e-3) and grad_norm_rel (1e-3)
  model/           config.json, model.safetensors
  adapter/         the adapter before training, as PEFT writes it; trained/: the same after it
  io.safetensors   eval.* (inputs, labels, base_logits, adapted_logits), batch.I.* (inputs, labels of step I)
  train.json       losses (each before its step), grad_norm_step0 (before clipping)
or, when case.json names a kind, what a paper's code computed for one method:
  case.json        kind, page, method, case, config, tolerance: abs, rel and the page's own keys
  io.safetensors   frozen.*, param.*, input.*; every expected.* is compared: |a - b| <= abs + rel * |b|
Logits are compared at real tokens, losses and the norm relative to what was recorded, tensors absolute.

Exit codes: 0 all within tolerance, 1 some are not, 2 a case cannot be read (the others are still compared).";

/// What came of one folder.
#[derive(Debug, Serialize)]
struct Row {
    folder: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    report: Option<Repeated>,
    within: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Refused>,
}

#[derive(Debug, Serialize)]
struct Refused {
    code: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct All {
    cases: Vec<Row>,
    within: usize,
    outside: usize,
    unreadable: usize,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut cases = Vec::new();
    for folder in &args.folders {
        if folder.is_file() {
            out::note(format!("note: {} is a file, not a case: skipped", folder.display()));
            continue;
        }
        cases.push(row(folder));
    }
    if cases.is_empty() {
        return Err(code::PARITY_CASE.error("no folder among the arguments").hint("give folders of recorded cases"));
    }
    let count = |wanted: fn(&Row) -> bool| cases.iter().filter(|row| wanted(row)).count();
    let (within, unreadable) = (count(|row| row.within), count(|row| row.report.is_none()));
    let outside = cases.len() - within - unreadable;
    let all = All { cases, within, outside, unreadable };
    args.output.emit(&all, || page(&all))?;
    all.cases.iter().filter_map(|row| row.report.as_ref()).for_each(complain);
    Ok(ExitCode::from(match (outside, unreadable) {
        (0, 0) => 0,
        (_, 0) => 1,
        _ => 2,
    }))
}

fn row(folder: &Path) -> Row {
    // A shape that libtorch refuses ends this case, not the ones that follow; nor may gradients stay switched off, as a
    // panic in an evaluation leaves them.
    let result = catch_unwind(AssertUnwindSafe(|| tch::with_grad(|| parity::repeat(folder))));
    let result = result.unwrap_or_else(|_| Err(code::INTERNAL.error("the model stopped in the middle of this case")));
    match result {
        Ok(report) => Row { folder: folder.to_owned(), within: report.within(), report: Some(report), error: None },
        Err(error) => {
            let error = error.at(folder.display());
            out::note(human::error(&error, human::wants_colour(&std::io::stderr())).trim_end());
            Row { folder: folder.to_owned(), report: None, within: false, error: Some(refused(&error)) }
        }
    }
}

fn refused(error: &Error) -> Refused {
    Refused { code: error.code().id, message: error.chain().to_string() }
}

/// Says which measure is outside, and where.
fn complain(repeated: &Repeated) {
    let report = match repeated {
        Repeated::Training(report) => report,
        Repeated::Method(outcome) => {
            if !outcome.within {
                let (case, worst, at) = (&outcome.case, outcome.worst, &outcome.at);
                out::note(format!("{case}: {at} is {worst:.1e} times as far off as is allowed"));
            }
            return;
        }
    };
    for (what, measure) in report.measures() {
        let Measure { deviation, tolerance, at, within } = measure;
        if !within {
            out::note(format!("{}: {what} off by {deviation:.1e} at {at}; {tolerance:.1e} is allowed", report.case));
        }
    }
}

fn page(all: &All) -> String {
    let heads = ["CASE", "METHOD", "BASE LOGITS", "ADAPTED LOGITS", "LOSSES", "GRAD NORM", "TRAINED", "RESULT"];
    let (methods, trainings): (Vec<_>, Vec<_>) =
        all.cases.iter().partition(|row| matches!(row.report, Some(Repeated::Method(_))));
    let mut text = String::new();
    if !trainings.is_empty() {
        text.push_str(&human::table(heads, trainings.into_iter().map(training)));
    }
    if !methods.is_empty() {
        let heads = ["CASE", "METHOD", "KIND", "TENSORS", "WORST/ALLOWED", "AT", "RESULT"];
        text.push_str(&human::table(heads, methods.into_iter().filter_map(method)));
    }
    let total = all.cases.len();
    text.push_str(&format!("{} of {total} within tolerance", all.within));
    if all.unreadable > 0 {
        text.push_str(&format!(", {} not read", all.unreadable));
    }
    text.push('\n');
    text
}

fn training(row: &Row) -> [String; 8] {
    let Some(Repeated::Training(report)) = &row.report else {
        let dash = || "-".to_owned();
        let name = row.folder.file_name().unwrap_or(row.folder.as_os_str()).to_string_lossy().into_owned();
        return [name, dash(), dash(), dash(), dash(), dash(), dash(), "not read".to_owned()];
    };
    let [base, adapted, losses, norm, trained] = report.measures().map(|(_, measure)| number(measure));
    [report.case.clone(), report.peft_type.clone(), base, adapted, losses, norm, trained, result(row)]
}

fn method(row: &Row) -> Option<[String; 7]> {
    let Some(Repeated::Method(outcome)) = &row.report else { return None };
    let (worst, tensors) = (format!("{:.1e}", outcome.worst), outcome.compared.to_string());
    let (case, method, kind) = (outcome.case.clone(), outcome.method.clone(), outcome.kind.clone());
    Some([case, method, kind, tensors, worst, outcome.at.clone(), result(row)])
}

fn result(row: &Row) -> String {
    if row.within { "ok" } else { "outside" }.to_owned()
}

/// A deviation, marked when it is too large.
fn number(measure: &Measure) -> String {
    format!("{:.1e}{}", measure.deviation, if measure.within { "" } else { " !" })
}
