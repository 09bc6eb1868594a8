//! `cargo xtask new-method NAME`: one new file and one new line, from the worked example that CI compiles.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::ui;

const FOLDER: &str = "crates/methods/src/adapter";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What a job file will say in `method:`, such as `my_adapter`
    name: String,
}

pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    write(&paths.root.join(FOLDER), &args.name)?;
    ui::say("wrote", format!("{FOLDER}/{}.rs, and one word in {FOLDER}/mod.rs", args.name));
    ui::say("next", "docs/adding-a-method.md; then `cargo test -p pleach-methods --features torch`");
    Ok(())
}

/// Writes the file and the word into a folder of methods.
fn write(folder: &Path, name: &str) -> Result<()> {
    let (first, rest) = (name.chars().next(), name.chars().skip(1));
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !first.is_some_and(|c| c.is_ascii_lowercase()) || !rest.into_iter().all(fits) {
        bail!("`{name}` is no name for a method: lower-case letters, digits and `_`, a letter first");
    }
    let file = folder.join(format!("{name}.rs"));
    if file.exists() || folder.join(name).exists() {
        bail!("{} exists already", file.display());
    }
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let registry = folder.join("mod.rs");
    let (template, listed) = (read(&folder.join("template.rs"))?, register(&read(&registry)?, name)?);
    std::fs::write(&file, skeleton(&template, name)).with_context(|| format!("cannot write {}", file.display()))?;
    std::fs::write(&registry, listed).with_context(|| format!("cannot write {}", registry.display()))
}

/// The example under another name.
fn skeleton(template: &str, name: &str) -> String {
    let title: String = name.split('_').map(capitalised).collect();
    template
        .replace("it is the worked example of docs/adding-a-method.md", "it still is the example it began as")
        .replace("\"gain\"", &format!("\"{name}\""))
        .replace("Gain", &title)
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// The registry with the word in its place.
fn register(source: &str, name: &str) -> Result<String> {
    let start = source.find("\nregistry! {\n").context("mod.rs has no `registry! {` with a word a line")?;
    let list = start + "\nregistry! {\n".len();
    let end = list + source[list..].find('}').context("the registry does not end")?;
    let mut words: Vec<&str> = source[list..end].lines().map(|line| line.trim().trim_end_matches(',')).collect();
    if words.contains(&name) {
        bail!("`{name}` is in the registry already");
    }
    let at = words.partition_point(|word| *word < name);
    words.insert(at, name);
    let lines: String = words.iter().map(|word| format!("    {word},\n")).collect();
    Ok(format!("{}{lines}{}", &source[..list], &source[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_one_file_and_one_line() {
        let real = Paths::find().unwrap().root.join(FOLDER);
        let copy = tempfile::tempdir().unwrap();
        for file in ["mod.rs", "template.rs"] {
            std::fs::copy(real.join(file), copy.path().join(file)).unwrap();
        }
        write(copy.path(), "my_gain").unwrap();
        let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
        let (before, after) = (read(real.join("mod.rs")), read(copy.path().join("mod.rs")));
        let new: Vec<_> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
        assert_eq!((new, after.lines().count()), (vec!["    my_gain,"], before.lines().count() + 1));
        let file = read(copy.path().join("my_gain.rs"));
        assert!(file.contains("name: \"my_gain\"") && file.contains("struct MyGain") && !file.contains("\"gain\""));
        assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 3);

        assert!(write(copy.path(), "my_gain").unwrap_err().to_string().contains("exists already"));
        assert!(write(copy.path(), "My-Gain").unwrap_err().to_string().contains("is no name"));
    }

    #[test]
    fn words_stay_in_order() {
        let source = "a\nregistry! {\n    b,\n    d,\n}\n";
        assert_eq!(register(source, "c").unwrap(), "a\nregistry! {\n    b,\n    c,\n    d,\n}\n");
        assert_eq!(register(source, "e").unwrap(), "a\nregistry! {\n    b,\n    d,\n    e,\n}\n");
        assert!(register(source, "b").is_err());
    }
}
