//! READMEs as prose: paragraphs without badges, markup, code, tables and the sections that all READMEs share.

use std::sync::LazyLock;

use regex::Regex;

/// A pattern of this file; each is compiled by the tests.
fn pattern(text: &str) -> Regex {
    #[allow(clippy::expect_used, reason = "a constant, compiled by every test of this module")]
    Regex::new(text).expect("a pattern of this file")
}

/// Headings of sections that say nothing about what the crate does.
static BOILERPLATE_HEADING: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)licen[cs]e|contribut|history|release|news|#\s*v?\d+\.\d|msrv|minimum supported|minimum rust|rust version|changelog|semver|version|badge|table of contents|acknowledg|sponsor|community|code of conduct|getting help|credits|install|links|documentation|crate features|supported",
    )
});
static HEADING: LazyLock<Regex> = LazyLock::new(|| pattern(r"^#+(\s|$)"));
static UNDERLINE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(=+|-+)$"));
static RULE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(-{3,}|\*{3,}|_{3,})$"));
static BULLET: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([-*+]|\d+[.)])\s+"));
static DEFINITION: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\[[^\]]+\]:"));
static COMMENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)<!--.*?-->"));

/// What is taken out of a line, and what stays.
static INLINE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", ""),
        (r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", "$1"),
        (r"<[^>]*>", ""),
        (r"https?://\S+", ""),
        (r"&[a-z]+;", " "),
        (r"[\[\]`*]", ""),
        (r"(^|\W)_+", "$1"),
        (r"_+(\W|$)", "$1"),
        (r"\s+", " "),
    ]
    .map(|(from, to)| (pattern(from), to))
    .to_vec()
});

/// One line or paragraph without markup.
pub(super) fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in INLINE.iter() {
        text = from.replace_all(&text, *to).into_owned();
    }
    text.trim().to_owned()
}

/// The prose of a README, paragraph by paragraph; each list item is one.
pub(super) fn paragraphs(readme: &str) -> Vec<String> {
    let text = COMMENT.replace_all(readme, "");
    let mut walk = Walk::default();
    for line in text.lines() {
        walk.line(line);
    }
    walk.flush();
    walk.done
}

#[derive(Default)]
struct Walk {
    done: Vec<String>,
    current: Vec<String>,
    /// What ends the code block that we are in.
    fence: Option<&'static str>,
    /// Within a section that all READMEs share.
    skip: bool,
}

impl Walk {
    fn line(&mut self, line: &str) {
        let text = line.trim();
        let fence = ["```", "~~~"].into_iter().find(|mark| text.starts_with(mark));
        if let Some(open) = self.fence {
            if fence == Some(open) {
                self.fence = None;
            }
        } else if fence.is_some() {
            self.flush();
            self.fence = fence;
        } else if text.is_empty() {
            self.flush();
        } else if HEADING.is_match(text) {
            self.flush();
            self.skip = BOILERPLATE_HEADING.is_match(text);
        } else if UNDERLINE.is_match(text) && self.current.len() == 1 {
            self.skip = BOILERPLATE_HEADING.is_match(&self.current[0]);
            self.current.clear();
        } else if RULE.is_match(text) || UNDERLINE.is_match(text) {
            self.flush();
        } else if !is_markup(line, text, self.current.is_empty()) {
            self.prose(text);
        }
    }

    fn prose(&mut self, text: &str) {
        let item = BULLET.find(text).map(|found| found.end());
        if item.is_some() {
            self.flush();
        }
        let text = &text[item.unwrap_or(0)..];
        self.current.push(text.trim_start_matches("> ").to_owned());
    }

    fn flush(&mut self) {
        let text = plain(&self.current.join(" "));
        self.current.clear();
        if !self.skip && !text.is_empty() {
            self.done.push(text);
        }
    }
}

/// Tables, link definitions, and code by indentation.
fn is_markup(line: &str, text: &str, first: bool) -> bool {
    text.starts_with('|') || DEFINITION.is_match(text) || (first && line.starts_with("    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readme_becomes_prose() {
        let readme = "\
# Title [![Build](https://img.example/x.svg)](https://ci.example)\n\n\
<p align=\"center\">Hello <b>bold</b></p>\n\n\
[![Badge][badge]][link]\n\n\
A *fast* [parser](https://example.org) of `JSON`,\nin _pure_ Rust and snake_case.\n\n\
```rust\nfn main() {}\n```\n\n    indented code\n\n\
- first item\n- second item\n  goes on\n\n\
| a | b |\n|---|---|\n\n\
[link]: https://example.org\n<!-- a\ncomment -->\n\
## License\n\nMIT or Apache.\n\n### More\n\nAfter the licence.\n\nContributing\n------------\n\nPlease do.\n";
        assert_eq!(
            paragraphs(readme),
            [
                "Hello bold",
                "A fast parser of JSON, in pure Rust and snake_case.",
                "first item",
                "second item goes on",
                "After the licence.",
            ]
        );
    }

    #[test]
    fn a_fence_ends_only_where_its_own_kind_does() {
        assert_eq!(paragraphs("~~~\n```\ncode\n~~~\nprose\n"), ["prose"]);
    }
}
