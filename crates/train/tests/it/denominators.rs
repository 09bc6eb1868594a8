//! The loss of a step is the mean over what the *global* batch counts, however it is cut.

use pleach_train::Outcome;
use rstest::rstest;
use serde_json::json;

use crate::fixture::{bert_job, llama_job, run_alone};

#[rstest]
#[case::micro_batches_of_one(json!({"micro_batch": 1}))]
#[case::uneven_micro_batches(json!({"micro_batch": 3}))]
#[case::one_lane(json!({"lanes": 1}))]
#[case::a_lane_a_row(json!({"lanes": 8, "micro_batch": 1}))]
#[case::strict_lanes(json!({"lanes": 4, "determinism": "strict"}))]
#[case::strict_micro_batches(json!({"lanes": 2, "determinism": "strict", "micro_batch": 3}))]
fn cuts_do_not_change_the_loss(#[case] change: serde_json::Value, #[values(false, true)] retrieval: bool) {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let job = |folder| if retrieval { bert_job(folder, 20) } else { llama_job(folder, 20) };
    let (outcome, expected) = run_alone(&job(whole.path()));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let mut changed = job(cut.path());
    for (key, value) in change.as_object().unwrap() {
        changed["spec"]["train"][key] = value.clone();
    }
    let (outcome, found) = run_alone(&changed);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    // Later steps see earlier rounding through the optimiser, so the bound grows a little.
    for (step, (a, b)) in expected.losses().iter().zip(found.losses()).enumerate() {
        assert!((a - b).abs() < 2e-5, "step {}: {a} whole, {b} cut by {change}", step + 1);
    }
}
