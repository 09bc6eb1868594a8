//! From the text of `source` to an ordered list of local files.

use std::path::{Path, PathBuf};

use pleach_base::{Error, Result, ResultExt, code};
use sha2::{Digest, Sha256};

use crate::dataset::OpenOptions;
use crate::fetch::{Fetch, RemoteFile};

/// How the rows of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    JsonLines,
    Parquet,
}

/// A file of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// As messages show it.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

/// The files of a path, folder, glob or `s3://` URL, sorted by name (byte order).
pub(crate) fn resolve(source: &str, options: &OpenOptions) -> Result<Vec<SourceFile>> {
    let mut files = match source.split_once("://") {
        Some(("file", path)) => local(path)?,
        Some(_) => remote(source, options)?,
        None => local(source)?,
    };
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if files.is_empty() {
        return Err(code::DATA_EMPTY.error(format!("{source}: matches no file")).hint(
            "a folder gives its .jsonl and .parquet files; write a glob such as `data/**/*.jsonl` for folders below it",
        ));
    }
    Ok(files)
}

fn format_of(name: &str) -> Option<Format> {
    match Path::new(name).extension()?.to_str()? {
        "jsonl" | "json" => Some(Format::JsonLines),
        "parquet" => Some(Format::Parquet),
        _ => None,
    }
}

/// Files that a folder stands for: not `.json`, which beside data files is usually a description of them.
fn is_data(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    !file.starts_with('.') && format_of(file).is_some() && !file.ends_with(".json")
}

fn file(path: PathBuf) -> Result<SourceFile> {
    let name = path.display().to_string();
    let format = format_of(&name).ok_or_else(|| unknown_format(&name))?;
    Ok(SourceFile { name, path, format })
}

fn unknown_format(name: &str) -> Error {
    code::DATA_SOURCE
        .error(format!("{name}: a format that is not known"))
        .hint("use .jsonl, .json (one object a line) or .parquet")
}

fn local(source: &str) -> Result<Vec<SourceFile>> {
    let path = Path::new(source);
    if path.is_dir() {
        return folder(path);
    }
    if path.exists() {
        return Ok(vec![file(path.to_owned())?]);
    }
    if !source.contains(['*', '?', '[']) {
        return Err(code::DATA_SOURCE
            .error(format!("{source}: no such file or folder"))
            .hint("check spec.data.source"));
    }
    let cannot = || format!("{source}: cannot be searched");
    let mut files = Vec::new();
    for found in glob::glob_with(source, GLOB).or_code(code::DATA_SOURCE, || format!("{source}: not a glob"))? {
        let found = found.or_code(code::DATA_SOURCE, cannot)?;
        if found.is_file() {
            files.push(file(found)?);
        }
    }
    Ok(files)
}

fn folder(path: &Path) -> Result<Vec<SourceFile>> {
    let cannot = || format!("{}: cannot be listed", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).or_code(code::DATA_SOURCE, cannot)? {
        let found = entry.or_code(code::DATA_SOURCE, cannot)?.path();
        if is_data(&found.display().to_string()) && found.is_file() {
            files.push(file(found)?);
        }
    }
    Ok(files)
}

fn remote(source: &str, options: &OpenOptions) -> Result<Vec<SourceFile>> {
    let Some((fetch, cache)) = options.fetch.as_deref().zip(options.cache.as_deref()) else {
        return Err(code::DATA_SOURCE
            .error(format!("{source}: no object store client is at hand here"))
            .hint("workers read remote sources; here, copy the files to a local folder and name that"));
    };
    let pattern = remote_pattern(source)?;
    let listed = fetch.list(listed_part(source))?;
    let exact = listed.iter().any(|file| file.url == source);
    let folder = format!("{}/", source.trim_end_matches('/'));
    let mut files = Vec::new();
    for found in listed {
        let wanted = match (&pattern, exact) {
            (Some(pattern), _) => pattern.matches_with(&found.url, GLOB),
            (None, true) => found.url == source,
            (None, false) => found.url.strip_prefix(&folder).is_some_and(|name| !name.contains('/') && is_data(name)),
        };
        if wanted {
            let format = format_of(&found.url).ok_or_else(|| unknown_format(&found.url))?;
            files.push(SourceFile { path: cached(fetch, cache, &found)?, name: found.url, format });
        }
    }
    Ok(files)
}

/// `*` stays within a folder, `**` crosses folders, hidden files are matched by name only.
const GLOB: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What is listed to find the files of a source: a glob's folder before its first wildcard.
fn listed_part(source: &str) -> &str {
    match source.find(['*', '?', '[']) {
        Some(wild) => source[..wild].rfind('/').map_or(source, |end| &source[..=end]),
        None => source,
    }
}

fn remote_pattern(source: &str) -> Result<Option<glob::Pattern>> {
    if !source.contains(['*', '?', '[']) {
        return Ok(None);
    }
    glob::Pattern::new(source).map(Some).or_code(code::DATA_SOURCE, || format!("{source}: not a glob"))
}

/// The local copy of a remote file: under a name that changes with its version, renamed into place when complete.
fn cached(fetch: &dyn Fetch, cache: &Path, file: &RemoteFile) -> Result<PathBuf> {
    let cannot = || format!("{}: the cache folder {} cannot be written", file.url, cache.display());
    let identity = format!("{}\n{}\n{}", file.url, file.bytes, file.version);
    let path = cache.join(hex::encode(Sha256::digest(identity)));
    if path.metadata().is_ok_and(|meta| meta.len() == file.bytes) {
        return Ok(path);
    }
    std::fs::create_dir_all(cache).or_code(code::DATA_SOURCE, cannot)?;
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache).or_code(code::DATA_SOURCE, cannot)?;
    let part = scratch.path().join("part");
    fetch.fetch(file, &part)?;
    let got = part.metadata().or_code(code::DATA_SOURCE, cannot)?.len();
    if got != file.bytes {
        return Err(code::DATA_SOURCE
            .error(format!("{}: {got} of {} bytes arrived", file.url, file.bytes))
            .hint("try again"));
    }
    std::fs::rename(&part, &path).or_code(code::DATA_SOURCE, cannot)?;
    Ok(path)
}
