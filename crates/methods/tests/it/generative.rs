//! What Generative Adapter owes on a whole model: segments know of earlier ones alone.

use std::ops::Range;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Context, Feeding, Written};
use pleach_nn::{Layout, Segment, families};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::support::{Batch, Model, all, distance, fresh, moved, parse};
use crate::zoo::backbone;

fn llama() -> Model {
    backbone(*families().iter().find(|family| family.name() == "llama").unwrap())
}

fn config(norm: &str) -> Arc<dyn AdapterConfig> {
    let options: Value =
        json!({"fastlora_r": 6, "fastlora_max_rank": 3, "fastlora_alpha": 60, "window": 5, "fastlora_norm": norm});
    parse("generative", &options)
}

/// A document of three chunks and the windows of the first two, and another of two chunks.
fn segments() -> Vec<Segment> {
    [(0, 0), (1, 1), (2, 2), (3, 1), (4, 2), (0, 0), (1, 1)].map(|(index, sees)| Segment { index, sees }).into()
}

fn batch(width: Option<usize>) -> Batch {
    let batch = Batch::of(&[5, 5, 4, 3, 5, 5, 2], &[1, 2, 3, 4, 5, 6, 7], width);
    Batch { layout: batch.layout.segmented(segments()), ..batch }
}

/// The logits of one segment.
fn of(batch: &Batch, logits: &Tensor, row: usize) -> Tensor {
    let Range { start, end } = batch.layout.token_range(row);
    let last = logits.size()[logits.dim() - 1];
    logits.reshape([-1, last]).narrow(0, start as i64, (end - start) as i64)
}

#[test]
fn an_untrained_generator_changes_not_a_bit() {
    let model = llama();
    for norm in ["svd", "frobenius", "spectral"] {
        let adapter = fresh(&model, &config(norm), Key::seed(1));
        for width in [Some(6), None] {
            let batch = batch(width);
            let (with, without) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &[]));
            assert_eq!(distance(&batch.real(&with), &batch.real(&without)), 0.0, "{norm}");
        }
    }
}

#[test]
fn the_first_segment_of_a_document_never_changes_and_later_ones_do() {
    let model = llama();
    for norm in ["svd", "frobenius", "spectral"] {
        let adapter = moved(&model, &config(norm), 3);
        let batch = batch(Some(6));
        let (with, without) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &[]));
        for row in 0..7 {
            let off = distance(&of(&batch, &with, row), &of(&batch, &without, row));
            assert_eq!(off == 0.0, [0, 5].contains(&row), "{norm}: segment {row} is off by {off}");
        }
    }
}

/// Another token in a segment is felt by itself and by those that know of it, in its own document.
#[test]
fn what_comes_later_is_not_known() {
    let model = llama();
    let adapter = moved(&model, &config("svd"), 3);
    for width in [Some(6), None] {
        let before = batch(width);
        let expected = model.run(&before, &all(&before, &adapter));
        for (changed, felt) in [(0, &[0, 1, 2, 3, 4][..]), (1, &[1, 2, 4]), (2, &[2]), (3, &[3]), (5, &[5, 6])] {
            let now = batch(width);
            let at = now.layout.token_range(changed).start as i64;
            let ids = now.inputs.get("input_ids").unwrap();
            let _ = ids.reshape([-1]).get(at).fill_(77);
            let found = model.run(&now, &all(&now, &adapter));
            for row in 0..7 {
                let off = distance(&of(&now, &found, row), &of(&before, &expected, row));
                assert_eq!(off > 0.0, felt.contains(&row), "segment {changed} changed, {row} is off by {off}");
            }
        }
    }
}

/// Rows that are no segments are read as the frozen model reads them.
#[test]
fn without_segments_nothing_is_added() {
    let model = llama();
    let adapter: Adapter = moved(&model, &config("svd"), 3);
    let batch = Batch::of(&[5, 4], &[1, 2], Some(6));
    assert_eq!(distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[])), 0.0);
}

#[test]
#[should_panic(expected = "earlier ones alone")]
fn a_segment_cannot_know_of_itself() {
    let layout = Layout::padded(vec![2, 2], 2, vec![0, 1], Device::Cpu);
    let _ = layout.segmented(vec![Segment::default(), Segment { index: 1, sees: 2 }]);
}

fn context(model: &Model, adapter: &Adapter, ids: &[i64], feeding: Feeding) -> Written {
    let context = Context { ids, feeding, before: None, base: "../model" };
    adapter.write(&*model.backbone, &context).unwrap()
}

/// The written file as an adapter.
fn read_back(model: &Model, written: &Written) -> Adapter {
    let method = pleach_methods::find(pleach_methods::MethodKind::Adapter, "lora").unwrap();
    let config: Arc<dyn AdapterConfig> = method.import(&written.config).unwrap().into();
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    let values = written.tensors.iter().map(|(name, value)| (name.clone(), value.shallow_clone())).collect();
    Adapter::build(config, plan, &*model.backbone, Key::seed(0), Some(&values)).unwrap()
}

/// A written LoRA does to a prompt what the state does to a segment that knows of the whole context.
#[test]
fn a_written_adapter_is_the_map_of_its_context() {
    let model = llama();
    for norm in ["svd", "frobenius", "spectral"] {
        let adapter = moved(&model, &config(norm), 3);
        let batch = Batch::of(&[5, 5, 4], &[1, 2, 3], Some(5));
        let rows = [(0, 0), (1, 1), (2, 2)].map(|(index, sees)| Segment { index, sees });
        let batch = Batch { layout: batch.layout.segmented(rows.into()), ..batch };
        let expected = of(&batch, &model.run(&batch, &all(&batch, &adapter)), 2);
        let ids: Vec<i64> =
            Vec::try_from(batch.inputs.get("input_ids").unwrap().narrow(0, 0, 2).reshape([-1])).unwrap();
        for feeding in [Feeding::Sequential, Feeding::SequentialLong] {
            let written = context(&model, &adapter, &ids, feeding);
            let rank = if norm == "svd" { 3 } else { 6 };
            assert_eq!(written.config["r"], json!(rank));
            let lora = read_back(&model, &written);
            let prompt = Batch::of(&[4], &[3], Some(4));
            let found = model.run(&prompt, &all(&prompt, &lora)).get(0);
            assert!(distance(&found, &expected) < 1e-5, "{norm} {feeding:?}: {}", distance(&found, &expected));
        }
    }
}

/// Without what the adapter itself adds, chunks give the same state one by one, side by side and in two sittings.
#[test]
fn states_of_chunks_add_up() {
    let model = llama();
    let adapter = fresh(&model, &config("svd"), Key::seed(1));
    let ids: Vec<i64> = (1..=15).collect();
    let expected = context(&model, &adapter, &ids, Feeding::Parallel).states;
    assert!(expected.values().any(|state| state.dim() == 2 && state.abs().max().double_value(&[]) > 1e-3));
    let same = |found: &std::collections::BTreeMap<String, Tensor>| {
        for (name, state) in &expected {
            assert!(distance(state, &found[name]) < 1e-5, "{name}");
        }
    };
    for feeding in [Feeding::Sequential, Feeding::SequentialLong] {
        same(&context(&model, &adapter, &ids, feeding).states);
    }
    let first = context(&model, &adapter, &ids[..10], Feeding::SequentialLong).states;
    let rest = Context { ids: &ids[10..], feeding: Feeding::SequentialLong, before: Some(&first), base: "" };
    same(&adapter.write(&*model.backbone, &rest).unwrap().states);
    let whole = context(&model, &adapter, &ids, Feeding::Concat).states;
    assert!(
        whole.iter().any(|(name, state)| distance(state, &expected[name]) > 1e-3),
        "one sequence is read otherwise"
    );
}

#[test]
fn other_adapters_write_none() {
    let model = llama();
    let adapter = fresh(&model, &parse("lora", &json!({})), Key::seed(1));
    let context = Context { ids: &[1], feeding: Feeding::Concat, before: None, base: "" };
    let error = adapter.write(&*model.backbone, &context).unwrap_err();
    assert_eq!(error.code(), pleach_base::code::METHOD_CONFIG);
}
