//! Arbitrary and damaged files: an error or fewer rows, never a panic, and never rows that cannot be read.

use pleach_base::code;
use pleach_data::{Dataset, Tokenizer};
use pleach_spec::job::DataTask;
use proptest::prelude::*;
use serde_json::json;

use super::{encoder, fixture, parquet_files, spec, write};

/// Opens the file and reads every row that is claimed to be usable.
fn read_all(name: &str, content: &[u8]) -> Result<u64, TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), name, content);
    let spec = spec(&path, DataTask::CausalLm, &json!({"max_bad_rows": 1_000}));
    let encoder = encoder(&spec);
    match Dataset::open(&spec, &encoder) {
        Ok(dataset) => {
            for row in 0..dataset.len() {
                let read = dataset.row(row).and_then(|row| encoder.encode(&row));
                prop_assert!(read.is_ok(), "row {row} was usable: {read:?}");
            }
            Ok(dataset.len())
        }
        Err(error) => {
            prop_assert!(
                [code::DATA_EMPTY, code::DATA_SOURCE, code::DATA_ROW, code::TOKEN_RANGE].contains(&error.code())
            );
            Ok(0)
        }
    }
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn damaged(mut bytes: Vec<u8>, damage: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    for (at, byte) in damage {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), parquet in any::<bool>()) {
        read_all(if parquet { "x.parquet" } else { "x.jsonl" }, &bytes)?;
    }

    #[test]
    fn damaged_json_lines(damage in damage()) {
        let rows = "{\"text\": \"the cat\"}\n{\"input_ids\": [1, 2, 69]}\n{\"text\": 7}\n";
        read_all("x.jsonl", &damaged(rows.repeat(3).into_bytes(), &damage))?;
    }

    #[test]
    fn damaged_parquet(damage in damage()) {
        let folder = tempfile::tempdir().unwrap();
        let rows: [parquet_files::Row<'_>; 3] = [(Some("the cat"), 1, None), (None, 0, Some(&[5, 6])), (Some("a"), 2, None)];
        let path = parquet_files::parquet(folder.path(), "x.parquet", &[&rows, &rows[..2]]);
        read_all("x.parquet", &damaged(std::fs::read(path).unwrap(), &damage))?;
    }

    #[test]
    fn damaged_tokenizers(damage in damage(), bare in any::<bool>()) {
        let file = fixture(if bare { "bare.json" } else { "wordpiece.json" });
        if let Err(error) = Tokenizer::from_bytes(&damaged(std::fs::read(file).unwrap(), &damage)) {
            prop_assert_eq!(error.code(), code::TOKENIZER);
        }
    }
}

/// Every byte of a Parquet file changed, one after the other: whatever the `parquet` crate makes of it.
#[test]
fn every_byte_of_a_parquet_file_may_be_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let rows: [parquet_files::Row<'_>; 3] =
        [(Some("the cat"), 1, None), (None, 0, Some(&[5, 6])), (Some("a"), 2, None)];
    let path = parquet_files::parquet(folder.path(), "x.parquet", &[&rows]);
    let whole = std::fs::read(&path).unwrap();
    let spec = spec(&path, DataTask::CausalLm, &json!({"max_bad_rows": 1_000}));
    let encoder = encoder(&spec);
    let mut causes = std::collections::BTreeSet::new();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            if let Err(error) = Dataset::open(&spec, &encoder) {
                causes.insert(error.chain());
            }
        }
    }
    assert!(causes.len() > 10, "{causes:#?}");
    for expected in ["its structure is inconsistent", "it promises"] {
        assert!(causes.iter().any(|cause| cause.contains(expected)), "{expected}: {causes:#?}");
    }
}

#[test]
fn undamaged_files_are_read_whole() {
    let count = read_all("x.jsonl", b"{\"text\": \"a\"}\n{\"input_ids\": [1]}\n").unwrap();
    assert_eq!(count, 2);
}
