//! Paths, folders, globs and remote sources.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pleach_base::{Code, Result, code};
use pleach_data::{Dataset, Fetch, OpenOptions, RemoteFile};
use pleach_spec::job::DataTask;
use rstest::rstest;
use serde_json::json;

use super::{encoder, spec, write};

fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files =
        ["b.jsonl", "a.jsonl", "B.jsonl", "notes.txt", "info.json", ".hidden.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"];
    for name in files {
        write(folder.path(), name, json!({"text": "a", "file": name}).to_string());
    }
    folder
}

fn open(source: &str, options: &OpenOptions) -> Result<Vec<String>> {
    let spec = spec(source.as_ref(), DataTask::CausalLm, &json!({}));
    let dataset = Dataset::open_source(source, &encoder(&spec), options)?;
    let name = |row| Ok(dataset.row(row)?.fields["file"].as_str().unwrap().to_owned());
    (0..dataset.len()).map(name).collect()
}

#[rstest]
#[case("", &["B.jsonl", "a.jsonl", "b.jsonl"])]
#[case("/*.jsonl", &["B.jsonl", "a.jsonl", "b.jsonl"])]
#[case("/**/*.jsonl", &["B.jsonl", "a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"])]
#[case("/info.json", &["info.json"])]
#[case("/[ab].jsonl", &["a.jsonl", "b.jsonl"])]
fn a_source_gives_its_files_in_order(#[case] tail: &str, #[case] names: &[&str]) {
    let folder = tree();
    let source = format!("{}{tail}", folder.path().display());
    assert_eq!(open(&source, &OpenOptions::default()).unwrap(), names);
    assert_eq!(open(&format!("file://{source}"), &OpenOptions::default()).unwrap(), names);
}

#[rstest]
#[case("/none.jsonl", code::DATA_SOURCE)]
#[case("/none/", code::DATA_SOURCE)]
#[case("/*.parquet", code::DATA_EMPTY)]
#[case("/notes.txt", code::DATA_SOURCE)]
#[case("/***", code::DATA_SOURCE)]
fn a_source_without_files_is_refused(#[case] tail: &str, #[case] code: Code) {
    let folder = tree();
    let error = open(&format!("{}{tail}", folder.path().display()), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.hint_text().is_some() || tail == "/***");
}

#[test]
fn files_without_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.jsonl", "\n \n");
    let options = OpenOptions { max_bad_rows: 5, ..OpenOptions::default() };
    assert_eq!(open(path.to_str().unwrap(), &options).unwrap_err().code(), code::DATA_EMPTY);
    std::fs::write(&path, "{}\n").unwrap();
    let error = open(path.to_str().unwrap(), &options).unwrap_err();
    assert_eq!(error.code(), code::DATA_EMPTY);
    assert!(error.hint_text().unwrap().contains("a.jsonl:1: field `text` is missing"), "{error:?}");
}

#[test]
fn a_json_array_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.json", "[\n {\"text\": \"a\"},\n {\"text\": \"b\"}\n]\n");
    let error = open(path.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code(), code::DATA_SOURCE);
    assert!(error.message().ends_with("one JSON array instead of one object a line"), "{error}");
}

#[test]
fn more_files_than_stay_open_are_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..140 {
        let name = format!("{number:03}.jsonl");
        write(folder.path(), &name, json!({"text": "a", "file": name}).to_string());
    }
    let names = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!(names, (0..140).map(|number| format!("{number:03}.jsonl")).collect::<Vec<_>>());
}

/// A bucket that is a folder, counting downloads.
#[derive(Debug)]
struct Bucket {
    folder: PathBuf,
    fetched: AtomicU32,
    cut_short: bool,
}

impl Fetch for Bucket {
    fn list(&self, url: &str) -> Result<Vec<RemoteFile>> {
        let pattern = format!("{}/**/*", self.folder.display());
        let files = glob::glob(&pattern).unwrap().map(|found| found.unwrap()).filter(|found| found.is_file());
        let listed = files.map(|path| RemoteFile {
            url: format!("s3://bucket/{}", path.strip_prefix(&self.folder).unwrap().display()),
            bytes: path.metadata().unwrap().len(),
            version: format!("{:?}", std::fs::read(&path).unwrap()),
        });
        let folder = format!("{}/", url.trim_end_matches('/'));
        Ok(listed.filter(|file| file.url == url || file.url.starts_with(&folder)).collect())
    }

    fn fetch(&self, file: &RemoteFile, to: &Path) -> Result<()> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let bytes = std::fs::read(self.folder.join(&file.url["s3://bucket/".len()..])).unwrap();
        let end = if self.cut_short { bytes.len() / 2 } else { bytes.len() };
        std::fs::write(to, &bytes[..end]).map_err(|error| code::IO.error("write").caused_by(error))
    }
}

fn bucket(folder: &Path, cut_short: bool) -> Arc<Bucket> {
    Arc::new(Bucket { folder: folder.to_owned(), fetched: AtomicU32::new(0), cut_short })
}

#[test]
fn a_remote_source_is_fetched_once() {
    let (folder, cache) = (tree(), tempfile::tempdir().unwrap());
    let bucket = bucket(folder.path(), false);
    let fetch: Arc<dyn Fetch> = Arc::<Bucket>::clone(&bucket);
    let options = OpenOptions { max_bad_rows: 0, fetch: Some(fetch), cache: Some(cache.path().join("x")), rows: None };
    let names = open("s3://bucket/deep/**/*.jsonl", &options).unwrap();
    assert_eq!(names, ["deep/c.jsonl", "deep/er/d.jsonl"]);
    assert_eq!(open("s3://bucket/deep", &options).unwrap(), ["deep/c.jsonl"]);
    assert_eq!(open("s3://bucket/deep/", &options).unwrap(), ["deep/c.jsonl"]);
    assert_eq!(open("s3://bucket/info.json", &options).unwrap(), ["info.json"]);
    assert_eq!(open("s3://bucket/*.jsonl", &options).unwrap(), ["B.jsonl", "a.jsonl", "b.jsonl"]);
    assert_eq!(open("s3://bucket/deep/?.jsonl", &options).unwrap(), ["deep/c.jsonl"]);
    assert_eq!(open("s3://bucket/de*/c.jsonl", &options).unwrap(), ["deep/c.jsonl"]);
    assert_eq!(bucket.fetched.load(Ordering::Relaxed), 6);
    assert_eq!(open("s3://bucket/none", &options).unwrap_err().code(), code::DATA_EMPTY);

    // Another content of the same name and size is another version.
    write(folder.path(), "deep/c.jsonl", json!({"text": "a", "file": "deep/C.jsonl"}).to_string());
    assert_eq!(open("s3://bucket/deep/c.jsonl", &options).unwrap(), ["deep/C.jsonl"]);
    assert_eq!(bucket.fetched.load(Ordering::Relaxed), 7);
    assert_eq!(std::fs::read_dir(cache.path().join("x")).unwrap().count(), 7);
}

#[test]
fn half_a_download_is_not_kept() {
    let (folder, cache) = (tree(), tempfile::tempdir().unwrap());
    let fetch: Arc<dyn Fetch> = bucket(folder.path(), true);
    let options = OpenOptions { max_bad_rows: 0, fetch: Some(fetch), cache: Some(cache.path().to_owned()), rows: None };
    let error = open("s3://bucket/a.jsonl", &options).unwrap_err();
    assert_eq!(error.code(), code::DATA_SOURCE);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_remote_source_without_a_client_says_so() {
    let error = open("s3://bucket/a.jsonl", &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code(), code::DATA_SOURCE);
    assert!(error.message().starts_with("s3://bucket/a.jsonl: no object store client"), "{error}");
}
