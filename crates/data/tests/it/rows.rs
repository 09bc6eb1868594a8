//! Which rows are usable, how the others are named, and what the numbering depends on.

use std::collections::BTreeSet;

use pleach_base::code;
use pleach_data::{Content, Dataset, Encoder, Limits, SHARD_ROWS, Side};
use pleach_spec::job::DataTask;
use rstest::rstest;
use serde_json::json;

use super::{LIMITS, encoder, open, spec, tokenizer, write};

#[rstest]
#[case(r#"{"text": "a""#, "not valid JSON: EOF while parsing an object at column 12")]
#[case("[1]x", "not valid JSON: trailing characters at column 4")]
#[case("7", "not a JSON object")]
#[case(r#"{"txt": "a"}"#, "field `text` is missing; did you mean `txt`?")]
#[case(r#"{"text": null}"#, "field `text` is null")]
#[case(r#"{"text": ["a"]}"#, "field `text` is an array, not text")]
#[case(r#"{"text": {"a": 1}}"#, "field `text` is an object, not text")]
#[case(r#"{"text": " \n"}"#, "`{text}` gives an empty text")]
#[case(r#"{"input_ids": []}"#, "field `input_ids` is empty")]
#[case(r#"{"input_ids": [1, -1]}"#, "field `input_ids` is [1,-1], not an array of token ids")]
#[case(r#"{"input_ids": "1"}"#, "field `input_ids` is \"1\", not an array of token ids")]
#[case(r#"{"input_ids": [1, 70]}"#, "token id 70 is outside the model's vocabulary of 70")]
#[case("{\"text\": \"\u{fffd}\\ud800\"}", "not valid JSON: ")]
fn a_malformed_row_is_named(#[case] row: &str, #[case] why: &str) {
    let content = format!("{{\"text\": \"a\"}}\n\n{row}\n{{\"text\": \"the\"}}\n");
    let error = open(&content, &json!({})).unwrap_err();
    let expected = if row.contains("70]") { code::TOKEN_RANGE } else { code::DATA_ROW };
    assert_eq!(error.code(), expected);
    assert!(error.message().contains(&format!("rows.jsonl:3: {why}")), "{error}");

    let (dataset, _) = open(&content, &json!({"max_bad_rows": 1})).unwrap();
    assert_eq!((dataset.len(), dataset.bad_count()), (2, 1));
    let bad = &dataset.bad_rows()[0];
    assert_eq!(bad.place.line, 3);
    assert!(bad.why.starts_with(why), "{bad}");
    assert_eq!((dataset.place(0).unwrap().line, dataset.place(1).unwrap().line), (1, 4));
}

#[rstest]
#[case(r#"{"text": "a"}"#, "field `label` is missing")]
#[case(r#"{"text": "a", "label": 3}"#, "field `label` is 3, outside the 3 classes of the model")]
#[case(r#"{"text": "a", "label": -1}"#, "field `label` is -1, not a class number")]
#[case(r#"{"text": "a", "label": "x"}"#, "field `label` is \"x\", not a class number")]
#[case(r#"{"text": "a", "label": 1.5}"#, "field `label` is 1.5, not a class number")]
#[case(
    r#"{"input_ids": [1], "token_type_ids": [2], "label": 0}"#,
    "field `token_type_ids` is not one 0 or 1 for each of 1 tokens"
)]
#[case(
    r#"{"input_ids": [1], "token_type_ids": [0, 0], "label": 0}"#,
    "field `token_type_ids` is not one 0 or 1 for each of 1 tokens"
)]
fn a_wrong_label_is_named(#[case] row: &str, #[case] why: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", format!("{{\"text\": \"a\", \"label\": 2}}\n{row}\n"));
    let spec = spec(&path, DataTask::SequenceClassification, &json!({}));
    let error = Dataset::open(&spec, &encoder(&spec)).unwrap_err();
    assert_eq!(error.code(), code::DATA_ROW);
    assert_eq!(error.message(), format!("malformed row: {}:2: {why}", path.display()));
}

#[test]
fn past_the_limit_the_first_ones_are_named() {
    let content = "{\"text\": \"a\"}\n1\n2\n{}\n{\"text\": \"a\"}\n";
    assert_eq!(open(content, &json!({"max_bad_rows": 3})).unwrap().0.len(), 2);
    let error = open(content, &json!({"max_bad_rows": 2})).unwrap_err();
    assert_eq!(error.code(), code::DATA_ROW);
    let message = error.message();
    assert!(message.starts_with("more than 2 malformed rows, the first of them: "), "{message}");
    assert!([2, 3, 4].iter().all(|line| message.contains(&format!("rows.jsonl:{line}: "))), "{message}");
}

#[test]
fn rows_keep_the_order_of_files_and_lines_and_are_read_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.jsonl", "{\"text\": \"two\"}\r\n{\"text\": \"three\"}");
    write(folder.path(), "a.jsonl", "\u{feff}{\"text\": \"one\", \"more\": {\"x\": 1}}\n");
    let spec = spec(folder.path(), DataTask::CausalLm, &json!({}));
    let dataset = Dataset::open(&spec, &encoder(&spec)).unwrap();
    let texts: Vec<_> = (0..3).map(|row| dataset.row(row).unwrap().fields["text"].clone()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    let last = dataset.row(2).unwrap();
    assert_eq!((last.id, last.place.line), (2, 2));
    assert!(last.place.file.ends_with("/b.jsonl"));
    assert_eq!(dataset.row(3).unwrap_err().code(), code::DATA_ROW);
    assert_eq!(dataset.row(u64::MAX).unwrap_err().code(), code::DATA_ROW);
}

/// Either reason alone makes opening tokenise: a tokenizer that knows no unknown words, or ids outside the model.
#[rstest]
#[case("bare.json", 10, "sideways", "the tokenizer refuses the text")]
#[case("wordpiece.json", 60, "unknown talk", "token id 69 is outside the model's vocabulary of 60")]
fn one_reason_is_enough_to_tokenise_on_open(
    #[case] file: &str,
    #[case] vocab_size: u32,
    #[case] text: &str,
    #[case] why: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", json!({ "text": text }).to_string());
    let spec = spec(&path, DataTask::CausalLm, &json!({}));
    let limits = Limits { vocab_size, ..LIMITS };
    let encoder = Encoder::new(&spec, Some(tokenizer(file)), Side::Both, limits).unwrap();
    let error = Dataset::open(&spec, &encoder).unwrap_err();
    assert!(error.message().contains(&format!("rows.jsonl:1: {why}")), "{error}");
}

#[test]
fn a_tokenizer_that_may_refuse_is_asked_before_rows_are_numbered() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["up down", "sideways", "far", "left", "far right"].map(|text| json!({"text": text}).to_string());
    let path = write(folder.path(), "rows.jsonl", rows.join("\n"));
    let spec = spec(&path, DataTask::CausalLm, &json!({"max_bad_rows": 3}));
    let limits = Limits { vocab_size: 9, ..LIMITS };
    let encoder = Encoder::new(&spec, Some(tokenizer("bare.json")), Side::Both, limits).unwrap();
    let dataset = Dataset::open(&spec, &encoder).unwrap();
    assert_eq!(dataset.len(), 2);
    let bad: Vec<_> = dataset.bad_rows().iter().map(|bad| (bad.place.line, bad.why.as_str())).collect();
    assert!(bad[0].1.contains("refuses the text"), "{bad:?}");
    assert_eq!(bad[1..].iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(bad[1].1, "token id 9 is outside the model's vocabulary of 9");
    let Content::Lm(text) = encoder.encode(&dataset.row(1).unwrap()).unwrap().content else { panic!() };
    assert_eq!(text.ids, [2]);
}

#[test]
fn text_without_a_tokenizer_is_a_malformed_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", "{\"input_ids\": [1]}\n{\"text\": \"a\"}\n");
    let spec = spec(&path, DataTask::CausalLm, &json!({}));
    let encoder = Encoder::new(&spec, None, Side::Both, LIMITS).unwrap();
    let error = Dataset::open(&spec, &encoder).unwrap_err();
    assert!(error.message().contains(":2: the row is text and there is no tokenizer"), "{error}");
}

#[test]
fn the_digest_sees_content_numbering_and_names_but_not_the_folder() {
    let digest = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            write(folder.path(), name, content);
        }
        let spec = spec(folder.path(), DataTask::CausalLm, &json!({"max_bad_rows": 9}));
        Dataset::open(&spec, &encoder(&spec)).unwrap().digest().to_owned()
    };
    let base = digest(&[("a.jsonl", "{\"text\": \"a\"}\n")]);
    assert_eq!(base, digest(&[("a.jsonl", "{\"text\": \"a\"}\n")]));
    assert_eq!(base.len(), 64);
    let others = [
        digest(&[("b.jsonl", "{\"text\": \"a\"}\n")]),
        digest(&[("a.jsonl", "{\"text\": \"b\"}\n")]),
        digest(&[("a.jsonl", "{\"text\": \"a\"}\n7\n")]),
        digest(&[("a.jsonl", "7\n{\"text\": \"a\"}\n")]),
    ];
    assert_eq!(others.iter().chain([&base]).collect::<BTreeSet<_>>().len(), 5);
}

/// The same bytes, one usable row, but another one.
#[test]
fn the_digest_sees_which_rows_are_usable() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", "{\"a\": \"the\"}\n{\"b\": \"cat\"}\n");
    let digest = |text: &str| {
        let spec = spec(&path, DataTask::CausalLm, &json!({"text": text, "max_bad_rows": 1}));
        Dataset::open(&spec, &encoder(&spec)).unwrap().digest().to_owned()
    };
    assert_ne!(digest("{a}"), digest("{b}"));
}

#[test]
fn shards_are_ranges_of_rows() {
    let content = "{\"text\": \"a\"}\n".repeat(2_500);
    let (dataset, _) = open(&content, &json!({})).unwrap();
    let shards: Vec<_> = dataset.shards().map(|shard| (shard.index, shard.rows)).collect();
    assert_eq!(shards, [(0, 0..1_024), (1, 1_024..2_048), (2, 2_048..2_500)]);
    assert_eq!(SHARD_ROWS, 1_024);
}

#[test]
fn a_file_that_changes_under_the_job_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    let spec = spec(&path, DataTask::CausalLm, &json!({}));
    let dataset = Dataset::open(&spec, &encoder(&spec)).unwrap();
    std::fs::write(&path, "{\"text\": \"a\"}\n???????????????\n").unwrap();
    assert_eq!(dataset.row(0).unwrap().fields["text"], "a");
    let error = dataset.row(1).unwrap_err();
    assert_eq!(error.code(), code::DATA_ROW);
    assert!(error.message().contains("rows.jsonl:2: not valid JSON"), "{error}");
    std::fs::write(&path, "{}").unwrap();
    assert_eq!(dataset.row(1).unwrap_err().code(), code::DATA_SOURCE);
}
