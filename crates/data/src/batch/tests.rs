use proptest::prelude::*;

use super::*;
use crate::Encoded;

fn encoded(ids: &[u32]) -> Encoded {
    Encoded { ids: ids.to_vec(), type_ids: ids.iter().map(|id| id % 2).collect() }
}

fn lm(sample_id: u64, ids: &[u32]) -> Example {
    Example { sample_id, row_task: None, content: Content::Lm(encoded(ids)) }
}

fn class(sample_id: u64, ids: &[u32], label: u32) -> Example {
    Example { sample_id, row_task: None, content: Content::Classification { input: encoded(ids), label } }
}

fn pair(sample_id: u64, query: &[u32], passage: &[u32]) -> Example {
    let (query, passage) = (Some(encoded(query)), encoded(passage));
    Example { sample_id, row_task: None, content: Content::Pair { query, passage } }
}

#[test]
fn padded_and_packed_are_as_worked_out_by_hand() {
    let batch = Batch::collate(DataTask::CausalLm, &[lm(7, &[11, 12, 13]), lm(3, &[21])]).unwrap();
    let padded = batch.inputs.padded(9, 4);
    assert_eq!((padded.rows, padded.width), (2, 4));
    assert_eq!(padded.input_ids, [11, 12, 13, 9, 21, 9, 9, 9]);
    assert_eq!(padded.type_ids, [1, 0, 1, 0, 1, 0, 0, 0]);
    assert_eq!(padded.attention_mask, [1, 1, 1, 0, 1, 0, 0, 0]);
    assert_eq!(padded.positions, [0, 1, 2, 0, 0, 0, 0, 0]);
    assert_eq!(padded.lengths, [3, 1]);
    assert_eq!(padded.lm_labels(), [11, 12, 13, -100, 21, -100, -100, -100]);

    let packed = batch.inputs.packed();
    assert_eq!(packed.input_ids, [11, 12, 13, 21]);
    assert_eq!(packed.positions, [0, 1, 2, 0]);
    assert_eq!((packed.cu_seqlens.as_slice(), packed.max_length), (&[0, 3, 4][..], 3));
    assert_eq!(packed.lm_labels(), [-100, 12, 13, -100]);
    assert_eq!(batch.counts(), Counts { samples: 2, tokens: 4, labels: 2 });
}

#[test]
fn padding_with_the_id_of_a_token_does_not_hide_the_token() {
    let padded = Ragged::of(&[encoded(&[0, 5]), encoded(&[0])]).padded(0, 1);
    assert_eq!(padded.lm_labels(), [0, 5, 0, IGNORE]);
}

#[test]
fn classes_and_passages_travel_with_their_rows() {
    let batch = Batch::collate(DataTask::SequenceClassification, &[class(1, &[1], 2), class(2, &[1, 2], 0)]).unwrap();
    assert_eq!(batch.classes, Some(vec![2, 0]));
    assert_eq!(batch.counts(), Counts { samples: 2, tokens: 3, labels: 2 });

    let batch = Batch::collate(DataTask::Retrieval, &[pair(5, &[1, 2], &[3]), pair(6, &[4], &[5, 6, 7])]).unwrap();
    assert_eq!(batch.slice(1..2).passages.unwrap().row(0), [5, 6, 7]);
    assert_eq!(batch.slice(1..2).inputs.row(0), [4]);
    assert_eq!(batch.counts(), Counts { samples: 2, tokens: 7, labels: 2 });
    assert_eq!(batch.inputs.row(2), [0i64; 0]);
}

#[test]
fn another_tasks_example_is_refused() {
    let error = Batch::collate(DataTask::CausalLm, &[lm(1, &[1]), class(2, &[1], 0)]).unwrap_err();
    assert_eq!(error.code(), code::INTERNAL);
}

#[test]
fn an_empty_lane_makes_an_empty_batch() {
    let batch = Batch::collate(DataTask::CausalLm, &[]).unwrap();
    assert!(batch.is_empty());
    assert_eq!(batch.counts(), Counts::default());
    assert_eq!(batch.inputs.padded(0, 8).input_ids, [0i64; 0]);
    assert_eq!(batch.inputs.packed().cu_seqlens, [0]);
}

/// The expected value was computed by another program over the same bytes.
#[test]
fn the_sample_digest_is_stable_and_sees_order_and_epoch() {
    let digest = sample_digest(1, &[2, 3]);
    assert_eq!(digest, "e2e2033ae7e19d680599d4eb0a1359a2b48ec5baac75066c317fbf85159c54ef");
    assert_ne!(digest, sample_digest(1, &[3, 2]));
    assert_ne!(digest, sample_digest(2, &[2, 3]));
}

proptest! {
    #[test]
    fn both_forms_hold_the_same_tokens_and_labels(
        rows in prop::collection::vec(prop::collection::vec(0u32..50, 1..12), 0..8), multiple_of in 1usize..9,
    ) {
        let examples: Vec<_> = rows.iter().enumerate().map(|(id, ids)| lm(id as u64, ids)).collect();
        let batch = Batch::collate(DataTask::CausalLm, &examples).unwrap();
        let (padded, packed) = (batch.inputs.padded(3, multiple_of), batch.inputs.packed());
        prop_assert_eq!(padded.width % multiple_of, 0);
        let real = |cells: &[i64]| {
            let masked = cells.iter().zip(&padded.attention_mask);
            masked.filter(|(_, mask)| **mask == 1).map(|(cell, _)| *cell).collect::<Vec<_>>()
        };
        prop_assert_eq!(real(&padded.input_ids), packed.input_ids.clone());
        prop_assert_eq!(real(&padded.type_ids), packed.type_ids.clone());
        prop_assert_eq!(real(&padded.positions), packed.positions.clone());
        let predicted = packed.lm_labels().iter().filter(|label| **label != IGNORE).count() as u64;
        let shifted = padded.lm_labels().chunks(padded.width.max(1)).flat_map(|row| row[1..].to_vec()).collect::<Vec<_>>();
        prop_assert_eq!(shifted.iter().filter(|label| **label != IGNORE).count() as u64, predicted);
        prop_assert_eq!(batch.counts().labels, predicted);
    }

    #[test]
    fn slices_put_together_are_the_batch(
        rows in prop::collection::vec((prop::collection::vec(0u32..50, 1..9), prop::collection::vec(0u32..50, 1..9)), 1..9),
        cut in any::<prop::sample::Index>(),
    ) {
        let examples: Vec<_> = rows.iter().enumerate().map(|(id, (a, b))| pair(id as u64, a, b)).collect();
        let batch = Batch::collate(DataTask::Retrieval, &examples).unwrap();
        let cut = cut.index(batch.len() + 1);
        let parts = [batch.slice(0..cut), batch.slice(cut..batch.len())];
        let mut counts = parts[0].counts();
        counts += parts[1].counts();
        prop_assert_eq!(counts, batch.counts());
        prop_assert_eq!(Batch::concat(parts), Some(batch));
    }
}
