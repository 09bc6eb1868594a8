//! Rows of Parquet files. A Parquet row cannot be read alone: its row group has to be decoded. Since opening a source
//! looks at every row anyway, the columns that the job uses are written once, as JSON, to a spool (an unnamed temporary
//! file), and rows are then read from there as from a JSONL file.
//!
//! The `parquet` crate panics on some damaged files; a panic is turned into `DATA_SOURCE` here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::{Type, TypePtr};
use pleach_base::{Error, Result, code};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// Calls `each` with the number (from 1) and the `wanted` fields of every row, in order; stops at its first error.
///
/// # Errors
/// `DATA_SOURCE` for a file that is not Parquet, is damaged, or has none of the columns; or the error of `each`.
pub(crate) fn rows(
    path: &Path,
    name: &str,
    wanted: &BTreeSet<&str>,
    each: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| rows_or_panic(path, name, wanted, each)))
        .unwrap_or_else(|_| Err(damaged(name, 0, "its structure is inconsistent")))
}

fn rows_or_panic(
    path: &Path,
    name: &str,
    wanted: &BTreeSet<&str>,
    each: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).map_err(|error| damaged(name, 0, error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| damaged(name, 0, error))?;
    let projection = project(name, reader.metadata().file_metadata().schema(), wanted)?;
    let promised = reader.metadata().file_metadata().num_rows();
    let mut number = 0;
    for row in reader.get_row_iter(Some(projection)).map_err(|error| damaged(name, 0, error))? {
        number += 1;
        let row = row.map_err(|error| damaged(name, number, error))?;
        each(number, object(row.into_columns()))?;
    }
    if i64::try_from(number).ok() != Some(promised) {
        return Err(damaged(name, number, format!("it promises {promised} rows and holds {number}")));
    }
    Ok(())
}

fn damaged(name: &str, row: u64, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let place = if row == 0 { name.to_owned() } else { format!("{name}:{row}") };
    code::DATA_SOURCE
        .error("not a readable Parquet file")
        .at(place)
        .hint("write the file again; columns may be plain, snappy, gzip or zstd")
        .caused_by(why)
}

/// The schema with the wanted columns only.
fn project(name: &str, schema: &Type, wanted: &BTreeSet<&str>) -> Result<Type> {
    let all: &[TypePtr] = schema.get_fields();
    let columns: Vec<_> = all.iter().filter(|column| wanted.contains(column.name())).map(Arc::clone).collect();
    if columns.is_empty() {
        let names = |columns: Vec<&str>| columns.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(code::DATA_SOURCE
            .error(format!("{name}: has no column {}", names(wanted.iter().copied().collect())))
            .hint(format!("its columns are {}", names(all.iter().map(|column| column.name()).collect()))));
    }
    Type::group_type_builder(schema.name()).with_fields(columns).build().map_err(|error| damaged(name, 0, error))
}

fn object(columns: Vec<(String, Field)>) -> Map<String, Value> {
    columns.into_iter().map(|(name, field)| (name, value(&field))).collect()
}

/// The field as JSON would have it. What JSON has no word for (dates, decimals, bytes that are not text) becomes an
/// object that names its type, which no task accepts.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float(value) => Number::from_f64(f64::from(*value)).map_or(Value::Null, Value::Number),
        Field::Double(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => foreign("bytes"),
        },
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
        }
        _ => foreign("date, time, decimal or map"),
    }
}

fn foreign(kind: &str) -> Value {
    Value::Object(Map::from_iter([("parquet".to_owned(), Value::from(kind))]))
}

/// Size and SHA-256 (hex) of a file.
pub(crate) fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut hash, mut buffer, mut bytes) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hex::encode(hash.finalize())));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}
