//! A bfloat16 base with float32 adapters.

use std::sync::Arc;

use pleach_methods::{AdapterConfig, MethodKind, find};
use pleach_nn::Precision;
use serde_json::{Value, json};
use tch::Kind;

use crate::support::{Batch, all, distance, model, moved, parse};

/// Low-rank maps; features that are exponentials; weights of few bits, which small steps must reach.
fn configs() -> [Arc<dyn AdapterConfig>; 3] {
    let coded: Value = json!({"bit": 2, "dim": 4});
    let coded = find(MethodKind::Compress, "adapter_qat").unwrap().parse(coded.as_object().unwrap(), "compress");
    [
        parse("lora", &json!({"target_modules": "all-linear"})),
        parse("snnk", &json!({"kernel": "cos", "num_rfs": 8})),
        coded.unwrap().into(),
    ]
}

#[test]
fn adapters_stay_float32_on_a_bfloat16_base() {
    for (name, config) in
        ["llama-lora", "bert-lora"].into_iter().flat_map(|name| configs().map(|config| (name, config)))
    {
        let (wide, narrow) = (model(name, Precision::Fp32), model(name, Precision::Bf16));
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
