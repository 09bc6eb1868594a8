//! `pleach audit`: what was trained, proven from records and data.

use std::process::ExitCode;

use pleach_base::{Result, code};

use crate::args::{Audit, AuditFormat, Format, Global, JobFile};
use crate::audit::{self, Export, Subject};
use crate::{fail, out};

pub(super) async fn run(global: &Global, args: Audit) -> Result<ExitCode> {
    let subject = match (&args.job_file, &args.job) {
        (Some(file), id) => {
            let file = JobFile { file: file.clone(), sets: args.sets.clone() };
            Subject::offline(&super::submit::load(global, &file)?.job, id.as_deref())
        }
        (None, Some(id)) => Subject::of(&mut super::connect(global).await?, id).await?,
        (None, None) => return Err(code::BAD_VALUE.error("name a job, or its file with --job-file")),
    };
    let mut export = match (&args.to, args.output) {
        (Some(path), AuditFormat::Parquet) => Some(Export::create(path)?),
        _ => None,
    };
    let report = audit::run(&subject, args.task.as_deref(), &mut export).await?;
    if let (Some(export), Some(path)) = (export, &args.to) {
        export.finish()?;
        out::note(format!("{} says which step trained which row", path.display()));
    }
    let format = if args.output == AuditFormat::Json { Format::Json } else { Format::Table };
    out::emit(format, &report, || report.text())?;
    out::note(if report.holds { "everything on record holds" } else { "not everything holds" });
    Ok(if report.holds { ExitCode::SUCCESS } else { ExitCode::from(fail::FAILED) })
}
