//! p-Adapter on models: exponents stay in their range, and attention on an encoder is what the graph says.

use pleach_base::rng::Key;
use pleach_methods::StepInfo;
use pleach_nn::families;
use serde_json::json;
use tch::Tensor;

use crate::support::{all, distance, fresh, moved, parse};
use crate::zoo::backbone;

#[test]
fn exponents_are_kept_between_one_and_three() {
    let model = backbone(*families().iter().find(|family| family.name() == "bert").unwrap());
    let adapter = fresh(&model, &parse("p_adapter", &json!({"reduction_factor": 2})), Key::seed(3));
    let exponents: Vec<_> = adapter.params().iter().filter(|(name, _)| name.ends_with("p_adapter.p")).collect();
    assert!(exponents.len() >= 2);
    for (at, (_, leaf)) in exponents.iter().enumerate() {
        assert_eq!(leaf.double_value(&[0]), 1.5, "the first value");
        let far = if at == 0 { 0.2f32 } else { 4.5 };
        tch::no_grad(|| leaf.shallow_clone().copy_(&Tensor::from_slice(&[far])));
    }
    adapter.after_step(StepInfo::new(1, 2, &[2])).unwrap();
    let found: Vec<_> = exponents.iter().map(|(_, leaf)| leaf.double_value(&[0])).collect();
    assert!(found[0] == 1.0 && found[1..].iter().all(|p| *p == 3.0), "{found:?}");
    assert!(exponents.iter().all(|(_, leaf)| leaf.requires_grad()));
}

/// Each option changes what it is about, and no other: the number of bins and the query's own term say something in
/// attention on an encoder alone.
#[test]
fn options_of_the_graph_of_two_sides_reach_it() {
    for (family, has_cross) in [("bart", true), ("bert", false)] {
        let model = backbone(*families().iter().find(|own| own.name() == family).unwrap());
        let batch = model.batch(&[6, 4, 5], Some(7));
        let output = |options: serde_json::Value| {
            let mut all_options = json!({"reduction_factor": 2, "image_sample_len": 2, "p_self": 2.5, "p_cross": 2.5});
            all_options.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
            let adapter = moved(&model, &parse("p_adapter", &all_options), 3);
            model.run(&batch, &all(&batch, &adapter))
        };
        let plain = output(json!({}));
        for options in [json!({"image_sample_len": 3}), json!({"cross_beta": "query"}), json!({"p_cross": 1.5})] {
            let off = distance(&plain, &output(options.clone()));
            assert_eq!(off > 1e-4, has_cross, "{options} on {family}: {off}");
        }
        assert!(distance(&plain, &output(json!({"p_self": 1.5}))) > 1e-4);
    }
}
