//! Opening a source again: nothing is read that was read before, and nothing is believed that changed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use pleach_base::{Result, code};
use pleach_data::{Dataset, OpenOptions, RowCache};
use pleach_spec::job::DataTask;
use rstest::rstest;
use serde_json::json;

use super::{encoder, parquet_files, spec, write};

struct Cached {
    folder: tempfile::TempDir,
    source: PathBuf,
}

impl Cached {
    fn lines(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for row in 0..rows {
            let _ = match row % 100 {
                7 => writeln!(text, "{{\"other\": {row}}}"),
                9 => writeln!(text, "\n  {{\"text\": \"the cat {row}\"}} \r"),
                _ => writeln!(text, "{{\"text\": \"the cat {row} {}\"}}", "x".repeat(row % 300)),
            };
        }
        let source = write(folder.path(), "in/rows.jsonl", text);
        Self { folder, source }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn open_with(&self, cached: bool, allowed: u64) -> Result<Dataset> {
        let rows = cached.then(|| RowCache { folder: self.cache(), least_bytes: 0 });
        let options = OpenOptions { max_bad_rows: allowed, rows, ..OpenOptions::default() };
        let spec = spec(&self.source, DataTask::CausalLm, &json!({}));
        Dataset::open_source(self.source.to_str().unwrap(), &encoder(&spec), &options)
    }

    fn open(&self, cached: bool) -> Dataset {
        self.open_with(cached, 1_000).unwrap()
    }
}

fn assert_same(one: &Dataset, other: &Dataset) {
    assert_eq!((one.len(), one.digest(), one.bad_count()), (other.len(), other.digest(), other.bad_count()));
    assert_eq!(one.bad_rows(), other.bad_rows());
    for row in (0..one.len()).step_by(37).chain([one.len() - 1]) {
        assert_eq!(one.row(row).unwrap(), other.row(row).unwrap());
    }
}

/// Bytes that this thread has asked to read so far.
fn read_so_far() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_second_open_reads_the_index_alone() {
    let source = Cached::lines(60_000);
    let size = source.source.metadata().unwrap().len();
    let start = read_so_far();
    let first = source.open(true);
    let between = read_so_far();
    let second = source.open(true);
    let end = read_so_far();
    assert!(between - start > size, "the first open reads all {size} bytes");
    assert!(end - between < size / 10, "the second open read {} of {size} bytes", end - between);
    assert_same(&first, &second);
    assert_same(&first, &source.open(false));
}

#[rstest]
#[case::longer(|path: &Path| append(path, b"{\"text\": \"more\"}\n"))]
#[case::touched(|path: &Path| std::fs::write(path, std::fs::read(path).unwrap()).unwrap())]
#[case::changed(|path: &Path| { let mut all = std::fs::read(path).unwrap(); all[1] = b'!'; std::fs::write(path, all).unwrap(); })]
fn a_file_that_changed_is_scanned_again(#[case] change: fn(&Path)) {
    let source = Cached::lines(1_000);
    source.open(true);
    change(&source.source);
    let start = read_so_far();
    let again = source.open(true);
    assert!(read_so_far() - start > source.source.metadata().unwrap().len());
    assert_same(&again, &source.open(false));
    assert_same(&again, &source.open(true));
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_damaged_index_is_no_index() {
    let source = Cached::lines(500);
    let first = source.open(true);
    for entry in std::fs::read_dir(source.cache()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() - 9;
        bytes[middle] ^= 4;
        std::fs::write(&path, bytes).unwrap();
    }
    assert_same(&first, &source.open(true));
    assert_same(&first, &source.open(true));
}

#[test]
fn too_many_malformed_rows_are_too_many_from_the_index_as_well() {
    let source = Cached::lines(1_000);
    for allowed in [0, 2, 9] {
        let scanned = source.open_with(false, allowed).expect_err("ten rows are malformed");
        source.open(true);
        let recalled = source.open_with(true, allowed).expect_err("from the index");
        assert_eq!((scanned.code(), scanned.message()), (code::DATA_ROW, recalled.message()));
    }
    source.open_with(true, 10).expect("as many as there are");
}

#[test]
fn what_a_job_asks_of_a_row_has_its_own_index() {
    let source = Cached::lines(300);
    source.open(true);
    let spec = spec(&source.source, DataTask::CausalLm, &json!({"text": "{other}", "max_bad_rows": 1_000}));
    let rows = Some(RowCache { folder: source.cache(), least_bytes: 0 });
    let options = OpenOptions { max_bad_rows: 1_000, rows, ..OpenOptions::default() };
    let dataset = Dataset::open_source(source.source.to_str().unwrap(), &encoder(&spec), &options).unwrap();
    assert_eq!((dataset.len(), dataset.bad_count()), (3, 297), "the rows that have no text");
}

#[test]
fn rows_of_parquet_files_are_kept_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..2_000).map(|row| format!("the cat {row}")).collect();
    let rows: Vec<parquet_files::Row<'_>> =
        texts.iter().enumerate().map(|(n, text)| ((n % 50 != 3).then_some(text.as_str()), 1, None)).collect();
    let source = parquet_files::parquet(folder.path(), "x.parquet", &[&rows[..900], &rows[900..]]);
    let source = Cached { folder, source };
    let first = source.open(true);
    assert_eq!((first.len(), first.bad_count()), (1_960, 40));
    let second = source.open(true);
    assert_same(&first, &second);
    assert_same(&first, &source.open(false));
    let kept = std::fs::read_dir(source.cache()).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.into_iter().find(|path| path.extension().is_some_and(|end| end == "jsonl")).unwrap();
    append(&kept, b"{}\n");
    assert_same(&first, &source.open(true));
    assert!(!std::fs::read_to_string(&kept).unwrap().ends_with("{}\n"), "made anew");
}
