//! Padded and packed give the same, outputs and gradients.

use pleach_nn::{Form, HeadKind, HeadOptions, Layout, ModelDir, Pooling, Precision, configure};
use rstest::rstest;
use tch::{Device, Tensor};

use crate::support::{Additive, Hooks, Model, Prefix, Sharpen, assert_near, batch, case, model, real, run};

#[rstest]
#[case("llama-lora", &[5, 9, 5, 1, 9])]
#[case("bert-lora", &[5, 9, 5, 1, 9])]
#[case("bert-lora", &[4, 4])]
fn packed_equals_padded(#[case] name: &str, #[case] lengths: &[usize]) {
    let (model, batch) = (model(name, None, Precision::Fp32), batch(lengths));
    let (a, b) = (run(&model, &batch.padded, &[]), run(&model, &batch.packed, &[]));
    if name.starts_with("bert") {
        assert_near(&a, &b, 1e-5);
    } else {
        assert_near(&real(&batch.padded.0, &a), &real(&batch.packed.0, &b), 1e-5);
    }
}

#[rstest]
#[case(Pooling::Mean)]
#[case(Pooling::Cls)]
#[case(Pooling::Last)]
fn poolings_agree(#[case] pooling: Pooling) {
    let dir = ModelDir::open(&case("bert-lora").join("model")).unwrap();
    let kind = Some(HeadKind::Embedding);
    let options = HeadOptions { kind, pooling: Some(pooling), normalize: Some(true), num_labels: None };
    let config = configure(&dir, &options).unwrap();
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let model = Model { config, backbone };
    let batch = batch(&[6, 2, 6, 3]);
    let (a, b) = (run(&model, &batch.padded, &[]), run(&model, &batch.packed, &[]));
    assert_near(&a, &b, 1e-5);
    let lengths = a.square().sum_dim_intlist([1i64].as_slice(), false, tch::Kind::Float);
    assert_near(&lengths, &Tensor::ones([4], tch::kind::FLOAT_CPU), 1e-5);
}

#[test]
fn hooks_of_every_kind_agree_on_both_layouts() {
    let (model, batch) = (model("llama-lora", None, Precision::Fp32), batch(&[7, 3, 7, 5]));
    let sites = model.config.sites();
    let at = |path: &str| sites.by_path(path).unwrap().id;
    let small = |shape: &[i64]| {
        (Tensor::arange(shape.iter().product::<i64>(), tch::kind::FLOAT_CPU).sin() * 0.1).reshape(shape)
    };
    let hooks = || {
        Hooks::default()
            .with(at("model.layers.0.self_attn.q_proj"), Additive(small(&[64, 64])))
            .with(at("model.layers.0.self_attn@kv"), Prefix { key: small(&[3, 2, 16]), value: small(&[3, 2, 16]) })
            .with(at("model.layers.1.self_attn@kv"), Prefix { key: small(&[3, 2, 16]), value: small(&[3, 2, 16]) })
            .with(at("model.layers.1.self_attn@scores"), Sharpen(2.0))
            .with(at("model.layers.1.mlp@sublayer"), Additive(small(&[64, 64])))
    };
    let first = hooks();
    let second = Hooks::default().with(at("model.layers.0@out"), Additive(small(&[64, 64])));
    let groups = [pleach_nn::Group { rows: 0..2, hooks: &first }, pleach_nn::Group { rows: 3..4, hooks: &second }];
    let (a, b) = (run(&model, &batch.padded, &groups), run(&model, &batch.packed, &groups));
    let (a, b) = (real(&batch.padded.0, &a), real(&batch.packed.0, &b));
    assert_near(&a, &b, 1e-5);
    let bare = real(&batch.padded.0, &run(&model, &batch.padded, &[]));
    assert!(crate::support::distance(&a.narrow(0, 0, 10), &bare.narrow(0, 0, 10)) > 0.01, "the hooks do something");
    assert_near(&a.narrow(0, 10, 7), &bare.narrow(0, 10, 7), 1e-6);
}

#[test]
fn a_layout_knows_its_tokens() {
    let packed = Layout::packed(vec![3, 1, 2], vec![7, 8, 9], Device::Cpu);
    assert_eq!(packed.form(), &Form::Packed { offsets: vec![0, 3, 4, 6] });
    let positions: Vec<i64> = packed.positions().shallow_clone().try_into().unwrap();
    assert_eq!(positions, [0, 1, 2, 0, 0, 1]);
    assert_eq!(packed.token_range(2), 4..6);
    let rows = packed.rows(1..3);
    assert_eq!((rows.samples(), rows.tokens(), rows.shape()), ([8, 9].as_slice(), 3, vec![3]));
    assert!(packed.real().is_none());
    let padded = Layout::padded(vec![1, 3], 3, vec![0, 1], Device::Cpu);
    let real: Vec<bool> = padded.real().unwrap().flatten(0, 1).try_into().unwrap();
    assert_eq!(real, [true, false, false, true, true, true]);
    assert_eq!(padded.token_range(1), 3..6);
}

/// Llama's classes come from the last real token, so that padding changes nothing.
#[test]
fn classes_of_a_decoder_come_from_the_last_real_token() {
    let model = model("llama-lora", Some(HeadKind::SequenceClassification), Precision::Fp32);
    assert_eq!(model.config.info().class, "LlamaForSequenceClassification");
    let batch = batch(&[6, 2, 4]);
    let (a, b) = (run(&model, &batch.padded, &[]), run(&model, &batch.packed, &[]));
    assert_eq!(a.size(), [3, 2]);
    assert_near(&a, &b, 1e-5);
    let alone =
        (batch.padded.0.rows(1..2), pleach_nn::Inputs::ids(batch.padded.1.get("input_ids").unwrap().narrow(0, 1, 1)));
    assert_near(&run(&model, &alone, &[]).get(0), &b.get(1), 1e-5);
}
