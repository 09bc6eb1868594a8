//! Adapters of different rank and targets in one batch: each as if it were alone.

use pleach_nn::{Group, Precision};
use rstest::rstest;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::support::{Batch, all, assert_near, model, moved, parse};

#[rstest]
#[case("llama-lora", json!({"r": 4, "target_modules": "all-linear"}), json!({"r": 16, "target_modules": ["v_proj"], "use_rslora": true}))]
#[case("bert-lora", json!({"r": 2}), json!({"r": 8, "target_modules": ["dense", "query"], "lora_alpha": 32}))]
fn two_adapters_train_together_as_alone(
    #[case] name: &str,
    #[case] first: serde_json::Value,
    #[case] second: serde_json::Value,
    #[values(Some(9), None)] width: Option<usize>,
) {
    let model = model(name, Precision::Fp32);
    let (a, b) = (moved(&model, &parse("lora", &first), 1), moved(&model, &parse("lora", &second), 2));
    let batch = Batch::of(&[6, 9, 4, 6, 5], &[1, 2, 3, 4, 5], width);
    let groups = [Group { rows: 0..2, hooks: &a }, Group { rows: 2..5, hooks: &b }];
    let together = model.run(&batch, &groups);
    batch.real(&together).sin().sum(Kind::Float).backward();
    let grads = [a.params().flatten_grads(), b.params().flatten_grads()];
    let outputs = [0..2, 2..5].map(|rows: std::ops::Range<usize>| {
        let part = batch.rows(rows.clone());
        let own = if together.size()[..together.dim() - 1] == batch.layout.shape() {
            batch.layout.narrow(&together, rows)
        } else {
            together.narrow(0, rows.start as i64, rows.len() as i64)
        };
        part.real(&own)
    });
    for (index, (adapter, rows)) in [(&a, 0..2), (&b, 2..5)].into_iter().enumerate() {
        adapter.params().zero_grads();
        let part = batch.rows(rows);
        let alone = part.real(&model.run(&part, &all(&part, adapter)));
        assert_near(&outputs[index], &alone, 1e-5);
        alone.sin().sum(Kind::Float).backward();
        let expected = adapter.params().flatten_grads();
        let scale: Tensor = expected.abs().max();
        assert!(scale.double_value(&[]) > 1e-3);
        assert_near(&(&grads[index] / &scale), &(expected / &scale), 1e-5);
    }
}
