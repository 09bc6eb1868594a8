//! The tools hold what pages take for granted.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_nn::HeadKind;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::*;

const CPU: Device = Device::Cpu;

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// Rows that a model of this configuration reads.
fn rows(config: &Value) -> Data {
    let key = Key::seed(5);
    if config["model_type"] == "vit" {
        return Data::new(uniform(key, &[12, 1, 8, 8], CPU), Tensor::from_slice(&[0i64, 1, 2].repeat(4)));
    }
    let ids = (uniform(key, &[12, 7], CPU) * 20.0).to_kind(Kind::Int64);
    Data { x: ids.shallow_clone(), y: ids, lengths: Some([7, 5, 7].repeat(4)) }
}

#[test]
fn a_pretrained_model_is_what_was_trained_and_reads_back() {
    for config in [vit(16, 2, (1, 8, 4), 3), bert(16, 2, 20, 8), gpt2(16, 2, 20, 8), llama(16, 2, 20, 8)] {
        let name = config["model_type"].to_string();
        let before = Tiny::draw(&config, None, Key::seed(1), CPU).unwrap();
        let data = rows(&config);
        let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), Key::seed(2)).unwrap();
        let losses = fit(&*before.model, &whole, &Recipe::new(20, 12, 1e-2), &data, Key::seed(3)).unwrap();
        assert!(losses[19] < losses[0], "{name}: {losses:?}");
        let after = before.trained(&whole).unwrap();
        let (trained, bare_before) =
            (outputs(&*before.model, &whole, &data).unwrap(), bare(&*before.model, &data).unwrap());
        let found = bare(&*after.model, &data).unwrap();
        assert!(apart(&found, &trained) < 1e-4, "{name}: {}", apart(&found, &trained));
        assert!(apart(&found, &bare_before) > 1e-2, "{name}");
    }
}

#[test]
fn a_new_head_stands_on_the_trained_layers() {
    let config = bert(16, 1, 20, 8);
    let before = Tiny::draw(&config, None, Key::seed(1), CPU).unwrap();
    let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), Key::seed(2)).unwrap();
    fit(&*before.model, &whole, &Recipe::new(3, 4, 1e-2), &rows(&config), Key::seed(3)).unwrap();
    let below = before.trained_below(&whole, HeadKind::SequenceClassification, Some(4)).unwrap();
    let data = Data { y: Tensor::from_slice(&[0i64, 1, 2, 3].repeat(3)), ..rows(&config) };
    assert_eq!(bare(&*below.model, &data).unwrap().size(), [12, 4]);
    let mut compared = 0;
    for site in below.model.config().sites().iter().filter(|site| site.path.contains("encoder.layer.0")) {
        let (Some(own), Some(old)) = (below.model.weights(site.id), before.model.config().sites().by_path(&site.path))
        else {
            continue;
        };
        let merged = whole.merge(before.model.config().sites(), &*before.model).unwrap();
        assert!(apart(&own.weight, &merged[&old.id].weight) < 1e-6, "{}", site.path);
        compared += 1;
    }
    assert!(compared >= 6, "{compared}");
}

fn shape(classes: Option<usize>) -> Shape {
    Shape { input: 6, hidden: vec![8, 5], act: Act::Relu, bias: true, classes }
}

#[test]
fn methods_act_on_a_perceptron() {
    let model = Mlp::draw(&shape(Some(3)), Key::seed(1), CPU);
    let data = Data::new(normal(Key::seed(2), &[30, 6], CPU), Tensor::from_slice(&[0i64, 1, 2].repeat(10)));
    let before = bare(&model, &data).unwrap();
    for described in [
        json!({"method": "lora", "r": 2, "target_modules": ["fc"], "modules_to_save": ["classifier"]}),
        json!({"method": "bottleneck", "reduction_factor": 2, "modules_to_save": ["classifier"]}),
    ] {
        let own = adapter(&model, &described, Key::seed(3)).unwrap();
        let start = outputs(&model, &own, &data).unwrap();
        let losses = fit(&model, &own, &Recipe::new(40, 30, 3e-2), &data, Key::seed(4)).unwrap();
        assert!(losses[39] < losses[0], "{described}: {losses:?}");
        assert!(apart(&outputs(&model, &own, &data).unwrap(), &start) > 1e-2, "{described}");
        assert!(apart(&bare(&model, &data).unwrap(), &before) == 0.0, "the model is frozen");
    }
    let lora = adapter(&model, &json!({"method": "lora", "r": 2, "target_modules": ["fc"]}), Key::seed(3)).unwrap();
    assert!(apart(&outputs(&model, &lora, &data).unwrap(), &before) < 1e-6, "an adapter that does nothing yet");
    fit(&model, &lora, &Recipe::new(5, 30, 3e-2), &data, Key::seed(4)).unwrap();
    let merged = model.trained(&lora).unwrap();
    assert!(apart(&bare(&merged, &data).unwrap(), &outputs(&model, &lora, &data).unwrap()) < 1e-5);
}

#[test]
fn a_stand_in_trains_what_it_says() {
    let model = Mlp::draw(&shape(Some(3)), Key::seed(1), CPU);
    let count = |stand_in: StandIn| adapter_of(&model, Arc::new(stand_in), Key::seed(1)).unwrap().plan().params();
    assert_eq!(count(StandIn::whole()), 6 * 8 + 8 + 8 * 5 + 5 + 5 * 3 + 3);
    assert_eq!(count(StandIn::head()), 5 * 3 + 3);
    assert_eq!(count(StandIn::biases()), 8 + 5 + 5 * 3 + 3);
}

/// The engine's loss is that of the definition, and training comes near a linear teacher.
#[test]
fn vectors_are_learned_by_squared_differences() {
    let model = Mlp::draw(&Shape { hidden: vec![4], act: Act::None, ..shape(None) }, Key::seed(1), CPU);
    let x = normal(Key::seed(2), &[40, 6], CPU);
    let y = x.matmul(&normal(Key::seed(3), &[6, 4], CPU));
    let data = Data::new(x, y.shallow_clone());
    let whole = adapter_of(&model, Arc::new(StandIn::whole()), Key::seed(1)).unwrap();
    let first = (bare(&model, &data).unwrap() - &y).square().mean(Kind::Double).double_value(&[]);
    let losses = fit(&model, &whole, &Recipe::new(400, 40, 5e-2), &data, Key::seed(4)).unwrap();
    assert!((losses[0] - first).abs() < 1e-5, "{} instead of {first}", losses[0]);
    assert!(loss(&model, &whole, &data).unwrap() < 1e-3);
}

#[test]
fn every_epoch_has_each_row_once() {
    let mut batches = Batches::new(Key::seed(1), 10, 4);
    let drawn: Vec<i64> = (0..5).flat_map(|_| batches.draw()).collect();
    for epoch in drawn.chunks(10) {
        let mut rows = epoch.to_vec();
        rows.sort_unstable();
        assert_eq!(rows, (0..10).collect::<Vec<_>>());
    }
    assert_ne!(drawn[..10], drawn[10..]);
}

#[test]
fn a_causal_models_score_is_of_the_next_token() {
    let config = gpt2(16, 1, 20, 8);
    let model = Tiny::draw(&config, None, Key::seed(1), CPU).unwrap();
    let data = Data { lengths: None, ..rows(&config) };
    let head = adapter_of(&*model.model, Arc::new(StandIn::head()), Key::seed(2)).unwrap();
    let logits = bare(&*model.model, &data).unwrap();
    let next = logits.narrow(1, 0, 6).argmax(-1, false).eq_tensor(&data.y.narrow(1, 1, 6));
    let expected = 100.0 * next.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((accuracy(&*model.model, &head, &data).unwrap() - expected).abs() < 1e-9);
    let first = fit(&*model.model, &head, &Recipe::new(1, 12, 0.0), &data, Key::seed(3)).unwrap()[0];
    assert!((loss(&*model.model, &head, &data).unwrap() - first).abs() < 1e-5);
}
