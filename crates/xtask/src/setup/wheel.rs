//! Reading wheels: checksum, and taking chosen files out.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::ui;

/// sha256 of a file, in hex.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// Takes the files for which `place` gives a path below `to`, and returns how many; an error if there was none.
pub(crate) fn extract(wheel: &Path, to: &Path, place: impl Fn(&str) -> Option<PathBuf>) -> Result<usize> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::open(wheel).with_context(|| format!("cannot read {}", wheel.display()))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).with_context(|| format!("{name} is not a zip file"))?;
    let chosen = choose(&mut archive, &place)?;
    if chosen.is_empty() {
        bail!("{name} holds none of the expected files");
    }
    let bar = ui::bytes_bar(chosen.iter().map(|(_, _, bytes)| bytes).sum(), "unpacking");
    for (index, target, _) in &chosen {
        let target = to.join(target);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut entry = archive.by_index(*index)?;
        let mut out = File::create(&target).with_context(|| format!("cannot create {}", target.display()))?;
        copy(&mut entry, &mut out, &bar).with_context(|| format!("cannot write {}", target.display()))?;
    }
    bar.finish_and_clear();
    Ok(chosen.len())
}

type Chosen = Vec<(usize, PathBuf, u64)>;

fn choose(archive: &mut zip::ZipArchive<BufReader<File>>, place: &impl Fn(&str) -> Option<PathBuf>) -> Result<Chosen> {
    let mut chosen = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        if entry.is_dir() {
            continue;
        }
        let Some(inside) = entry.enclosed_name() else { bail!("{} leaves its archive", entry.name()) };
        if let Some(target) = place(&inside.to_string_lossy()) {
            chosen.push((index, target, entry.size()));
        }
    }
    Ok(chosen)
}

fn copy(from: &mut impl Read, to: &mut impl Write, bar: &indicatif::ProgressBar) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return to.flush();
        }
        to.write_all(&buffer[..n])?;
        bar.inc(n as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(dir: &Path, names: &[&str]) -> PathBuf {
        let path = dir.join("x.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for name in names {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    #[test]
    fn chosen_files_land_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = archive(dir.path(), &["torch/lib/a.so", "torch/bin/b", "torch/include/c/d.h"]);
        let place = |name: &str| name.strip_prefix("torch/").filter(|rest| !rest.starts_with("bin")).map(PathBuf::from);
        assert_eq!(extract(&wheel, dir.path(), place).unwrap(), 2);
        assert_eq!(fs::read_to_string(dir.path().join("include/c/d.h")).unwrap(), "torch/include/c/d.h");
        assert!(!dir.path().join("bin").exists());
    }

    #[test]
    fn an_archive_without_them_or_with_a_way_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = archive(dir.path(), &["other/file"]);
        let error = extract(&wheel, dir.path(), |_| None).unwrap_err().to_string();
        assert!(error.contains("none of the expected"), "{error}");
        let wheel = archive(dir.path(), &["../../escape"]);
        let error = extract(&wheel, dir.path(), |name| Some(name.into())).unwrap_err().to_string();
        assert!(error.contains("leaves its archive"), "{error}");
    }
}
