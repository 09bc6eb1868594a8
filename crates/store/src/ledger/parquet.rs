//! Ledger rows as Parquet and back. Equal rows give equal bytes: nothing but the rows reaches the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::record::{ListAccessor, Row, RowAccessor};
use parquet::schema::parser::parse_message_type;
use pleach_base::{Fence, Generation, Result, ResultExt, Step, Term, code};

use super::LedgerRow;
use crate::record::FORMAT_VERSION;

const SCHEMA: &str = "message ledger {
    required binary task (STRING);
    required int64 step (INTEGER(64,false));
    required int64 term (INTEGER(64,false));
    required int64 generation (INTEGER(64,false));
    required int64 epoch (INTEGER(64,false));
    required int64 samples (INTEGER(64,false));
    required binary digest (STRING);
    required binary sample_digest (STRING);
    required group lane_digests (LIST) { repeated group list { required binary element (STRING); } }
    required boolean skipped;
    optional int64 tokens (INTEGER(64,false));
    required int32 world (INTEGER(32,false));
    required int64 unix_ms (TIMESTAMP(MILLIS,true));
}";
const VERSION_KEY: &str = "pleach.format_version";

/// The rows as one Parquet file, compressed.
///
/// # Errors
/// `INTERNAL` when they cannot be written.
pub fn encode(rows: &[LedgerRow]) -> Result<Bytes> {
    encoded(rows).map(Bytes::from).or_code(code::INTERNAL, || "cannot write the ledger".to_owned())
}

fn encoded(rows: &[LedgerRow]) -> ParquetResult<Vec<u8>> {
    let version = KeyValue::new(VERSION_KEY.to_owned(), FORMAT_VERSION.to_string());
    let properties = WriterProperties::builder()
        .set_created_by("pleach".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_key_value_metadata(Some(vec![version]))
        .build();
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let text = |of: fn(&LedgerRow) -> &str| rows.iter().map(|row| ByteArray::from(of(row))).collect::<Vec<_>>();
    let long = |of: fn(&LedgerRow) -> u64| rows.iter().map(|row| of(row).cast_signed()).collect::<Vec<_>>();
    column::<ByteArrayType>(&mut group, &text(|row| row.task.as_str()), None, None)?;
    column::<Int64Type>(&mut group, &long(|row| row.step.0), None, None)?;
    column::<Int64Type>(&mut group, &long(|row| row.fence.term.0), None, None)?;
    column::<Int64Type>(&mut group, &long(|row| row.fence.generation.0), None, None)?;
    column::<Int64Type>(&mut group, &long(|row| row.epoch), None, None)?;
    column::<Int64Type>(&mut group, &long(|row| row.samples), None, None)?;
    column::<ByteArrayType>(&mut group, &text(|row| &row.digest), None, None)?;
    column::<ByteArrayType>(&mut group, &text(|row| &row.sample_digest), None, None)?;
    lanes(&mut group, rows)?;
    column::<BoolType>(&mut group, &rows.iter().map(|row| row.skipped).collect::<Vec<_>>(), None, None)?;
    let known: Vec<i64> = rows.iter().filter_map(|row| row.tokens).map(u64::cast_signed).collect();
    let defined: Vec<i16> = rows.iter().map(|row| i16::from(row.tokens.is_some())).collect();
    column::<Int64Type>(&mut group, &known, Some(&defined), None)?;
    column::<Int32Type>(&mut group, &rows.iter().map(|row| row.world.cast_signed()).collect::<Vec<_>>(), None, None)?;
    column::<Int64Type>(&mut group, &rows.iter().map(|row| row.unix_ms).collect::<Vec<_>>(), None, None)?;
    group.close()?;
    writer.close()?;
    Ok(file)
}

/// A list is written as its elements with two numbers each: whether there is one, and whether it goes on a row.
fn lanes(group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>, rows: &[LedgerRow]) -> ParquetResult<()> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        if row.lane_digests.is_empty() {
            defined.push(0);
            repeated.push(0);
        }
        for (lane, digest) in row.lane_digests.iter().enumerate() {
            values.push(ByteArray::from(digest.as_str()));
            defined.push(1);
            repeated.push(i16::from(lane > 0));
        }
    }
    column::<ByteArrayType>(group, &values, Some(&defined), Some(&repeated))
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> ParquetResult<()> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("the schema has fewer columns".to_owned()));
    };
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}

/// The rows of a chunk; `name` is for errors.
///
/// # Errors
/// `STORE_CORRUPT` for bytes that are no ledger, `STORE_FORMAT` for a newer one. Never panics, whatever the bytes.
pub fn decode(name: &str, bytes: &Bytes) -> Result<Vec<LedgerRow>> {
    let corrupt = || code::STORE_CORRUPT.error(format!("{name}: not a ledger chunk"));
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let reader = SerializedFileReader::new(bytes.clone()).map_err(|e| corrupt().caused_by(e))?;
        let about = reader.metadata().file_metadata().key_value_metadata();
        let version = about.and_then(|pairs| pairs.iter().find(|pair| pair.key == VERSION_KEY)?.value.clone());
        match version.and_then(|text| text.parse::<u32>().ok()) {
            Some(FORMAT_VERSION) => {}
            Some(newer) if newer > FORMAT_VERSION => return Err(crate::record::newer(name, u64::from(newer))),
            _ => return Err(corrupt()),
        }
        let rows = reader.get_row_iter(None).map_err(|e| corrupt().caused_by(e))?;
        rows.map(|row| row.and_then(|row| ledger_row(&row)).map_err(|e| corrupt().caused_by(e))).collect()
    }));
    decoded.unwrap_or_else(|_| Err(corrupt()))
}

/// Columns are found by name: a later release may add some.
fn ledger_row(row: &Row) -> ParquetResult<LedgerRow> {
    let at = |name: &str| {
        let found = row.get_column_iter().position(|(column, _)| column == name);
        found.ok_or_else(|| ParquetError::General(format!("no column `{name}`")))
    };
    let text = |name: &str| row.get_string(at(name)?).cloned();
    let long = |name: &str| row.get_ulong(at(name)?);
    let list = row.get_list(at("lane_digests")?)?;
    let tokens = at("tokens")?;
    Ok(LedgerRow {
        task: text("task")?.as_str().into(),
        step: Step(long("step")?),
        fence: Fence { term: Term(long("term")?), generation: Generation(long("generation")?) },
        epoch: long("epoch")?,
        samples: long("samples")?,
        digest: text("digest")?,
        sample_digest: text("sample_digest")?,
        lane_digests: (0..list.len()).map(|lane| list.get_string(lane).cloned()).collect::<ParquetResult<_>>()?,
        skipped: row.get_bool(at("skipped")?)?,
        tokens: row.get_ulong(tokens).ok(),
        world: row.get_uint(at("world")?)?,
        unix_ms: row.get_timestamp_millis(at("unix_ms")?)?,
    })
}
