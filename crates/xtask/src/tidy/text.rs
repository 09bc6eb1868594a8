//! What no file may say: hosts of package registries, absolute paths of one machine, work left undone.

use std::sync::LazyLock;

use regex::Regex;

struct Rule {
    pattern: Regex,
    why: &'static str,
}

/// Patterns are put together from pieces, so that this file does not break its own rules.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let hosts = ["python", "hosted|py", "pi|npm", "js|gol", "ang|deb", "ian|cra", "tes"].concat();
    let rule = |pattern: String, why| Regex::new(&pattern).ok().map(|pattern| Rule { pattern, why });
    [
        rule(
            format!(r"https?://[^\s/]*({hosts})\.(org|io|com|net)"),
            "names the host of a package registry; name the package instead",
        ),
        rule(
            [r"(^|[\s", "\"'`=:(])/(wo", "rk|ro", r"ot|fa", r"rm)/"].concat(),
            "holds an absolute path of one machine",
        ),
        rule(
            [r"\bto", r"do!\(|\bunim", r"plemented!\(|\bFI", r"XME\b|\bXX", r"X\b"].concat(),
            "leaves work undone; do it or file an issue",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
});

/// Lock files say where packages come from, and their writer decides how.
const EXEMPT: &[&str] = &["Cargo.lock"];

/// Findings of one file.
pub(super) fn forbidden(name: &str, content: &str) -> Vec<String> {
    if EXEMPT.contains(&name) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in content.lines().enumerate() {
        let broken = RULES.iter().filter(|rule| rule.pattern.is_match(line));
        findings.extend(broken.map(|rule| format!("{name}:{}: {}", number + 1, rule.why)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rules_compile_and_find_what_they_are_for() {
        assert_eq!(RULES.len(), 3);
        for bad in [
            ["see https://files.python", "hosted.org/x"].concat(),
            ["https://static.cra", "tes.io/y"].concat(),
            ["cd /wo", "rk/main"].concat(),
            ["path=\"/ro", "ot/.cache\""].concat(),
            ["to", "do!()"].concat(),
            ["// FI", "XME later"].concat(),
        ] {
            assert_eq!(forbidden("a.rs", &bad).len(), 1, "{bad}");
        }
        for good in ["https://example.org/crates", "a/work/b", "the root/ folder", "todo list", "docs.rs/serde"] {
            assert!(forbidden("a.rs", good).is_empty(), "{good}");
        }
        assert!(forbidden("Cargo.lock", &["https://static.cra", "tes.io/y"].concat()).is_empty());
    }
}
