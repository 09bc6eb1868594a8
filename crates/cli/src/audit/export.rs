//! Which step trained which row, as a Parquet file: one row for each row of the dataset in each epoch.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use pleach_base::{Result, ResultExt, code};

use super::check::Fed;

const SCHEMA: &str = "message trained {
    required binary task (STRING);
    required int64 epoch (INTEGER(64,false));
    required int64 sample (INTEGER(64,false));
    required int64 step (INTEGER(64,false));
    required int32 lane (INTEGER(32,false));
    required int64 term (INTEGER(64,false));
    required int64 generation (INTEGER(64,false));
    required boolean skipped;
}";
/// Rows that are in memory at a time.
const GROUP: usize = 1 << 18;

/// A file that is being written.
pub(crate) struct Export {
    writer: SerializedFileWriter<BufWriter<File>>,
    name: String,
    task: String,
    rows: Vec<Fed>,
}

impl Export {
    /// Creates the file, or empties it.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::create(path).or_code(code::IO, || format!("{name}: cannot be written"))?;
        let open = || {
            let zstd = Compression::ZSTD(ZstdLevel::try_new(3)?);
            let properties =
                WriterProperties::builder().set_created_by("pleach".to_owned()).set_compression(zstd).build();
            SerializedFileWriter::new(BufWriter::new(file), Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))
        };
        let writer = open().or_code(code::IO, || format!("{name}: cannot be written"))?;
        Ok(Self { writer, name, task: String::new(), rows: Vec::new() })
    }

    pub(super) fn push(&mut self, task: &str, row: Fed) -> Result<()> {
        if self.rows.len() >= GROUP || self.task != task {
            self.flush()?;
            task.clone_into(&mut self.task);
        }
        self.rows.push(row);
        Ok(())
    }

    /// Writes the rest.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.close().map(drop).or_code(code::IO, || format!("{}: cannot be written", self.name))
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        self.group(&rows).or_code(code::IO, || format!("{}: cannot be written", self.name))
    }

    fn group(&mut self, rows: &[Fed]) -> ParquetResult<()> {
        let long = |of: fn(&Fed) -> u64| rows.iter().map(|row| of(row).cast_signed()).collect::<Vec<_>>();
        let task = ByteArray::from(self.task.as_str());
        let mut group = self.writer.next_row_group()?;
        column::<ByteArrayType>(&mut group, &vec![task; rows.len()])?;
        column::<Int64Type>(&mut group, &long(|row| row.epoch))?;
        column::<Int64Type>(&mut group, &long(|row| row.sample))?;
        column::<Int64Type>(&mut group, &long(|row| row.step))?;
        column::<Int32Type>(&mut group, &rows.iter().map(|row| row.lane.cast_signed()).collect::<Vec<_>>())?;
        column::<Int64Type>(&mut group, &long(|row| row.fence.term.0))?;
        column::<Int64Type>(&mut group, &long(|row| row.fence.generation.0))?;
        column::<BoolType>(&mut group, &rows.iter().map(|row| row.skipped).collect::<Vec<_>>())?;
        group.close().map(drop)
    }
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<File>>,
    values: &[T::T],
) -> ParquetResult<()> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("the schema has fewer columns".to_owned()));
    };
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}
