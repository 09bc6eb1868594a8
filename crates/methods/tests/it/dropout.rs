//! Dropout is drawn for each sample by its id, and only in training.

use pleach_base::rng::Key;
use pleach_nn::Precision;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Batch, all, assert_near, distance, fresh, model, moved, parse};

#[rstest]
#[case("lora", json!({"lora_dropout": 0.5}))]
#[case("vera", json!({"vera_dropout": 0.5}))]
#[case("randlora", json!({"randlora_dropout": 0.5, "randlora_alpha": 4}))]
#[case("loha", json!({"rank_dropout": 0.5}))]
#[case("loha", json!({"module_dropout": 0.5, "alpha": 64}))]
#[case("lokr", json!({"rank_dropout": 0.5, "rank_dropout_scale": true}))]
fn masks_follow_the_sample_not_its_company_or_padding(#[case] method: &str, #[case] options: Value) {
    let model = model("llama-lora", Precision::Fp32);
    let adapter = moved(&model, &parse(method, &options), 1);
    let run = |batch: &Batch, step| batch.real(&model.run_at(batch, &all(batch, &adapter), true, step));
    let alone = run(&Batch::of(&[5], &[42], Some(5)), 3);
    let padded = run(&Batch::of(&[4, 5], &[7, 42], Some(9)), 3);
    let packed = run(&Batch::of(&[6, 5, 2], &[8, 42, 9], None), 3);
    assert_near(&padded.narrow(0, 4, 5), &alone, 1e-5);
    assert_near(&packed.narrow(0, 6, 5), &alone, 1e-5);
    assert!(distance(&run(&Batch::of(&[5], &[42], Some(5)), 4), &alone) > 1e-3, "another step, another mask");
    let evaluated = Batch::of(&[5], &[42], Some(5));
    let quiet = model.run(&evaluated, &all(&evaluated, &adapter));
    let mut options = options;
    options.as_object_mut().unwrap().retain(|name, _| !name.contains("dropout"));
    let plain = moved(&model, &parse(method, &options), 1);
    assert_eq!(distance(&quiet, &model.run(&evaluated, &all(&evaluated, &plain))), 0.0, "none in evaluation");
}

// At the head nothing comes after, so that the output is linear in the mask.
#[rstest]
#[case("lora", json!({"lora_dropout": 0.25, "target_modules": ["lm_head"], "lora_alpha": 64}))]
#[case("vera", json!({"vera_dropout": 0.25, "target_modules": ["lm_head"], "r": 32, "d_initial": 1}))]
#[case("loha", json!({"rank_dropout": 0.25, "target_modules": ["lm_head"], "alpha": 64}))]
#[case("lokr", json!({"rank_dropout": 0.25, "rank_dropout_scale": true, "target_modules": ["lm_head"]}))]
fn inputs_are_dropped_and_the_rest_scaled_as_often_as_asked(#[case] method: &str, #[case] options: Value) {
    let model = model("llama-lora", Precision::Fp32);
    let adapter = moved(&model, &parse(method, &options), 1);
    let batch = Batch::of(&[5], &[42], Some(5));
    let mean = (0..400)
        .map(|step| model.run_at(&batch, &all(&batch, &adapter), true, step))
        .reduce(|sum, next| sum + next)
        .map(|sum| sum / 400.0)
        .unwrap();
    let quiet = model.run(&batch, &all(&batch, &adapter));
    let one = model.run_at(&batch, &all(&batch, &adapter), true, 0);
    let (far, near) = (distance(&one, &quiet), distance(&mean, &quiet));
    assert!(near < far / 8.0, "the mean over steps nears the output without dropout: {near} and {far}");
}

/// With `B` still zero nothing may change, dropout or not: what is dropped is a copy of the model's own tensor.
#[test]
fn dropping_leaves_the_models_own_inputs_alone() {
    let model = model("llama-lora", Precision::Fp32);
    let options = json!({"lora_dropout": 0.5, "target_modules": "all-linear"});
    let adapter = fresh(&model, &parse("lora", &options), Key::seed(1));
    for batch in [Batch::of(&[4, 5], &[7, 42], Some(5)), Batch::of(&[4, 5], &[7, 42], None)] {
        let trained = model.run_at(&batch, &all(&batch, &adapter), true, 3);
        assert_eq!(distance(&trained, &model.run(&batch, &[])), 0.0);
    }
}

/// Some steps leave the module as it is, the others have it whole.
#[test]
fn modules_are_dropped_as_a_whole() {
    let model = model("llama-lora", Precision::Fp32);
    let adapter = moved(&model, &parse("lokr", &json!({"module_dropout": 0.25, "target_modules": ["lm_head"]})), 1);
    let batch = Batch::of(&[5], &[42], Some(5));
    let (with, without) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &[]));
    let steps: Vec<_> = (0..400).map(|step| model.run_at(&batch, &all(&batch, &adapter), true, step)).collect();
    let left_out = steps.iter().filter(|found| distance(found, &without) == 0.0).count();
    assert!(steps.iter().all(|found| distance(found, &without) == 0.0 || distance(found, &with) < 1e-6));
    assert!((70..130).contains(&left_out), "{left_out} of 400");
}
