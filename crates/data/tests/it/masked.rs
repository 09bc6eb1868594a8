//! Rows of masked language modelling: what is drawn, what a row may say itself, and what stands beside.

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_data::{BESIDE, Batch, Content, Dataset, Encoder, Example, IGNORE, Limits, Marks, Side, Tokenizer};
use pleach_spec::job::{DataTask, Masking};
use serde_json::{Value, json};

use super::{LIMITS, encoder, fixture, spec, write};

/// What stands for a masked token; the fixture's tokenizer names none.
const MASK: u32 = 4;

/// Rows of this content with their encoder, half of whose tokens are masked.
fn open(content: &str, more: &Value) -> (Dataset, Encoder) {
    let folder = tempfile::tempdir().unwrap();
    let mut all = json!({"mask_token_id": MASK});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let spec = spec(&write(folder.path(), "rows.jsonl", content), DataTask::MaskedLm, &all);
    let half = Masking { probability: 0.5, mix: [1.0, 0.0, 0.0] };
    let encoder = encoder(&spec).masking(half, Key::seed(1));
    (Dataset::open(&spec, &encoder).unwrap(), encoder)
}

fn marked(example: &Example) -> (&[u32], &Marks) {
    match &example.content {
        Content::Marked(tokens, marks) => (&tokens.ids, marks),
        other => panic!("a masked row is marked: {other:?}"),
    }
}

#[test]
fn words_are_masked_and_special_tokens_are_not() {
    let (dataset, encoder) = open(&json!({"text": "cat ".repeat(60)}).to_string(), &json!({"max_length": 40}));
    let example = encoder.encode_in(&dataset.row(0).unwrap(), 0).unwrap();
    let (ids, marks) = marked(&example);
    assert_eq!((ids.len(), marks.labels.len()), (40, 40));
    assert_eq!((marks.labels[0], marks.labels[39]), (IGNORE, IGNORE), "what stands around the text");
    let masked = ids.iter().zip(&marks.labels).filter(|(id, label)| **id == MASK && **label != IGNORE).count();
    assert_eq!(masked, marks.labels.iter().filter(|label| **label != IGNORE).count());
    assert!((10..30).contains(&masked), "{masked} of 38");
    let cat = *marks.labels.iter().find(|label| **label != IGNORE).unwrap();
    assert!(ids[1..39].iter().all(|id| *id == MASK || i64::from(*id) == cat));
}

#[test]
fn every_epoch_masks_anew_and_every_evaluation_alike() {
    let (dataset, encoder) = open(&json!({"input_ids": vec![9; 64]}).to_string(), &json!({}));
    let row = dataset.row(0).unwrap();
    let labels = |example: Example| marked(&example).1.labels.clone();
    let epoch = |epoch| labels(encoder.encode_in(&row, epoch).unwrap());
    assert_eq!(epoch(3), epoch(3));
    assert_ne!(epoch(3), epoch(4));
    let evaluated = || labels(encoder.encode(&row).unwrap());
    assert_eq!(evaluated(), evaluated());
    assert_ne!(evaluated(), epoch(0));
}

/// Such as a fact whose object is masked whole.
#[test]
fn a_row_with_labels_is_masked_already() {
    let row = json!({"input_ids": [7, 8, MASK, MASK], "labels": [IGNORE, IGNORE, 11, 12]});
    let (dataset, encoder) = open(&row.to_string(), &json!({}));
    let example = encoder.encode_in(&dataset.row(0).unwrap(), 0).unwrap();
    let (ids, marks) = marked(&example);
    assert_eq!((ids, &marks.labels[..]), (&[7, 8, MASK, MASK][..], &[IGNORE, IGNORE, 11, 12][..]));
    // The first token counts like any other.
    let batch = Batch::collate(DataTask::MaskedLm, &[example]).unwrap();
    assert_eq!(batch.counts().labels, 2);
    let first = json!({"input_ids": [MASK, 8], "labels": [5, IGNORE]});
    let (dataset, encoder) = open(&first.to_string(), &json!({}));
    let example = encoder.encode(&dataset.row(0).unwrap()).unwrap();
    assert_eq!(Batch::collate(DataTask::MaskedLm, &[example]).unwrap().counts().labels, 1);
}

#[test]
fn there_must_be_a_mask() {
    let folder = tempfile::tempdir().unwrap();
    let make = |more: Value| {
        let spec = spec(&write(folder.path(), "rows.jsonl", "{}"), DataTask::MaskedLm, &more);
        Encoder::new(&spec, None, Side::Both, LIMITS).map(drop)
    };
    for more in [json!({}), json!({"mask_token_id": LIMITS.vocab_size})] {
        let error = make(more).unwrap_err();
        assert_eq!(error.code(), code::BAD_VALUE);
        assert!(error.message().starts_with("spec.data.mask_token_id: "), "{error}");
    }
    make(json!({"mask_token_id": MASK})).unwrap();
}

#[test]
fn a_tokenizer_names_its_mask_and_is_never_asked_for_it() {
    let mut file: Value = serde_json::from_slice(&std::fs::read(fixture("wordpiece.json")).unwrap()).unwrap();
    let id = file["model"]["vocab"].as_object().unwrap().len();
    file["model"]["vocab"]["[MASK]"] = json!(id);
    let mut token = file["added_tokens"][0].clone();
    (token["id"], token["content"]) = (json!(id), json!("[MASK]"));
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let tokenizer = Tokenizer::from_bytes(&serde_json::to_vec(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.mask_id(), Some(id as u32));
    assert!([0, 2, 3, id as u32].iter().all(|special| tokenizer.special_ids().contains(special)));
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "rows.jsonl", json!({"text": "cat [MASK] cat cat"}).to_string());
    let spec = spec(&path, DataTask::MaskedLm, &json!({}));
    let all = Masking { probability: 1.0, mix: [1.0, 0.0, 0.0] };
    let encoder = Encoder::new(&spec, Some(tokenizer), Side::Both, Limits { vocab_size: id as u32 + 1, ..LIMITS });
    let encoder = encoder.unwrap().masking(all, Key::seed(1));
    let dataset = Dataset::open(&spec, &encoder).unwrap();
    let example = encoder.encode(&dataset.row(0).unwrap()).unwrap();
    let (ids, marks) = marked(&example);
    assert_eq!(ids.iter().filter(|read| **read == id as u32).count(), 4);
    assert_eq!(marks.labels.iter().filter(|label| **label != IGNORE).count(), 3, "a mask has no word to find");
}

#[test]
fn rows_beside_are_of_a_task_of_their_own_and_nothing_of_them_is_predicted() {
    let rows: String = (0..4).map(|n| json!({"input_ids": vec![7 + n; 20]}).to_string() + "\n").collect();
    let (dataset, encoder) = open(&rows, &json!({}));
    let examples: Vec<_> = (0..4).map(|row| encoder.encode_in(&dataset.row(row).unwrap(), 0).unwrap()).collect();
    let of = |rows: &[Example]| Batch::collate(DataTask::MaskedLm, rows).unwrap();
    let (own, others) = (of(&examples[..2]), of(&examples[2..]));
    assert!(others.counts().labels > 0);
    let both = own.clone().beside(others.clone());
    assert_eq!((both.len(), &both.row_tasks[..]), (4, &[0, 0, 1, 1][..]));
    assert_eq!((both.counts().labels, both.counts().tokens), (own.counts().labels, 80));
    assert_eq!((&both.sample_ids[..], both.own_ids()), (&[0, 1, BESIDE + 2, BESIDE + 3][..], vec![0, 1]));
    assert_eq!(both.inputs.row(3), others.inputs.row(1), "they are masked all the same");
    let none = of(&[]).beside(others);
    assert_eq!((none.counts().labels, &none.row_tasks[..]), (0, &[1, 1][..]), "a lane without rows of its own");
}
