//! The one pass over a source that decides which rows exist.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use pleach_base::{Code, Error, Result, ResultExt, code};
use serde_json::{Map, Value};
use tempfile::TempPath;

use super::rows::{Builder, RowIndex};
use super::sidecar::{About, Slot};
use super::{DataFile, OpenOptions, RowCache};
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
    cache: Option<&'a RowCache>,
    bad_rows: Vec<BadRow>,
    bad_count: u64,
    first_code: Option<Code>,
    /// Rows of Parquet files that are not kept, as JSON.
    spool: Option<Spool>,
}

/// Rows of Parquet files, one after the other.
struct Spool {
    file: Arc<File>,
    writer: BufWriter<Arc<File>>,
    length: u64,
}

/// What the pass over one file has found so far.
struct Found {
    name: Arc<str>,
    rows: Builder,
    about: About,
}

impl<'a> Index<'a> {
    pub(super) fn new(encoder: &'a Encoder, options: &'a OpenOptions) -> Self {
        let (allowed, cache) = (options.max_bad_rows, options.rows.as_ref());
        Self { encoder, allowed, cache, bad_rows: Vec::new(), bad_count: 0, first_code: None, spool: None }
    }

    pub(super) fn finish(self) -> (Vec<BadRow>, u64) {
        (self.bad_rows, self.bad_count)
    }

    /// Reads file `number` of the source, or what an earlier pass over it found.
    pub(super) fn file(&mut self, file: &SourceFile, number: usize) -> Result<DataFile> {
        let cache = self.cache;
        let slot = cache.and_then(|cache| Slot::of(&cache.folder, cache.least_bytes, self.encoder, file));
        let spooled = file.format == Format::Parquet;
        let known = slot.as_ref().and_then(|slot| slot.load(spooled));
        if let (Some(slot), Some((about, rows))) = (&slot, known) {
            self.recall(&file.name, &about)?;
            let path = if spooled { slot.spool() } else { file.path.clone() };
            let handle = Handle::of(&path, number).or_code(code::DATA_SOURCE, || cannot(file))?;
            return Ok(data_file(file, handle, about, rows));
        }
        let found = Found { name: file.name.as_str().into(), rows: Builder::default(), about: About::default() };
        let (found, handle) = match file.format {
            Format::JsonLines => self.json_lines(file, number, found)?,
            Format::Parquet => self.parquet(file, number, found, slot.as_ref())?,
        };
        let Found { rows, mut about, .. } = found;
        let (rows, lines_sha256) = rows.finish();
        about.lines_sha256 = lines_sha256;
        if let Some(slot) = &slot {
            slot.store(&about, &rows, spooled);
        }
        Ok(data_file(file, handle, about, rows))
    }

    fn json_lines(&mut self, file: &SourceFile, number: usize, mut found: Found) -> Result<(Found, Handle)> {
        let cannot = || cannot(file);
        let reader = BufReader::with_capacity(1 << 18, File::open(&file.path).or_code(code::DATA_SOURCE, cannot)?);
        let scanned = jsonl::scan(reader, |line| {
            if found.rows.is_empty() && self.bad_count == 0 && line.bytes.is_some_and(|bytes| bytes.starts_with(b"[")) {
                return Err(whole_array(&file.name));
            }
            let checked = match line.bytes {
                Some(bytes) => parse(bytes).and_then(|fields| self.encoder.validate(&fields)).map(|()| bytes.len()),
                None => Err(Fault::row(format!("the line is longer than {} MiB", MAX_LINE >> 20))),
            };
            self.keep(&mut found, line.number, line.offset, checked)
        });
        (found.about.bytes, found.about.sha256) = scanned.or_code(code::DATA_SOURCE, cannot)??;
        let handle = Handle::of(&file.path, number).or_code(code::DATA_SOURCE, cannot)?;
        Ok((found, handle))
    }

    /// The rows go to the file that `slot` names, under that name when all of them are there; without a slot to the
    /// spool that all such files share.
    fn parquet(
        &mut self,
        file: &SourceFile,
        number: usize,
        mut found: Found,
        slot: Option<&Slot>,
    ) -> Result<(Found, Handle)> {
        let no_spool = || format!("{}: the folder for its rows cannot be written", file.name);
        (found.about.bytes, found.about.sha256) =
            parquet::hash_file(&file.path).or_code(code::DATA_SOURCE, || cannot(file))?;
        let kept = slot.map(|slot| Spool::kept(&slot.spool())).transpose().or_code(code::DATA_SOURCE, no_spool)?;
        let (mut spool, kept) = match (kept, self.spool.take()) {
            (Some((spool, path)), shared) => {
                self.spool = shared;
                (spool, Some(path))
            }
            (None, Some(shared)) => (shared, None),
            (None, None) => (Spool::unnamed().or_code(code::DATA_SOURCE, no_spool)?, None),
        };
        let encoder = self.encoder;
        parquet::rows(&file.path, &file.name, &encoder.fields().names(), &mut |line, fields| {
            let offset = spool.length;
            let checked = match encoder.validate(&fields) {
                Ok(()) => Ok(spool.push(&fields).or_code(code::DATA_SOURCE, no_spool)?),
                Err(fault) => Err(fault),
            };
            self.keep(&mut found, line, offset, checked)
        })?;
        spool.writer.flush().or_code(code::DATA_SOURCE, no_spool)?;
        let handle = match (kept, slot) {
            (Some(part), Some(slot)) => {
                part.persist(slot.spool()).or_code(code::DATA_SOURCE, no_spool)?;
                Handle::of(&slot.spool(), number).or_code(code::DATA_SOURCE, no_spool)?
            }
            _ => {
                let handle = Handle::Open(Arc::clone(&spool.file));
                self.spool = Some(spool);
                handle
            }
        };
        Ok((found, handle))
    }

    /// Numbers a good row; counts a bad one, and fails when there are too many.
    fn keep(&mut self, found: &mut Found, line: u64, offset: u64, checked: Result<usize, Fault>) -> Result<()> {
        let small = |number: u64| u32::try_from(number).ok();
        let fault = match checked {
            Ok(length) => match (small(length as u64), small(line)) {
                (Some(length), Some(line)) => {
                    found.rows.push(RowRef { offset, length, line });
                    return Ok(());
                }
                _ => Fault::row("a file holds at most 4,294,967,295 rows of less than 4 GiB"),
            },
            Err(fault) => fault,
        };
        let about = &mut found.about;
        about.token_range |= about.bad_count == 0 && fault.code == code::TOKEN_RANGE;
        about.bad_count += 1;
        if about.bad.len() < REMEMBERED {
            about.bad.push((line, fault.why.clone()));
        }
        self.bad(&found.name, fault.code, 1, [(line, fault.why)])
    }

    /// Counts what an earlier pass counted.
    fn recall(&mut self, name: &str, about: &About) -> Result<()> {
        let code = if about.token_range { code::TOKEN_RANGE } else { code::DATA_ROW };
        if about.bad_count == 0 { Ok(()) } else { self.bad(&name.into(), code, about.bad_count, about.bad.clone()) }
    }

    fn bad(
        &mut self,
        file: &Arc<str>,
        code: Code,
        count: u64,
        named: impl IntoIterator<Item = (u64, String)>,
    ) -> Result<()> {
        self.bad_count += count;
        self.first_code.get_or_insert(code);
        let room = REMEMBERED - self.bad_rows.len();
        let rows = named.into_iter().take(room);
        self.bad_rows.extend(rows.map(|(line, why)| BadRow { place: Place { file: Arc::clone(file), line }, why }));
        if self.bad_count > self.allowed { Err(self.too_many()) } else { Ok(()) }
    }

    fn too_many(&self) -> Error {
        // As many as were found when the limit was passed, also when a pass of earlier had found more.
        let found = usize::try_from(self.allowed).unwrap_or(NAMED).saturating_add(1).min(NAMED);
        let named: Vec<String> = self.bad_rows.iter().take(found).map(ToString::to_string).collect();
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
    /// A file that goes away with the dataset.
    fn unnamed() -> io::Result<Self> {
        Ok(Self::over(tempfile::tempfile()?))
    }

    /// A file beside `path`, to be renamed to it.
    fn kept(path: &Path) -> io::Result<(Self, TempPath)> {
        let folder = path.parent().unwrap_or(path);
        std::fs::create_dir_all(folder)?;
        let (file, part) = tempfile::NamedTempFile::new_in(folder)?.into_parts();
        Ok((Self::over(file), part))
    }

    fn over(file: File) -> Self {
        let file = Arc::new(file);
        Self { writer: BufWriter::new(Arc::clone(&file)), file, length: 0 }
    }

    /// Appends a row; gives its length.
    fn push(&mut self, fields: &Map<String, Value>) -> io::Result<usize> {
        let json = serde_json::to_vec(fields)?;
        self.writer.write_all(&json)?;
        self.writer.write_all(b"\n")?;
        self.length += json.len() as u64 + 1;
        Ok(json.len())
    }
}

fn data_file(file: &SourceFile, handle: Handle, about: About, rows: RowIndex) -> DataFile {
    let About { bytes, sha256, lines_sha256, .. } = about;
    DataFile { name: file.name.as_str().into(), handle, rows, bytes, sha256, lines_sha256 }
}

fn cannot(file: &SourceFile) -> String {
    format!("{}: cannot be read", file.name)
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
