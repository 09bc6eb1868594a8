//! Numbers as people read them.

use std::io::IsTerminal;
use std::time::Duration;

/// Whether what is written to `stream` may have colour: `NO_COLOR` is not set, and it is a terminal or
/// `CLICOLOR_FORCE` asks.
#[must_use]
pub fn wants_colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    set("NO_COLOR").is_none() && (forced || stream.is_terminal())
}

/// `1,234,567`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `850 ms`, `12.3 s`, `4m 05s`, `2h 03m`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=99 => format!("{:.1} s", time.as_secs_f64()),
        100..=5_999 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

/// A borderless table with a heading, as wide as its content: lines stay greppable, none ends in blanks.
pub fn table<const N: usize>(heads: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let lines: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// An error as it is shown to people, in lines: the message, what to do, which page explains it.
#[must_use]
pub fn error(error: &crate::Error, colour: bool) -> String {
    let label = |text: &str, code: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut text = format!("{} {}\n", label("error:", "1;31"), error.chain());
    if let Some(hint) = error.hint_text() {
        text.push_str(&format!("{} {hint}\n", label("hint:", "1;36")));
    }
    text.push_str(&format!("{} pleach explain {}\n", label("see:", "1"), error.code().id));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_without_borders_or_trailing_blanks() {
        let text = table(["NAME", "N"], [["a".into(), "1".into()], ["long-name".into(), "22".into()]]);
        assert_eq!(text, "NAME       N\na          1\nlong-name  22\n");
    }

    #[test]
    fn errors_say_what_to_do_and_where_to_read_on() {
        let shown = error(&crate::code::IO.error("disk: full").hint("make room"), false);
        assert_eq!(shown, format!("error: disk: full\nhint: make room\nsee: pleach explain {}\n", crate::code::IO.id));
        assert!(error(&crate::code::IO.error("x"), true).starts_with("\x1b[1;31merror:\x1b[0m x"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(7), "7 B");
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(duration(Duration::from_secs(125)), "2m 05s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2h 05m");
    }
}
