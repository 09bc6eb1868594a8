//! `cargo xtask gen`: the pages that follow from the methods' cards, written by the command `pleach` itself.
//!
//! `docs/methods/NAME.md` and their list, who works with whom, the schema of job files, and the worked example in
//! `docs/adding-a-method.md`. `lint` fails when one of them is not what would be written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{cmd, ui};

const METHODS: &str = "docs/methods";
const GUIDE: &str = "docs/adding-a-method.md";
const EXAMPLE: &str = "crates/methods/src/adapter/template.rs";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail when a page is stale
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    cmd::run(cmd::cargo(paths).args(["build", "--quiet", "-p", "pleach-cli"]))?;
    if args.check {
        return check(paths);
    }
    let pages = pages(paths)?;
    for old in stale(paths, &pages)? {
        let path = paths.root.join(&old);
        match pages.get(&old) {
            Some(page) => {
                std::fs::create_dir_all(path.parent().context("a page lies in a folder")?)?;
                std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
            }
            None => std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?,
        }
        ui::say("gen", old.display());
    }
    Ok(())
}

/// Fails when a page is not what would be written; `pleach` has been built.
pub(crate) fn check(paths: &Paths) -> Result<()> {
    let stale = stale(paths, &pages(paths)?)?;
    if !stale.is_empty() {
        let list: Vec<_> = stale.iter().map(|path| path.display().to_string()).collect();
        bail!("stale, `cargo xtask gen` writes them anew: {}", list.join(", "));
    }
    ui::say("gen", "all pages are up to date");
    Ok(())
}

/// The pages that differ from what is there, and those that should not be there.
fn stale(paths: &Paths, pages: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let is_stale = |(path, page): (&PathBuf, &String)| {
        let found = std::fs::read_to_string(paths.root.join(path)).unwrap_or_default();
        (found != *page).then(|| path.clone())
    };
    let mut stale: Vec<_> = pages.iter().filter_map(is_stale).collect();
    if let Ok(folder) = std::fs::read_dir(paths.root.join(METHODS)) {
        for entry in folder {
            let path = Path::new(METHODS).join(entry?.file_name());
            if !pages.contains_key(&path) {
                stale.push(path);
            }
        }
    }
    Ok(stale)
}

/// All pages by path.
fn pages(paths: &Paths) -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    let list: Vec<serde_json::Value> = serde_json::from_str(&pleach(paths, &["methods", "-o", "json"])?)?;
    let mut rows = String::new();
    for card in &list {
        let text = |field: &str| card[field].as_str().unwrap_or("-").to_owned();
        let (name, kind) = (text("name"), text("kind"));
        let peft = text("peft_type");
        rows.push_str(&format!(
            "| [`{name}`]({name}.md) | {kind} | {} | {peft} | {} |\n",
            text("status"),
            text("summary")
        ));
        pages.insert(Path::new(METHODS).join(format!("{name}.md")), pleach(paths, &["explain", &name])?);
    }
    let pairs: Vec<serde_json::Value> =
        serde_json::from_str(&pleach(paths, &["methods", "--families", "-o", "json"])?)?;
    let matrix = matrix(&pairs);
    let readme = format!(
        "# Methods\n\nWritten by `cargo xtask gen` from the methods' cards. A new one: [adding a method](../adding-a-method.md).\n\n\
         | name | kind | status | PEFT type | what |\n|---|---|---|---|---|\n{rows}\n{matrix}"
    );
    pages.insert(Path::new(METHODS).join("README.md"), readme);
    pages.insert("docs/job.schema.json".into(), pleach(paths, &["schema"])?);
    let read =
        |path: &str| std::fs::read_to_string(paths.root.join(path)).with_context(|| format!("cannot read {path}"));
    pages.insert(GUIDE.into(), with_example(&read(GUIDE)?, &read(EXAMPLE)?)?);
    Ok(pages)
}

/// Who works with whom, and the reasons of those who do not.
fn matrix(rows: &[serde_json::Value]) -> String {
    let mut families: Vec<&str> = Vec::new();
    let mut lines: BTreeMap<&str, Vec<&serde_json::Value>> = BTreeMap::new();
    for row in rows {
        let family = row["family"].as_str().unwrap_or_default();
        if !families.contains(&family) {
            families.push(family);
        }
        lines.entry(row["method"].as_str().unwrap_or_default()).or_default().push(row);
    }
    let mut page = format!(
        "## Who works with whom\n\nEvery pair with a mark passes the conformance tests; the others are refused by the plan.\n\n| | {} |\n|---|{}\n",
        families.join(" | "),
        ":-:|".repeat(families.len())
    );
    let mut reasons = String::new();
    for (method, cells) in &lines {
        let marks: Vec<_> = cells.iter().map(|cell| if cell["refused"].is_null() { "x" } else { "" }).collect();
        page.push_str(&format!("| `{method}` | {} |\n", marks.join(" | ")));
        for cell in cells.iter().filter(|cell| !cell["refused"].is_null()) {
            let (family, why) =
                (cell["family"].as_str().unwrap_or_default(), cell["refused"].as_str().unwrap_or_default());
            reasons.push_str(&format!("- `{method}` on `{family}`: {why}\n"));
        }
    }
    if !reasons.is_empty() {
        page.push_str(&format!("\n### Why not\n\n{reasons}"));
    }
    page
}

/// The guide with the example between its marks.
fn with_example(guide: &str, example: &str) -> Result<String> {
    let (start, end) = ("<!-- example -->\n", "<!-- end of example -->");
    let from = guide.find(start).with_context(|| format!("{GUIDE} has no mark `{}`", start.trim()))? + start.len();
    let to = guide.find(end).with_context(|| format!("{GUIDE} has no mark `{end}`"))?;
    Ok(format!("{}```rust\n{example}```\n{}", &guide[..from], &guide[to..]))
}

fn pleach(paths: &Paths, args: &[&str]) -> Result<String> {
    let mut command = Command::new(paths.target().join("debug/pleach"));
    command.current_dir(&paths.root).args(args);
    let out = cmd::output(&mut command)?;
    if !out.status.success() {
        bail!("`{}` failed: {}", cmd::show(&command), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_marks_who_works_and_says_why_others_do_not() {
        let rows = [
            json!({"method": "a", "family": "x", "refused": null}),
            json!({"method": "a", "family": "y", "refused": "no table"}),
            json!({"method": "b", "family": "x", "refused": null}),
            json!({"method": "b", "family": "y", "refused": null}),
        ];
        let page = matrix(&rows);
        assert!(page.contains("| | x | y |\n|---|:-:|:-:|\n| `a` | x |  |\n| `b` | x | x |\n"), "{page}");
        assert!(page.ends_with("### Why not\n\n- `a` on `y`: no table\n"), "{page}");
    }

    #[test]
    fn the_example_stands_between_its_marks() {
        let guide = "a\n<!-- example -->\nold\n<!-- end of example -->\nb\n";
        let expected = "a\n<!-- example -->\n```rust\nnew\n```\n<!-- end of example -->\nb\n";
        assert_eq!(with_example(guide, "new\n").unwrap(), expected);
        assert!(with_example("nothing", "new").is_err());
    }
}
