//! Token ids worked out by hand from the fixture's vocabulary: 2 = [CLS], 3 = [SEP], 1 = [UNK].

use pleach_base::{Code, code};
use pleach_data::{
    Content, Dataset, Encoded, Encoder, Limits, Marks, Place, Row, Side, Template, Tokenizer, Understood,
};
use pleach_spec::job::DataTask;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{LIMITS, encoder, fixture, spec, tokenizer, write};

fn row(fields: &Value) -> Row {
    let place = Place { file: "x.jsonl".into(), line: 3 };
    Row { id: 8, place, fields: fields.as_object().unwrap().clone() }
}

fn content(task: DataTask, more: &Value, fields: &Value) -> Content {
    let spec = spec("x.jsonl".as_ref(), task, more);
    let example = encoder(&spec).encode(&row(fields)).unwrap();
    assert_eq!(example.sample_id, 8);
    example.content
}

fn encoded(ids: &[u32], type_ids: &[u32]) -> Encoded {
    Encoded { ids: ids.to_vec(), type_ids: type_ids.to_vec() }
}

#[rstest]
#[case("The cat sat on the mat.", &[2, 4, 6, 10, 14, 4, 17, 52, 3])]
#[case("playing playable cats", &[2, 64, 59, 64, 63, 6, 58, 3])]
#[case("a zebra", &[2, 5, 1, 3])]
#[case("the [SEP] dog", &[2, 4, 3, 7, 3])]
fn text_becomes_ids(#[case] text: &str, #[case] ids: &[u32]) {
    let made = content(DataTask::CausalLm, &json!({}), &json!({"text": text}));
    assert_eq!(made, Content::Lm(encoded(ids, &vec![0; ids.len()])));
}

#[test]
fn a_template_joins_fields() {
    let more = json!({"text": "{question}? {{}} {n}"});
    let made = content(DataTask::CausalLm, &more, &json!({"question": "what is a cat", "n": 2, "other": []}));
    // `{`, `}` and `2` are not in the vocabulary.
    assert_eq!(made, Content::Lm(encoded(&[2, 23, 24, 5, 6, 54, 1, 1, 1, 3], &[0; 10])));
}

#[test]
fn long_texts_are_cut_and_keep_their_special_tokens() {
    let made = content(DataTask::CausalLm, &json!({"max_length": 5}), &json!({"text": "the cat sat on the mat"}));
    assert_eq!(made, Content::Lm(encoded(&[2, 4, 6, 10, 3], &[0; 5])));
}

#[test]
fn a_pair_is_one_sequence_with_segments() {
    let more = json!({"text_pair": "{b}", "label": "class", "max_length": 8});
    let task = DataTask::SequenceClassification;
    let made = content(task, &more, &json!({"text": "the cat", "b": "a dog", "class": 2}));
    let input = encoded(&[2, 4, 6, 3, 5, 7, 3], &[0, 0, 0, 0, 1, 1, 1]);
    assert_eq!(made, Content::Classification { input, label: 2 });
    // Room for 5 beside the special tokens: the longer text is cut.
    let made = content(task, &more, &json!({"text": "the cat", "b": "a dog ran on the mat", "class": 0}));
    let input = encoded(&[2, 4, 6, 3, 5, 7, 11, 3], &[0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(made, Content::Classification { input, label: 0 });
}

#[test]
fn a_pair_has_segments_even_if_the_tokenizer_sets_none() {
    let spec = spec("x.jsonl".as_ref(), DataTask::SequenceClassification, &json!({"text_pair": "{b}"}));
    let encoder = Encoder::new(&spec, Some(tokenizer("bare.json")), Side::Both, LIMITS).unwrap();
    let example = encoder.encode(&row(&json!({"text": "up down", "b": "left", "label": 0}))).unwrap();
    let input = encoded(&[0, 1, 2], &[0, 0, 1]);
    assert_eq!(example.content, Content::Classification { input, label: 0 });
}

#[test]
fn a_retrieval_row_is_two_sequences() {
    let fields = json!({"text": "what is a cat", "text_pair": "the cat is slow"});
    let passage = encoded(&[2, 4, 6, 24, 37, 3], &[0; 6]);
    let query = Some(encoded(&[2, 23, 24, 5, 6, 3], &[0; 6]));
    let more = json!({"text_pair": "{text_pair}"});
    let made = content(DataTask::Retrieval, &more, &fields);
    assert_eq!(made, Content::Pair { query, passage: passage.clone() });
    // Candidates need no query.
    let spec = spec("x.jsonl".as_ref(), DataTask::Retrieval, &more);
    let encoder = Encoder::new(&spec, Some(tokenizer("wordpiece.json")), Side::Passage, LIMITS).unwrap();
    let example = encoder.encode(&row(&json!({"text_pair": "the cat is slow"}))).unwrap();
    assert_eq!(example.content, Content::Pair { query: None, passage });
}

#[test]
fn ready_ids_are_taken_as_they_are_and_cut() {
    let made = content(DataTask::CausalLm, &json!({"max_length": 3}), &json!({"input_ids": [9, 8, 7, 6], "text": "a"}));
    assert_eq!(made, Content::Lm(encoded(&[9, 8, 7], &[0; 3])));
    let fields = json!({"input_ids": [9, 8], "token_type_ids": [0, 1], "label": 1});
    let made = content(DataTask::SequenceClassification, &json!({}), &fields);
    assert_eq!(made, Content::Classification { input: encoded(&[9, 8], &[0, 1]), label: 1 });
    let fields = json!({"input_ids": [9], "input_ids_pair": [8, 7]});
    let made = content(DataTask::Retrieval, &json!({}), &fields);
    assert_eq!(made, Content::Pair { query: Some(encoded(&[9], &[0])), passage: encoded(&[8, 7], &[0, 0]) });
    // Retrieval with neither template takes nothing else.
    let ids = encoder(&spec("x.jsonl".as_ref(), DataTask::Retrieval, &json!({})));
    assert_eq!(ids.fields().names().into_iter().collect::<Vec<_>>(), ["input_ids", "input_ids_pair"]);
    for (fields, lacks) in [
        (json!({"text": "a", "text_pair": "a"}), "input_ids"),
        (json!({"input_ids": [9], "text_pair": "a"}), "input_ids_pair"),
    ] {
        let error = ids.encode(&row(&fields)).unwrap_err();
        assert_eq!(error.code(), code::DATA_ROW);
        assert!(error.message().contains(&format!("field `{lacks}` is missing; rows of text need")), "{error}");
    }
    // A template of the job's own wins over ready ids.
    let made = content(DataTask::CausalLm, &json!({"text": "{text}"}), &json!({"input_ids": [9], "text": "a"}));
    assert_eq!(made, Content::Lm(encoded(&[2, 5, 3], &[0; 3])));
}

#[test]
fn a_late_fault_names_its_place() {
    let spec = spec("x.jsonl".as_ref(), DataTask::CausalLm, &json!({}));
    let error = encoder(&spec).encode(&row(&json!({"txt": "a"}))).unwrap_err();
    assert_eq!(error.code(), code::DATA_ROW);
    assert_eq!(error.message(), "x.jsonl:3: field `text` is missing; did you mean `txt`?");
}

#[test]
fn special_tokens_and_padding_come_from_the_file() {
    let tokenizer = tokenizer("wordpiece.json");
    assert_eq!((tokenizer.pad_id(), tokenizer.max_id()), (0, 69));
    assert_eq!((tokenizer.special_tokens(false), tokenizer.special_tokens(true)), (2, 3));
}

#[rstest]
#[case("{a")]
#[case("a}")]
#[case("{}")]
#[case("{a{b}")]
#[case("plain")]
#[case("{{a}}")]
fn a_broken_template_is_refused(#[case] template: &str) {
    let error = Template::parse(template, "spec.data.text").unwrap_err();
    assert_eq!(error.code(), code::BAD_VALUE);
    assert!(error.message().starts_with("spec.data.text: "), "{error}");
}

#[test]
fn a_sequence_without_room_for_a_token_is_refused() {
    let refused = |task, more| -> Code {
        let spec = spec("x.jsonl".as_ref(), task, &more);
        Encoder::new(&spec, Some(tokenizer("wordpiece.json")), Side::Both, LIMITS).unwrap_err().code()
    };
    assert_eq!(refused(DataTask::CausalLm, json!({"max_length": 2})), code::BAD_VALUE);
    let pair = json!({"max_length": 4, "text_pair": "{b}"});
    assert_eq!(refused(DataTask::SequenceClassification, pair), code::BAD_VALUE);
}

#[test]
fn positions_of_the_model_limit_the_length() {
    let spec = spec("x.jsonl".as_ref(), DataTask::CausalLm, &json!({"max_length": 512}));
    let limits = Limits { max_positions: Some(6), ..LIMITS };
    let encoder = Encoder::new(&spec, Some(tokenizer("wordpiece.json")), Side::Both, limits).unwrap();
    assert_eq!(encoder.max_length(), 6);
}

#[test]
fn a_missing_tokenizer_is_refused_unless_rows_bring_ids() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", "{\"input_ids\":[1,2]}\n");
    let ready = spec(&path, DataTask::CausalLm, &json!({}));
    let encoder = Encoder::open(&ready, folder.path(), Side::Both, LIMITS).unwrap();
    assert_eq!(Dataset::open(&ready, &encoder).unwrap().len(), 1);
    let text = spec(&path, DataTask::CausalLm, &json!({"text": "{text}"}));
    let error = Encoder::open(&text, folder.path(), Side::Both, LIMITS).unwrap_err();
    assert_eq!(error.code(), code::TOKENIZER);
    let named = spec(&path, DataTask::CausalLm, &json!({"tokenizer": "no/tokenizer.json"}));
    let error = Encoder::open(&named, folder.path(), Side::Both, LIMITS).unwrap_err();
    assert_eq!((error.code(), error.message()), (code::TOKENIZER, "no/tokenizer.json: cannot be read"));
    std::fs::copy(fixture("wordpiece.json"), folder.path().join("tokenizer.json")).unwrap();
    assert!(Encoder::open(&text, folder.path(), Side::Both, LIMITS).is_ok());
}

/// The crate's own truncation, for rooms that it can handle.
fn reference(first: &str, second: Option<&str>, max_length: usize) -> Encoded {
    let mut inner = tokenizers::Tokenizer::from_file(fixture("wordpiece.json")).unwrap();
    inner.with_padding(None);
    inner.with_truncation(Some(tokenizers::TruncationParams { max_length, ..Default::default() })).unwrap();
    let made = match second {
        Some(second) => inner.encode((first, second), true).unwrap(),
        None => inner.encode(first, true).unwrap(),
    };
    encoded(made.get_ids(), made.get_type_ids())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn our_truncation_agrees_with_the_tokenizers_crate(
        a in prop::collection::vec(prop::sample::select(vec!["the", "cat", "playing", "x", "?"]), 1..14),
        b in prop::collection::vec(prop::sample::select(vec!["a", "dogs", "ran", "."]), 1..14),
        max_length in 5usize..24, pair in any::<bool>(),
    ) {
        let (a, b) = (a.join(" "), b.join(" "));
        let mut more = json!({"max_length": max_length});
        if pair {
            more["text_pair"] = json!("{b}");
        }
        let made = content(DataTask::SequenceClassification, &more, &json!({"text": a, "b": b, "label": 0}));
        let input = reference(&a, pair.then_some(b.as_str()), max_length);
        prop_assert_eq!(made, Content::Classification { input, label: 0 });
    }
}

#[test]
fn bytes_of_another_file_are_refused() {
    let error = Tokenizer::from_bytes(b"{\"model\": {}}").unwrap_err();
    assert_eq!(error.code(), code::TOKENIZER);
}

/// Rows of ready ids with these fields, read by an adapter of one further modality of two tokens an item.
fn marked(fields: &Value) -> Result<Content, String> {
    let spec = spec("x.jsonl".as_ref(), DataTask::CausalLm, &json!({"max_length": 6}));
    let understood = Understood { segments: true, modalities: vec![0, 2], width: 2 };
    let encoder = encoder(&spec).understanding(understood);
    encoder.encode(&row(fields)).map(|example| example.content).map_err(|error| error.message().to_owned())
}

#[test]
fn ready_ids_may_say_what_is_predicted_and_what_is_no_text() {
    let made = marked(&json!({"input_ids": [9, 0, 0, 8, 7, 6, 5], "labels": [-100, -100, -100, 8, 7, 6, 5],
                              "segment_ids": [0, 0, 0, 0, 1, 1, 1], "modality_ids": [0, 1, 1, 0, 0, 0, 0],
                              "features": [[0.5, 1.0], [2.0, -3.0]]}));
    let marks = Marks {
        labels: vec![-100, -100, -100, 8, 7, 6],
        segments: vec![0, 0, 0, 0, 1, 1],
        modality: vec![0, 1, 1, 0, 0, 0],
        features: vec![0.5, 1.0, 2.0, -3.0],
        width: 2,
    };
    assert_eq!(made.unwrap(), Content::Marked(encoded(&[9, 0, 0, 8, 7, 6], &[0; 6]), marks), "cut at the end");
    assert_eq!(marked(&json!({"input_ids": [9]})).unwrap(), Content::Lm(encoded(&[9], &[0])));
}

#[rstest]
#[case(json!({"labels": [1]}), "one number for each of 7 tokens")]
#[case(json!({"labels": [1, 2, 3, 4, 5, 6, 70]}), "neither -100 nor a token id")]
#[case(json!({"segment_ids": [0, 1, 0, 1, 1, 1, 1]}), "a number falls")]
#[case(json!({"modality_ids": [0, 2, 2, 0, 0, 0, 0]}), "has 2 modalities")]
#[case(json!({"modality_ids": [0, 1, 1, 1, 0, 0, 0]}), "not whole items of 2")]
#[case(json!({"modality_ids": [0, 1, 1, 0, 0, 0, 0]}), "`features` is missing")]
#[case(json!({"modality_ids": [0, 1, 1, 0, 0, 0, 0], "features": [[1, 2]]}), "not 2 lists of 2")]
#[case(json!({"modality_ids": [0, 0, 0, 0, 0, 1, 1], "features": [[1, 2], [3, 4]]}), "behind the 6 of max_length")]
fn marks_that_do_not_fit_are_refused(#[case] more: Value, #[case] why: &str) {
    let mut fields = json!({"input_ids": [9, 0, 0, 8, 7, 6, 5]});
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let found = marked(&fields).unwrap_err();
    assert!(found.contains(why), "{found}");
}

/// Whoever knows of no segments and no modalities does not read past what a row says of them.
#[test]
fn marks_that_nobody_understands_are_refused() {
    let spec = spec("x.jsonl".as_ref(), DataTask::CausalLm, &json!({}));
    for fields in
        [json!({"input_ids": [9, 8], "segment_ids": [0, 1]}), json!({"input_ids": [9, 8], "modality_ids": [0, 1]})]
    {
        assert!(encoder(&spec).encode(&row(&fields)).is_err());
    }
    let labels = json!({"input_ids": [9, 8], "labels": [-100, 8]});
    assert!(encoder(&spec).encode(&row(&labels)).is_ok(), "what is predicted is for everybody");
}
