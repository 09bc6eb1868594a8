//! Folders on this machine.

use std::path::Path;

use pleach_base::{Result, ResultExt, code};

/// Files that are weights in some format: never copied beside new ones.
const WEIGHTS: &[&str] = &["safetensors", "bin", "pt", "pth", "h5", "msgpack", "onnx", "gguf", "ckpt"];

/// Creates the folder `to`, which must be new or empty: nothing of anyone's is overwritten or mixed with.
///
/// # Errors
/// `BAD_VALUE` when it has something in it, `IO` when it cannot be created.
pub fn new_folder(to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).or_code(code::IO, || format!("{}: cannot be created", to.display()))?;
    let mut entries = to.read_dir().or_code(code::IO, || format!("{}: cannot be read", to.display()))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(code::BAD_VALUE
            .error(format!("{}: the folder is not empty", to.display()))
            .hint("name a new folder: nothing is overwritten")),
    }
}

/// Writes a file beside its place and renames it, so that no reader sees half of it.
///
/// # Errors
/// `IO`, and those of `write`, which is given the path to write to.
#[cfg(feature = "torch")]
pub(super) fn whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    write(partial)?;
    std::fs::rename(partial, path).or_code(code::IO, || format!("{}: cannot be written", path.display()))
}

/// A JSON object as a file, as people's tools write them.
///
/// # Errors
/// `IO`.
#[cfg(feature = "torch")]
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).or_code(code::INTERNAL, || "cannot write JSON".to_owned())?;
    let failed = || format!("{}: cannot be written", path.display());
    whole(path, |partial| std::fs::write(partial, text + "\n").or_code(code::IO, failed))
}

/// Copies what stands beside a model's weights: tokenizer, generation settings, pooling, and the folders of such files.
/// Left out: weights, `config.json` at the top, adapters, hidden files.
///
/// # Errors
/// `IO` naming the file.
#[cfg_attr(not(feature = "torch"), allow(dead_code))]
pub(super) fn copy_companions(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut copied = Vec::new();
    copy_into(from, to, "", &mut copied)?;
    copied.sort();
    Ok(copied)
}

fn copy_into(from: &Path, to: &Path, below: &str, copied: &mut Vec<String>) -> Result<()> {
    let entries = from.read_dir().or_code(code::IO, || format!("{}: cannot be read", from.display()))?;
    for entry in entries {
        let entry = entry.or_code(code::IO, || format!("{}: cannot be read", from.display()))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let skipped = name.starts_with('.') || name.starts_with("adapter_") || is_weights(&path);
        if skipped || (below.is_empty() && name == "config.json") {
            continue;
        }
        if path.is_dir() {
            copy_into(&path, &to.join(&name), &format!("{below}{name}/"), copied)?;
        } else {
            let failed = || format!("{}: cannot be copied to {}", path.display(), to.display());
            std::fs::create_dir_all(to).or_code(code::IO, failed)?;
            std::fs::copy(&path, to.join(&name)).or_code(code::IO, failed)?;
            copied.push(format!("{below}{name}"));
        }
    }
    Ok(())
}

fn is_weights(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    WEIGHTS.contains(&extension) || name.ends_with(".index.json")
}
