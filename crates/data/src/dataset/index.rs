//! The one pass over a source that decides which rows exist.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::sync::Arc;

use pleach_base::{Code, Error, Result, ResultExt, code};
use serde_json::{Map, Value};

use super::DataFile;
use crate::encode::Encoder;
use crate::files::{Handle, RowRef};
use crate::jsonl::{self, MAX_LINE};
use crate::parquet;
use crate::row::{BadRow, Fault, Place};
use crate::source::{Format, SourceFile};

/// Malformed rows that are remembered; the rest is counted.
const REMEMBERED: usize = 1_000;
/// Malformed rows that an error names.
const NAMED: usize = 5;

pub(super) struct Index<'a> {
    encoder: &'a Encoder,
    allowed: u64,
    bad_rows: Vec<BadRow>,
    bad_count: u64,
    first_code: Option<Code>,
    /// Rows of Parquet files, as JSON.
    spool: Option<Spool>,
}

struct Spool {
    file: Arc<File>,
    writer: BufWriter<Arc<File>>,
    length: u64,
}

impl<'a> Index<'a> {
    pub(super) fn new(encoder: &'a Encoder, allowed: u64) -> Self {
        Self { encoder, allowed, bad_rows: Vec::new(), bad_count: 0, first_code: None, spool: None }
    }

    pub(super) fn finish(self) -> (Vec<BadRow>, u64) {
        (self.bad_rows, self.bad_count)
    }

    /// Reads file `number` of the source.
    pub(super) fn file(&mut self, file: &SourceFile, number: usize) -> Result<DataFile> {
        match file.format {
            Format::JsonLines => self.json_lines(file, number),
            Format::Parquet => self.parquet(file),
        }
    }

    fn json_lines(&mut self, file: &SourceFile, number: usize) -> Result<DataFile> {
        let cannot = || format!("{}: cannot be read", file.name);
        let name: Arc<str> = file.name.as_str().into();
        let reader = BufReader::with_capacity(1 << 18, File::open(&file.path).or_code(code::DATA_SOURCE, cannot)?);
        let mut rows = Vec::new();
        let scanned = jsonl::scan(reader, |line| {
            if rows.is_empty() && self.bad_count == 0 && line.bytes.is_some_and(|bytes| bytes.starts_with(b"[")) {
                return Err(whole_array(&file.name));
            }
            let checked = match line.bytes {
                Some(bytes) => parse(bytes).and_then(|fields| self.encoder.validate(&fields)).map(|()| bytes.len()),
                None => Err(Fault::row(format!("the line is longer than {} MiB", MAX_LINE >> 20))),
            };
            self.keep(&mut rows, &name, line.number, line.offset, checked)
        });
        let (bytes, sha256) = scanned.or_code(code::DATA_SOURCE, cannot)??;
        let handle = Handle::of(&file.path, number).or_code(code::DATA_SOURCE, cannot)?;
        Ok(DataFile { name, handle, rows, bytes, sha256 })
    }

    fn parquet(&mut self, file: &SourceFile) -> Result<DataFile> {
        let cannot = || format!("{}: cannot be read", file.name);
        let no_spool = || format!("{}: the temporary folder cannot be written", file.name);
        let name: Arc<str> = file.name.as_str().into();
        let (bytes, sha256) = parquet::hash_file(&file.path).or_code(code::DATA_SOURCE, cannot)?;
        let mut spool = match self.spool.take() {
            Some(spool) => spool,
            None => Spool::new().or_code(code::DATA_SOURCE, no_spool)?,
        };
        let (encoder, mut rows) = (self.encoder, Vec::new());
        parquet::rows(&file.path, &file.name, &encoder.fields().names(), &mut |number, fields| {
            let offset = spool.length;
            let checked = match encoder.validate(&fields) {
                Ok(()) => Ok(spool.push(&fields).or_code(code::DATA_SOURCE, no_spool)?),
                Err(fault) => Err(fault),
            };
            self.keep(&mut rows, &name, number, offset, checked)
        })?;
        spool.writer.flush().or_code(code::DATA_SOURCE, no_spool)?;
        let handle = Handle::Open(Arc::clone(&spool.file));
        self.spool = Some(spool);
        Ok(DataFile { name, handle, rows, bytes, sha256 })
    }

    /// Numbers a good row; counts a bad one, and fails when there are too many.
    fn keep(
        &mut self,
        rows: &mut Vec<RowRef>,
        file: &Arc<str>,
        line: u64,
        offset: u64,
        checked: Result<usize, Fault>,
    ) -> Result<()> {
        let small = |number: u64| u32::try_from(number).ok();
        let fault = match checked {
            Ok(length) => match (small(length as u64), small(line)) {
                (Some(length), Some(line)) => {
                    rows.push(RowRef { offset, length, line });
                    return Ok(());
                }
                _ => Fault::row("a file holds at most 4,294,967,295 rows of less than 4 GiB"),
            },
            Err(fault) => fault,
        };
        self.bad_count += 1;
        self.first_code.get_or_insert(fault.code);
        if self.bad_rows.len() < REMEMBERED {
            self.bad_rows.push(BadRow { place: Place { file: Arc::clone(file), line }, why: fault.why });
        }
        if self.bad_count > self.allowed { Err(self.too_many()) } else { Ok(()) }
    }

    fn too_many(&self) -> Error {
        let named: Vec<String> = self.bad_rows.iter().take(NAMED).map(ToString::to_string).collect();
        let count = match self.allowed {
            0 => "malformed row".to_owned(),
            allowed => format!("more than {allowed} malformed rows, the first of them"),
        };
        self.first_code
            .unwrap_or(code::DATA_ROW)
            .error(format!("{count}: {}", named.join("; ")))
            .hint("mend or remove the rows, or allow some with spec.data.max_bad_rows")
    }
}

impl Spool {
    fn new() -> io::Result<Self> {
        let file = Arc::new(tempfile::tempfile()?);
        Ok(Self { writer: BufWriter::new(Arc::clone(&file)), file, length: 0 })
    }

    /// Appends a row; gives its length.
    fn push(&mut self, fields: &Map<String, Value>) -> io::Result<usize> {
        let json = serde_json::to_vec(fields)?;
        self.writer.write_all(&json)?;
        self.length += json.len() as u64;
        Ok(json.len())
    }
}

/// The fields of a line.
pub(super) fn parse(bytes: &[u8]) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Fault::row("not a JSON object")),
        // A row is one line: only the column says something.
        Err(error) => Err(Fault::row(format!("not valid JSON: {error}").replace(" line 1 column", " column"))),
    }
}

fn whole_array(name: &str) -> Error {
    code::DATA_SOURCE
        .error(format!("{name}: one JSON array instead of one object a line"))
        .hint("write each element on a line of its own (`jq -c '.[]'` does)")
}
