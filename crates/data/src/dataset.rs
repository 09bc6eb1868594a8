//! An opened source: which of its rows are usable, in which order, and the bytes of each on demand.

mod index;
mod rows;
mod sidecar;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use pleach_base::{Result, code};
use pleach_spec::job::DataSpec;
use sha2::{Digest, Sha256};

use crate::encode::Encoder;
use crate::fetch::Fetch;
use crate::files::{Handle, RowRef};
use crate::row::{BadRow, Fault, Place, Row};
use crate::source;

/// Rows of a shard: the unit that is leased to workers and written to the ledger.
pub const SHARD_ROWS: u64 = 1_024;

/// How to open a source.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Malformed rows that are skipped and counted before opening fails.
    pub max_bad_rows: u64,
    /// Client for `s3://` sources.
    pub fetch: Option<Arc<dyn Fetch>>,
    /// Folder for copies of remote files, kept between runs.
    pub cache: Option<PathBuf>,
    /// Where what a pass over a file found is kept, so that the file is not read again; see [`RowCache`].
    pub rows: Option<RowCache>,
}

/// A folder for indexes of rows. It may be emptied at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCache {
    /// The folder.
    pub folder: PathBuf,
    /// Smaller files are read anew each time.
    pub least_bytes: u64,
}

impl RowCache {
    /// The [cache folder](pleach_base::cache_folder) `rows`, for files of 4 MiB and more; none where there is none.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        Some(Self { folder: pleach_base::cache_folder("rows")?, least_bytes: 4 << 20 })
    }
}

/// A range of rows of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: u64,
    /// At most [`SHARD_ROWS`] rows.
    pub rows: Range<u64>,
}

/// The usable rows of a source, numbered from 0 in the order of files and lines. Cheap to read from many threads.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<DataFile>,
    /// Number of the first row of each file.
    starts: Vec<u64>,
    rows: u64,
    bad_rows: Vec<BadRow>,
    bad_count: u64,
    digest: String,
}

#[derive(Debug)]
struct DataFile {
    name: Arc<str>,
    handle: Handle,
    rows: rows::RowIndex,
    bytes: u64,
    sha256: String,
    lines_sha256: String,
}

impl Dataset {
    /// Opens `spec.source` and validates every row for the encoder's task. See [`Dataset::open_source`].
    ///
    /// # Errors
    /// As [`Dataset::open_source`].
    pub fn open(spec: &DataSpec, encoder: &Encoder) -> Result<Self> {
        let options = OpenOptions { max_bad_rows: spec.max_bad_rows, ..OpenOptions::default() };
        Self::open_source(&spec.source, encoder, &options)
    }

    /// Opens a path, folder, glob or `s3://` URL, reads all of it once and validates every row: JSON, fields, types,
    /// ranges, and the tokens too where the tokenizer could refuse a text. What was found is kept in `options.rows`, and
    /// a file that did not change since is not read again. Malformed rows get no number, so every rank
    /// that reads the same bytes agrees on the numbers of the others.
    ///
    /// # Errors
    /// `DATA_SOURCE`: a file cannot be read or has no known format. `DATA_EMPTY`: no file, or no usable row.
    /// `DATA_ROW` or `TOKEN_RANGE`: more malformed rows than allowed, naming the first ones by file and line.
    pub fn open_source(source: &str, encoder: &Encoder, options: &OpenOptions) -> Result<Self> {
        let mut index = index::Index::new(encoder, options);
        let mut files = Vec::new();
        for (number, file) in source::resolve(source, options)?.iter().enumerate() {
            files.push(index.file(file, number)?);
        }
        let (bad_rows, bad_count) = index.finish();
        let mut rows = 0;
        let starts = files
            .iter()
            .map(|file| {
                rows += file.rows.len();
                rows - file.rows.len()
            })
            .collect();
        if rows == 0 {
            return Err(code::DATA_EMPTY
                .error(format!("{source}: no usable row in {} files, {bad_count} malformed", files.len()))
                .maybe_hint(bad_rows.first().map(|first| format!("the first malformed row is {first}"))));
        }
        let digest = digest(&files);
        Ok(Self { files, starts, rows, bad_rows, bad_count, digest })
    }

    /// Usable rows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.rows
    }

    /// No usable row. Never so for an opened dataset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// SHA-256, in hex, over each file's name (without its folder), size, content hash and usable rows, in order. Equal
    /// digests: the same rows under the same numbers.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The malformed rows that were skipped: the first thousand.
    #[must_use]
    pub fn bad_rows(&self) -> &[BadRow] {
        &self.bad_rows
    }

    /// How many malformed rows were skipped.
    #[must_use]
    pub fn bad_count(&self) -> u64 {
        self.bad_count
    }

    /// The rows in ranges of [`SHARD_ROWS`].
    pub fn shards(&self) -> impl ExactSizeIterator<Item = Shard> + use<> {
        let rows = self.rows;
        let shards = usize::try_from(rows.div_ceil(SHARD_ROWS)).unwrap_or(usize::MAX);
        (0..shards).map(move |index| {
            let index = index as u64;
            Shard { index, rows: index * SHARD_ROWS..((index + 1) * SHARD_ROWS).min(rows) }
        })
    }

    /// File and line of a row.
    ///
    /// # Errors
    /// `DATA_ROW` for a number past the end.
    pub fn place(&self, row: u64) -> Result<Place> {
        let (file, at) = self.find(row)?;
        Ok(Place { file: Arc::clone(&file.name), line: u64::from(at.line) })
    }

    /// Reads a row.
    ///
    /// # Errors
    /// `DATA_SOURCE` when the file cannot be read any more, `DATA_ROW` with file and line when it is no longer the JSON
    /// that it was, or for a number past the end.
    pub fn row(&self, row: u64) -> Result<Row> {
        let (file, at) = self.find(row)?;
        let place = Place { file: Arc::clone(&file.name), line: u64::from(at.line) };
        let bytes = file.handle.read(at).map_err(|error| {
            code::DATA_SOURCE
                .error("cannot be read any more")
                .at(&place)
                .hint("the file changed or went away after the job opened it; start the job anew")
                .caused_by(error)
        })?;
        let fields = index::parse(&bytes).map_err(|fault: Fault| fault.late(&place))?;
        Ok(Row { id: row, place, fields })
    }

    fn find(&self, row: u64) -> Result<(&DataFile, RowRef)> {
        let file = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        match self.files[file].rows.get(row - self.starts[file]) {
            Some(at) => Ok((&self.files[file], at)),
            None => Err(code::DATA_ROW.error(format!("row {row} of a dataset of {} rows", self.rows))),
        }
    }
}

fn digest(files: &[DataFile]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"pleach dataset 2\n");
    for file in files {
        let name = file.name.rsplit('/').next().unwrap_or(&file.name);
        let DataFile { bytes, sha256, lines_sha256, rows, .. } = file;
        hash.update(format!("{name}\n{bytes}\n{sha256}\n{}\n{lines_sha256}\n", rows.len()));
    }
    hex::encode(hash.finalize())
}
