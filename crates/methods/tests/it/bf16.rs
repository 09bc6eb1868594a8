//! A bfloat16 base with float32 adapters.

use pleach_nn::Precision;
use serde_json::json;
use tch::Kind;

use crate::support::{Batch, all, distance, model, moved, parse};

#[test]
fn adapters_stay_float32_on_a_bfloat16_base() {
    for name in ["llama-lora", "bert-lora"] {
        let (wide, narrow) = (model(name, Precision::Fp32), model(name, Precision::Bf16));
        let config = parse("lora", &json!({"target_modules": "all-linear"}));
        let (a, b) = (moved(&wide, &config, 1), moved(&narrow, &config, 1));
        let batch = Batch::of(&[6, 4], &[1, 2], Some(6));
        let run = |model: &crate::support::Model, adapter| batch.real(&model.run(&batch, &all(&batch, adapter)));
        let (x, y) = (run(&wide, &a), run(&narrow, &b));
        assert_eq!(y.kind(), Kind::BFloat16);
        let scale = x.abs().max().double_value(&[]);
        assert!(distance(&x, &y) < 0.03 * scale, "off by {} of {scale}", distance(&x, &y));
        y.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        for (name, leaf) in b.params().iter() {
            assert_eq!(leaf.grad().kind(), Kind::Float, "{name}");
            assert!(leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        }
    }
}
