//! Relative links in Markdown lead somewhere.

use std::path::Path;

use crate::paths::Paths;

/// Links of one page that lead nowhere.
pub(super) fn check(paths: &Paths, file: &Path, content: &str) -> Vec<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in content.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for target in targets(line) {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            if !paths.root.join(folder).join(path).exists() {
                findings.push(format!("{}:{}: the link to `{path}` leads nowhere", file.display(), number + 1));
            }
        }
    }
    findings
}

/// What stands in `](...)`, outside inline code.
fn targets(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (index, _) in line.match_indices("](") {
        let in_code = line[..index].matches('`').count() % 2 == 1;
        if let Some(end) = line[index + 2..].find(')').filter(|_| !in_code) {
            found.push(&line[index + 2..index + 2 + end]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().into(), cache: dir.path().into() };
        std::fs::create_dir(dir.path().join("docs")).unwrap();
        std::fs::write(dir.path().join("docs/there.md"), "").unwrap();
        let page = "[a](there.md#part) [b](https://example.org) `[c](code)`\n```\n[d](fenced)\n```\n[e](../gone.md)\n";
        let findings = check(&paths, Path::new("docs/page.md"), page);
        assert_eq!(findings, ["docs/page.md:5: the link to `../gone.md` leads nowhere"]);
    }
}
