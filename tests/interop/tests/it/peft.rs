//! PEFT opens what Pleach trained, and both compute the same.

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, import};
use pleach_nn::{Forward, Group, HeadOptions, Inputs, Layout, Precision, open};
use tch::{Device, Tensor};

use crate::support::{bert_job, llama_job, llama_model, python, train, variable};

/// Allowed difference of any output.
const TOLERANCE: f64 = 1e-4;

/// Rows of unequal length, so that padding is part of the comparison.
const LENGTHS: [usize; 3] = [9, 12, 5];
const WIDTH: usize = 12;

fn outputs(model: &Path, adapter: &Path, vocabulary: i64, io: &Path) {
    tch::set_num_threads(1);
    let _guard = tch::no_grad_guard();
    let (dir, config) = open(model, &HeadOptions::default()).unwrap();
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let imported = import(adapter).unwrap();
    let plan = Arc::new(imported.config.plan(&*config).unwrap());
    imported.check(&plan).unwrap();
    let values = imported.values().unwrap();
    let adapter = Adapter::build(Arc::clone(&imported.config), plan, &*backbone, Key::seed(0), Some(&values)).unwrap();

    let id =
        |row: usize, at: usize| if at < LENGTHS[row] { 5 + (row * 131 + at * 17) as i64 % (vocabulary - 5) } else { 0 };
    let ids: Vec<i64> = (0..LENGTHS.len()).flat_map(|row| (0..WIDTH).map(move |at| id(row, at))).collect();
    let mask: Vec<i64> = LENGTHS.iter().flat_map(|length| (0..WIDTH).map(move |at| i64::from(at < *length))).collect();
    let shape = [LENGTHS.len() as i64, WIDTH as i64];
    let (ids, mask) = (Tensor::from_slice(&ids).reshape(shape), Tensor::from_slice(&mask).reshape(shape));
    let layout = Layout::padded(LENGTHS.to_vec(), WIDTH, vec![0, 1, 2], Device::Cpu);
    let run = |groups: &[Group<'_>]| {
        let cx = Forward::eval(config.sites(), &layout, groups);
        backbone.forward(&cx, &Inputs::ids(ids.shallow_clone())).tensor().contiguous()
    };
    let base = run(&[]);
    let adapted = run(&[Group { rows: 0..LENGTHS.len(), hooks: &adapter }]);
    let named = [("input_ids", &ids), ("attention_mask", &mask), ("base", &base), ("adapted", &adapted)];
    Tensor::write_safetensors(&named, io).unwrap();
}

fn opens_in_peft(model: &Path, adapter: &Path, vocabulary: i64, kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let io = folder.path().join("io.safetensors");
    outputs(model, adapter, vocabulary, &io);
    let text = |path: &Path| path.display().to_string();
    let found = python("peft_parity.py", &[&text(model), &text(adapter), &text(&io), kind], &[]);
    let number = |name: &str| found[name].as_f64().unwrap();
    assert!(number("base") < TOLERANCE, "the base model differs: {found}");
    assert!(number("adapted") < TOLERANCE, "the adapted model differs: {found}");
    assert!(number("moved") > 10.0 * TOLERANCE, "the adapter does nothing: {found}");
    assert!(number("trainable_in_file") > 0.0, "{found}");
    for none in ["missing", "unexpected", "warnings"] {
        assert_eq!(found[none], serde_json::json!([]), "{none}: {found}");
    }
}

#[test]
fn peft_opens_a_trained_sentence_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let job = bert_job(folder.path(), "interop-bert", &store.display().to_string(), 4);
    let task = train(folder.path(), &job, &[]);
    let adapter = store.join(task["durable_folder"].as_str().unwrap());
    opens_in_peft(&variable("PLEACH_MINILM"), &adapter, 30_522, "vectors");
}

#[test]
fn peft_opens_a_trained_llama() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let job = llama_job(folder.path(), "interop-llama", &store.display().to_string(), 4);
    let task = train(folder.path(), &job, &[]);
    let adapter = store.join(task["durable_folder"].as_str().unwrap());
    opens_in_peft(&llama_model(), &adapter, 50, "tokens");
}
