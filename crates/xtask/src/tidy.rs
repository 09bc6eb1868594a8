//! The rules of this repository that no compiler knows: file sizes, module headers, error pages, links, what must not be said.

mod links;
mod text;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cmd;
use crate::paths::Paths;

/// Lines of the longest source file.
const MAX_LINES: usize = 900;
/// Lines of the median source file.
const MAX_MEDIAN: usize = 180;
/// Bytes of the largest file.
const MAX_BYTES: u64 = 1 << 20;

/// All findings, one line each.
pub(crate) fn check(paths: &Paths) -> Result<Vec<String>> {
    let files = cmd::tracked(paths)?;
    let mut findings = Vec::new();
    let mut lengths = Vec::new();
    for file in &files {
        let full = paths.root.join(file);
        let name = file.display().to_string();
        findings.extend(size(&name, fs::metadata(&full)?.len()));
        let bytes = fs::read(&full).with_context(|| format!("cannot read {name}"))?;
        let Ok(content) = String::from_utf8(bytes) else { continue };
        findings.extend(text::forbidden(&name, &content));
        if name.ends_with(".rs") {
            lengths.push(content.lines().count());
            findings.extend(source(&name, &content));
        }
        if name.ends_with(".md") {
            findings.extend(links::check(paths, file, &content));
        }
    }
    findings.extend(median(lengths));
    findings.extend(error_pages(paths, &files)?);
    Ok(findings)
}

fn size(name: &str, bytes: u64) -> Option<String> {
    (bytes > MAX_BYTES).then(|| format!("{name}: {bytes} bytes; nothing above {MAX_BYTES} is kept here"))
}

fn source(name: &str, content: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = content.lines().count();
    if lines > MAX_LINES {
        findings.push(format!("{name}: {lines} lines; split it, the limit is {MAX_LINES}"));
    }
    // `x/tests.rs` belongs to `x.rs`, which has one.
    let headed = content.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//!"));
    if !headed && !name.ends_with("/tests.rs") {
        findings.push(format!("{name}:1: begins with no `//!` that says what it is for"));
    }
    findings
}

fn median(mut lengths: Vec<usize>) -> Option<String> {
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
    (median > MAX_MEDIAN).then(|| format!("the median source file has {median} lines; the limit is {MAX_MEDIAN}"))
}

/// Every code has its page and every page its code; the title names it.
fn error_pages(paths: &Paths, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut codes = BTreeSet::new();
    let pattern = regex::Regex::new(r#"= "(PL\d{4})","#)?;
    for file in files.iter().filter(|file| file.starts_with("crates/base/src/codes")) {
        let content = fs::read_to_string(paths.root.join(file))?;
        codes.extend(pattern.captures_iter(&content).map(|found| found[1].to_owned()));
    }
    let mut findings = Vec::new();
    let mut pages = BTreeSet::new();
    for file in files.iter().filter(|file| file.starts_with("docs/errors")) {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !stem.starts_with("PL") {
            continue;
        }
        let content = fs::read_to_string(paths.root.join(file))?;
        findings.extend(page(file, &stem, &content));
        pages.insert(stem);
    }
    findings
        .extend(codes.difference(&pages).map(|code| format!("docs/errors/{code}.md: missing, the code {code} exists")));
    findings.extend(pages.difference(&codes).map(|page| format!("docs/errors/{page}.md: no code {page} exists")));
    Ok(findings)
}

fn page(file: &Path, stem: &str, content: &str) -> Option<String> {
    let titled = content.starts_with(&format!("# {stem}: "));
    (!titled).then(|| format!("{}:1: must begin with `# {stem}: `", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_headerless_and_large_files_are_found() {
        assert!(source("a.rs", "//! Good.\nfn main() {}\n").is_empty());
        assert!(source("a.rs", "\nfn main() {}\n")[0].contains("begins with no `//!`"));
        assert!(source("x/tests.rs", "use super::*;\n").is_empty());
        assert!(source("a.rs", &format!("//! x\n{}", "\n".repeat(MAX_LINES)))[0].contains("901 lines"));
        assert!(size("a", MAX_BYTES).is_none() && size("a", MAX_BYTES + 1).is_some());
        assert!(median(vec![1, 1000, 2]).is_none() && median(vec![1, 1000, 2000]).is_some());
    }

    #[test]
    fn a_page_names_its_code() {
        assert!(page(Path::new("docs/errors/PL0001.md"), "PL0001", "# PL0001: Internal\n").is_none());
        assert!(page(Path::new("docs/errors/PL0001.md"), "PL0001", "# PL0002: Other\n").is_some());
    }

    #[test]
    fn codes_without_pages_and_pages_without_codes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().into(), cache: dir.path().join("cache") };
        for (name, content) in [
            ("crates/base/src/codes/x.rs", "A = \"PL0001\", Internal;\nB = \"PL0002\", Internal;"),
            ("docs/errors/PL0001.md", "# PL0001: A\n"),
            ("docs/errors/PL0009.md", "# PL0009: Gone\n"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let files: Vec<PathBuf> = ["crates/base/src/codes/x.rs", "docs/errors/PL0001.md", "docs/errors/PL0009.md"]
            .map(PathBuf::from)
            .to_vec();
        let findings = error_pages(&paths, &files).unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("PL0002.md: missing") && findings[1].contains("no code PL0009"));
    }
}
