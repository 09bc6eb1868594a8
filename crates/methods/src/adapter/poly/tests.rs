//! Counts, and what the routing of Poly owes to its definition.

use pleach_nn::{HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;
use crate::plan::Keep;

fn t5_xl() -> Box<dyn BackboneConfig> {
    let config = json!({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 2048, "d_kv": 64,
                        "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32, "vocab_size": 32128,
                        "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
                        "tie_word_embeddings": false, "decoder_start_token_id": 0, "pad_token_id": 0});
    let Value::Object(config) = config else { unreachable!() };
    configure(&ModelDir::of_config(config), &HeadOptions::default()).unwrap()
}

fn config(more: Value) -> Config {
    let mut options = json!({"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(options).unwrap()
}

#[test]
fn the_counts_of_the_paper() {
    let model = t5_xl();
    let z = config(json!({"r": 1, "n_skills": 8, "n_splits": 64, "mode": "z", "inventory": "."}));
    let plan = z.plan(model.as_ref()).unwrap();
    assert_eq!((plan.sites.len(), plan.params()), (432, 221_184));
    assert!(plan.trained().all(|tensor| tensor.part == LOGITS));
    assert!(plan.tensors.iter().filter(|tensor| tensor.part != LOGITS).all(|tensor| tensor.keep == Keep::Saved));
    // Layer by layer S r (n + o) + tasks q S; the inventory does not depend on q.
    let widths = |plan: &Plan| -> u64 {
        plan.sites.iter().map(|id| &model.sites()[*id].dims).map(|dims| (dims.input + dims.output) as u64).sum()
    };
    for (q, tasks) in [(1, 5), (16, 5), (16, 1)] {
        let full = config(json!({"r": 2, "n_skills": 3, "n_splits": q, "n_tasks": tasks}));
        let plan = full.plan(model.as_ref()).unwrap();
        assert_eq!(plan.params(), 3 * 2 * widths(&plan) + 432 * tasks * q * 3);
    }
    let mu = config(json!({"r": 1, "n_skills": 8, "n_splits": 64, "mode": "mu", "inventory": "."}));
    assert!(mu.plan(model.as_ref()).unwrap().trained().all(|tensor| tensor.part != LOGITS));
}

#[test]
fn coarser_routers_have_fewer_logits() {
    let model = t5_xl();
    let routers = |granularity: &str| {
        let plan = config(json!({"router_granularity": granularity})).plan(model.as_ref()).unwrap();
        plan.tensors.iter().filter(|tensor| tensor.part == LOGITS).count()
    };
    let found = ["finegrained", "layerwise", "blockwise", "coderwise", "coarsegrained"].map(routers);
    assert_eq!(found, [432, 24 * 2 + 24 * 3, 48, 2, 1]);
}

#[test]
fn widths_that_heads_do_not_divide_are_named() {
    let error = config(json!({"n_splits": 3})).plan(t5_xl().as_ref()).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("n_splits: 3 divides not both 2048 and 2048, the widths of `encoder.block.0."));
}

#[test]
fn rates_of_logits_are_multiples_of_the_skills() {
    let config = config(json!({"module_logits_learning_rate": 0.5, "adapters_learning_rate": 0.01}));
    let plan = config.plan(t5_xl().as_ref()).unwrap();
    let rate = |part: &str| config.lr_scale(plan.tensors.iter().find(|tensor| tensor.part == part).unwrap());
    assert_eq!((rate(A), rate(B), rate(LOGITS)), (1.0, 1.0, 50.0));
}

#[cfg(feature = "torch")]
mod mathematics {
    use tch::{Kind, Tensor};

    use super::super::routing::{Draws, Rule, Skills, alike, of_tasks};

    const Q: i64 = 2;
    const S: i64 = 3;

    fn drawn(shape: &[i64], salt: f64) -> Tensor {
        let n: i64 = shape.iter().product();
        ((Tensor::arange(n, (Kind::Double, tch::Device::Cpu)) * 0.73 + salt).sin()).reshape(shape)
    }

    fn skills(q: i64, s: i64) -> Skills {
        Skills { a: drawn(&[q, s, 8 / q, 2], 1.0), b: drawn(&[q, s, 2, 12 / q], 2.0), scale: 0.5 }
    }

    fn near(a: &Tensor, b: &Tensor) {
        let off = (a - b).abs().max().double_value(&[]);
        assert!(off < 1e-11, "off by {off:e}");
    }

    fn plain(logits: &Tensor) -> Tensor {
        Rule::default().weights(logits, &Draws::default())
    }

    #[test]
    fn weights_of_every_head_add_up_to_one() {
        let sum = plain(&drawn(&[4, Q, S], 0.3)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        near(&sum, &Tensor::ones([4, Q], (Kind::Double, tch::Device::Cpu)));
    }

    #[test]
    fn one_head_and_one_skill_are_lora() {
        let (skills, x) = (skills(1, 1), drawn(&[2, 5, 8], 3.0));
        let (a, b) = (skills.a.reshape([8, 2]), skills.b.reshape([2, 12]));
        near(&skills.added(&x, &plain(&drawn(&[2, 1, 1], 9.0))), &(x.matmul(&a).matmul(&b) * 0.5));
    }

    #[test]
    fn logits_of_zero_average_both_factors() {
        let (skills, x) = (skills(Q, S), drawn(&[2, 5, 8], 3.0));
        let mean = |tensor: &Tensor| tensor.mean_dim([1i64].as_slice(), false, Kind::Double);
        let a = mean(&skills.a).reshape([8, 2]); // heads over the input
        let b = mean(&skills.b).transpose(0, 1).reshape([2, 12]); // heads over the output
        let expected = x.matmul(&a).matmul(&b) * 0.5;
        near(&skills.added(&x, &plain(&Tensor::zeros([2, Q, S], (Kind::Double, tch::Device::Cpu)))), &expected);
        near(&skills.added(&x, &alike(Q, S, &skills.a)), &expected);
        let outputs = (0..S).map(|skill| {
            let a = skills.a.select(1, skill).reshape([8, 2]);
            x.matmul(&a).matmul(&skills.b.select(1, skill).transpose(0, 1).reshape([2, 12])) * (0.5 / S as f64)
        });
        let mixed = outputs.reduce(|a, b| a + b).unwrap();
        assert!((mixed - expected).abs().max().double_value(&[]) > 0.01, "the average of outputs is something else");
    }

    #[test]
    fn skills_have_no_order() {
        let (skills, x, logits) = (skills(Q, S), drawn(&[3, 5, 8], 3.0), drawn(&[3, Q, S], 4.0));
        let order = Tensor::from_slice(&[2i64, 0, 1]);
        let turned = Skills {
            a: skills.a.index_select(1, &order),
            b: skills.b.index_select(1, &order),
            scale: skills.scale,
        };
        near(&skills.added(&x, &plain(&logits)), &turned.added(&x, &plain(&logits.index_select(2, &order))));
    }

    #[test]
    fn a_mixed_batch_is_its_tasks_and_an_absent_task_gets_no_gradient() {
        let (skills, x) = (skills(Q, S), drawn(&[3, 5, 8], 3.0));
        let logits = drawn(&[4, Q * S], 5.0).set_requires_grad(true);
        let together = skills.added(&x, &plain(&of_tasks(&logits, &[2, 0, 2], Q)));
        for (row, task) in [2i64, 0, 2].into_iter().enumerate() {
            let alone = skills.added(&x.narrow(0, row as i64, 1), &plain(&of_tasks(&logits, &[task], Q)));
            near(&together.narrow(0, row as i64, 1), &alone);
        }
        together.sin().sum(Kind::Double).backward();
        let grad = logits.grad();
        let most = |row: i64| grad.get(row).abs().max().double_value(&[]);
        assert!(most(0) > 1e-3 && most(2) > 1e-3);
        assert_eq!((most(1), most(3)), (0.0, 0.0));
    }

    #[test]
    fn the_lora_of_a_task_is_its_routed_forward() {
        let (skills, x, logits) = (skills(Q, S), drawn(&[1, 5, 8], 3.0), drawn(&[1, Q, S], 4.0));
        let routed = skills.added(&x, &plain(&logits));
        let (a, b) = skills.lora(&plain(&logits));
        near(&routed, &(x.matmul(&a).matmul(&b) * 0.5));
        let delta = skills.delta(&plain(&logits)).to_kind(Kind::Double);
        let off = (routed - x.matmul(&delta.tr())).abs().max().double_value(&[]);
        assert!(off < 1e-5, "off by {off:e}");
    }

    #[test]
    fn straight_through_rounds_forward_only() {
        let logits = Tensor::from_slice(&[2.0f64, -1.0, 0.5, -3.0, -0.2, -1.0]).reshape([1, Q, S]).set_requires_grad(true);
        let rule = Rule { straight_through: true, ..Rule::default() };
        let weights = rule.weights(&logits, &Draws::default());
        let expected = Tensor::from_slice(&[0.5f64, 0.0, 0.5, 0.0, 0.0, 0.0]).reshape([1, Q, S]);
        near(&weights, &expected);
        weights.get(0).get(0).get(0).backward();
        assert!(logits.grad().abs().max().double_value(&[]) > 0.01);
    }
}
