//! Parquet files, written by the `parquet` crate's own writer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use pleach_base::code;
use pleach_data::{Content, Dataset};
use pleach_spec::job::DataTask;
use serde_json::json;

use super::{encoder, spec, write};

const SCHEMA: &str = "message rows {
    optional binary text (STRING);
    required int64 label;
    optional group input_ids (LIST) { repeated group list { required int32 element; } }
    required binary blob;
}";

/// A row: text, label, ids.
pub(crate) type Row<'a> = (Option<&'a str>, i64, Option<&'a [i32]>);

/// Writes row groups of `rows` and gives the path.
pub(crate) fn parquet(folder: &Path, name: &str, groups: &[&[Row<'_>]]) -> PathBuf {
    let path = folder.join(name);
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let texts: Vec<_> = rows.iter().filter_map(|row| row.0).map(ByteArray::from).collect();
        let defined: Vec<i16> = rows.iter().map(|row| i16::from(row.0.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&defined), None).unwrap();
        column.close().unwrap();

        let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
        column.close().unwrap();

        let (mut ids, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for row in *rows {
            let list = row.2.unwrap_or_default();
            ids.extend_from_slice(list);
            let levels = if list.is_empty() { vec![i16::from(row.2.is_some())] } else { vec![2; list.len()] };
            repeated.extend((0..levels.len()).map(|index| i16::from(index > 0)));
            defined.extend(levels);
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&ids, Some(&defined), Some(&repeated)).unwrap();
        column.close().unwrap();

        let blobs: Vec<_> = rows.iter().map(|_| ByteArray::from(vec![0xff, 0xfe])).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&blobs, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

#[test]
fn rows_of_all_row_groups_are_numbered_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let groups: [&[Row<'_>]; 2] = [
        &[(Some("the cat"), 1, None), (None, 0, Some(&[5, 6])), (None, 2, None)],
        &[(Some("a dog"), 7, None), (Some("a bird"), 2, None), (None, 1, Some(&[]))],
    ];
    let path = parquet(folder.path(), "rows.parquet", &groups);
    let spec = spec(&path, DataTask::SequenceClassification, &json!({"max_bad_rows": 3}));
    let encoder = encoder(&spec);
    let dataset = Dataset::open(&spec, &encoder).unwrap();
    let bad: Vec<_> = dataset.bad_rows().iter().map(|bad| (bad.place.line, bad.why.as_str())).collect();
    let expected = [
        (3, "field `text` is null"),
        (4, "field `label` is 7, outside the 3 classes of the model"),
        (6, "field `input_ids` is empty"),
    ];
    assert_eq!(bad, expected);
    let made: Vec<_> = (0..dataset.len())
        .map(|row| match encoder.encode(&dataset.row(row).unwrap()).unwrap().content {
            Content::Classification { input, label } => (input.ids, label),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(made, [(vec![2, 4, 6, 3], 1), (vec![5, 6], 0), (vec![2, 5, 8, 3], 2)]);
    assert_eq!(dataset.place(2).unwrap().to_string(), format!("{}:5", path.display()));
    // Only columns that the task uses are kept.
    assert_eq!(dataset.row(0).unwrap().fields.keys().collect::<Vec<_>>(), ["text", "label", "input_ids"]);
}

#[test]
fn parquet_and_json_lines_give_the_same_examples() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..40).map(|n| format!("the cat {}", "ran ".repeat(n % 7))).collect();
    let rows: Vec<Row<'_>> = texts.iter().map(|text| (Some(text.as_str()), 0, None)).collect();
    parquet(folder.path(), "a.parquet", &[&rows[..15], &rows[15..]]);
    parquet(folder.path(), "b.parquet", &[&rows[..5]]);
    let lines =
        |texts: &[String]| texts.iter().map(|text| json!({"text": text}).to_string() + "\n").collect::<String>();
    write(folder.path(), "c.jsonl", lines(&texts));
    write(folder.path(), "d.jsonl", lines(&texts[..5]));
    let spec = spec(folder.path(), DataTask::CausalLm, &json!({}));
    let encoder = encoder(&spec);
    let dataset = Dataset::open(&spec, &encoder).unwrap();
    let content = |row| encoder.encode(&dataset.row(row).unwrap()).unwrap().content;
    assert_eq!(dataset.len(), 90);
    assert!((0..45).all(|row| content(row) == content(row + 45)));
    assert_ne!(content(0), content(1));
}

#[test]
fn a_column_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = parquet(folder.path(), "rows.parquet", &[&[(Some("a"), 1, None)]]);
    let error = |text: &str| {
        let spec = spec(&path, DataTask::CausalLm, &json!({ "text": text }));
        Dataset::open(&spec, &encoder(&spec)).unwrap_err()
    };
    let none = error("{prompt}");
    assert_eq!(none.code(), code::DATA_SOURCE);
    assert!(none.message().ends_with("has no column `prompt`"), "{none}");
    assert_eq!(none.hint_text(), Some("its columns are `text`, `label`, `input_ids`, `blob`"));
    let one = error("{text} {prompt}");
    assert_eq!(one.code(), code::DATA_ROW);
    assert!(one.message().ends_with("rows.parquet:1: field `prompt` is missing"), "{one}");
    assert!(error("{blob}").message().ends_with("field `blob` is an object, not text"));
}

#[test]
fn a_file_that_is_not_parquet_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"PAR1", b"{\"text\": \"a\"}\n", b"PAR1\xff\xff\xff\x7fPAR1"] {
        let path = write(folder.path(), "rows.parquet", content);
        let spec = spec(&path, DataTask::CausalLm, &json!({}));
        let error = Dataset::open(&spec, &encoder(&spec)).unwrap_err();
        assert_eq!(error.code(), code::DATA_SOURCE);
        assert!(error.message().ends_with("rows.parquet: not a readable Parquet file"), "{error}");
    }
}
