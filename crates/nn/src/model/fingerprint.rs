//! Which weights these are, as one hash.

use std::path::Path;
use std::time::UNIX_EPOCH;

use pleach_base::{Result, ResultExt, code};
use sha2::{Digest, Sha256};

use super::ModelDir;

/// The fingerprint of `dir`, remembered in `cache` when there is such a folder. A cache that cannot be written is no
/// error: the next process computes again.
pub(super) fn of(dir: &ModelDir, cache: Option<&Path>) -> Result<String> {
    let memo = cache.map(|folder| Ok::<_, pleach_base::Error>(folder.join(stamp(dir)?))).transpose()?;
    if let Some(known) = memo.as_deref().and_then(recall) {
        return Ok(known);
    }
    let print = compute(dir);
    if let Some(memo) = &memo
        && let Err(error) = remember(memo, &print)
    {
        tracing::debug!(path = %memo.display(), %error, "fingerprint not remembered");
    }
    Ok(print)
}

fn compute(dir: &ModelDir) -> String {
    let mut hash = Sha256::new();
    for name in dir.names() {
        let Some(entry) = dir.get(name) else { continue };
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(format!("{:?}", entry.dtype));
        hash.update((entry.shape.len() as u64).to_le_bytes());
        for size in entry.shape {
            hash.update((*size as u64).to_le_bytes());
        }
        hash.update(entry.bytes);
    }
    hex::encode(hash.finalize())
}

/// Name of the memo: path, size and time of every file.
fn stamp(dir: &ModelDir) -> Result<String> {
    let mut hash = Sha256::new();
    for file in dir.files() {
        let path = file.path();
        let meta = std::fs::metadata(path).or_code(code::IO, || format!("{}: cannot be read", path.display()))?;
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let time = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        hash.update(real.as_os_str().as_encoded_bytes());
        hash.update(meta.len().to_le_bytes());
        hash.update(time.as_nanos().to_le_bytes());
    }
    Ok(hex::encode(hash.finalize()))
}

fn recall(memo: &Path) -> Option<String> {
    let text = std::fs::read_to_string(memo).ok()?;
    let print = text.trim();
    (print.len() == 64 && print.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| print.to_owned())
}

/// Written beside and renamed, so that no reader sees half of it.
fn remember(memo: &Path, print: &str) -> std::io::Result<()> {
    let folder = memo.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let partial = memo.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, print)?;
    std::fs::rename(partial, memo)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(folder: &Path, value: f32) -> ModelDir {
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        let bytes = value.to_le_bytes();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes).unwrap();
        safetensors::serialize_to_file([("w", view)], None, &folder.join("model.safetensors")).unwrap();
        ModelDir::open(folder).unwrap()
    }

    #[test]
    fn a_fingerprint_follows_the_bytes_and_is_remembered() {
        let (a, b, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = of(&model(a.path(), 1.0), None).unwrap();
        assert_eq!(first, of(&model(b.path(), 1.0), None).unwrap(), "where the folder is does not matter");
        assert_ne!(first, of(&model(b.path(), 2.0), None).unwrap(), "a changed value matters");

        let dir = model(a.path(), 1.0);
        assert_eq!(of(&dir, Some(cache.path())).unwrap(), first);
        let memo = cache.path().join(stamp(&dir).unwrap());
        assert_eq!(std::fs::read_to_string(&memo).unwrap(), first);
        std::fs::write(&memo, "0".repeat(64)).unwrap();
        assert_eq!(of(&dir, Some(cache.path())).unwrap(), "0".repeat(64), "the memo is what is read");
        std::fs::write(&memo, "damaged").unwrap();
        assert_eq!(of(&dir, Some(cache.path())).unwrap(), first, "a damaged memo is not");
    }
}
