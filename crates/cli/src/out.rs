//! Standard output is data, standard error is the rest. Colours appear on terminals only (`NO_COLOR` is honoured).

use std::io::{ErrorKind, Write};

pub(crate) use pleach_base::human::table;
use pleach_base::{Result, ResultExt, code};
use serde::Serialize;

use crate::args::Format;

/// Writes text to standard output, with a line end. A reader that closed the pipe has seen enough: that is no error.
pub(crate) fn data(text: &str) -> Result<()> {
    let mut to = anstream::stdout().lock();
    match writeln!(to, "{}", text.trim_end_matches('\n')).and_then(|()| to.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).or_code(code::IO, || "cannot write to standard output".into())
        }
        _ => Ok(()),
    }
}

/// Writes a remark to standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(anstream::stderr(), "{}", text.as_ref());
}

/// Writes `value` as asked for; `table` makes the text for people.
pub(crate) fn emit(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
    match format {
        Format::Table => data(&table()),
        Format::Json => {
            data(&serde_json::to_string_pretty(value).or_code(code::INTERNAL, || "cannot write JSON".into())?)
        }
        Format::Yaml => data(&serde_saphyr::to_string(value).or_code(code::INTERNAL, || "cannot write YAML".into())?),
    }
}
