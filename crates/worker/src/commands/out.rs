//! Standard output is data, standard error is the rest.

use std::io::{ErrorKind, Write};

use clap::ValueEnum;
use pleach_base::{Result, ResultExt, code};
use serde::Serialize;

/// How data is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
}

/// `-o`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Output {
    /// How data is written to standard output
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

impl Output {
    /// Writes `value` as asked for; `table` makes the text for people. A reader that closed the pipe has seen enough.
    ///
    /// # Errors
    /// `IO` when standard output cannot be written.
    pub(crate) fn emit(self, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
        let text = match self.output {
            Format::Table => table(),
            Format::Json => {
                serde_json::to_string_pretty(value).or_code(code::INTERNAL, || "cannot write JSON".to_owned())?
            }
        };
        let mut to = std::io::stdout().lock();
        match writeln!(to, "{}", text.trim_end_matches('\n')).and_then(|()| to.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).or_code(code::IO, || "cannot write to standard output".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Writes a remark to standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}
