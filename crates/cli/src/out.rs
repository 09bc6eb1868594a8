//! Standard output is data, standard error is the rest. Colours appear on terminals only (`NO_COLOR` is honoured).

use std::io::{ErrorKind, Write};

use comfy_table::{ContentArrangement, Table, presets};
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

/// A borderless table with a heading, as wide as its content: lines stay greppable.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(heads);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_without_borders_or_trailing_blanks() {
        let text = table(["NAME", "N"], [["a".into(), "1".into()], ["long-name".into(), "22".into()]]);
        assert_eq!(text, "NAME       N\na          1\nlong-name  22\n");
    }
}
