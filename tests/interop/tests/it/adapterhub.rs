//! AdapterHub's `adapters` and Pleach open each other's adapters, and both compute the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, MethodKind, adapterhub, find};
use pleach_nn::{
    Backbone, BackboneConfig, Forward, Group, HeadOptions, Inputs, Layout, Precision, TensorFile, families, open,
    write_tiny,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::adapters_python;

/// Allowed difference of any output.
const TOLERANCE: f64 = 1e-4;
const WIDTH: usize = 9;

/// Families with every configuration, and those with a few.
const WHOLE: [&str; 4] = ["bert", "llama", "gpt2", "qwen2"];
const SOME: [&str; 5] = ["roberta", "xlm-roberta", "distilbert", "mistral", "qwen3"];

/// Configurations by name. Those with gates see rows of full length alone: the library's gates take padding in.
fn configurations() -> Vec<(&'static str, Value)> {
    vec![
        ("seq", json!({"preset": "seq_bn", "reduction_factor": 4})),
        ("double", json!({"preset": "double_seq_bn", "reduction_factor": 4.0, "leave_out": [0]})),
        ("parallel", json!({"preset": "par_bn", "scaling": "learned"})),
        ("inverse", json!({"preset": "seq_bn_inv", "reduction_factor": {"0": 2, "default": 4}, "scaling": "channel"})),
        (
            "norms",
            json!({"preset": "double_seq_bn", "reduction_factor": 4, "ln_after": true, "original_ln_before": true,
                "residual_before_ln": false, "adapter_residual_before_ln": true, "non_linearity": "gelu"}),
        ),
        (
            "open",
            json!({"preset": "double_seq_bn", "reduction_factor": 4, "original_ln_before": true,
                "original_ln_after": false, "residual_before_ln": false}),
        ),
        ("gated", json!({"preset": "par_bn", "use_gating": true, "ln_after": true, "mh_adapter": true})),
        ("compacter", json!({"preset": "compacter", "reduction_factor": 4})),
        (
            "products",
            json!({"preset": "compacter++", "reduction_factor": 2, "shared_phm_rule": false, "phm_rank": 2, "phm_dim": 2,
                "factorized_phm_rule": true, "learn_phm": false}),
        ),
        ("shared", json!({"preset": "compacter", "reduction_factor": 4, "shared_W_phm": true, "phm_bias": false})),
        ("lora", json!({"preset": "lora", "r": 4, "alpha": 8, "intermediate_lora": true, "leave_out": [1]})),
    ]
}

struct Case {
    family: &'static str,
    name: &'static str,
    config: Value,
    model: PathBuf,
    adapter: PathBuf,
    io: PathBuf,
}

impl Case {
    fn padded(&self) -> bool {
        self.config.get("use_gating").is_none()
    }

    fn json(&self) -> Value {
        json!({"model": self.model, "adapter": self.adapter, "io": self.io, "name": format!("hub_{}", self.name), "config": self.config,
            "seed": 5})
    }
}

fn lengths(padded: bool) -> [usize; 3] {
    if padded { [6, WIDTH, 4] } else { [WIDTH; 3] }
}

fn write_inputs(io: &Path, padded: bool) {
    let id = |row: usize, at: usize| 5 + (row * 131 + at * 17) as i64 % 240;
    let ids: Vec<i64> = (0..3).flat_map(|row| (0..WIDTH).map(move |at| id(row, at))).collect();
    let mask: Vec<i64> =
        lengths(padded).iter().flat_map(|length| (0..WIDTH).map(move |at| i64::from(at < *length))).collect();
    let shape = [3, WIDTH as i64];
    let (ids, mask) = (Tensor::from_slice(&ids).reshape(shape), Tensor::from_slice(&mask).reshape(shape));
    Tensor::write_safetensors(&[("input_ids", &ids), ("attention_mask", &mask)], io).unwrap();
}

fn cases(folder: &Path, wanted: &[&'static str]) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in families().iter().filter(|family| wanted.contains(&family.name())) {
        let model = folder.join(family.name());
        write_tiny(*family, None, &model, 3).unwrap();
        for (name, config) in configurations() {
            // One map makes queries, keys and values in gpt2, and the library's LoRA has parts of it; it hooks into
            // qwen2, where the model itself adds the residual.
            if matches!((family.name(), name), ("gpt2", "lora") | ("qwen2", "open")) {
                continue;
            }
            // Where modules hang is all that differs in the other families.
            if !WHOLE.contains(&family.name()) && !["double", "inverse", "compacter", "lora"].contains(&name) {
                continue;
            }
            let place = folder.join(format!("{}-{name}", family.name()));
            let io = place.with_extension("safetensors");
            let case = Case { family: family.name(), name, config, model: model.clone(), adapter: place, io };
            write_inputs(&case.io, case.padded());
            cases.push(case);
        }
    }
    cases
}

fn read(io: &Path, name: &str) -> Tensor {
    let file = TensorFile::open(io).unwrap();
    pleach_nn::tensor_from_entry(&file.get(name).unwrap()).unwrap()
}

fn load(model: &Path) -> Box<dyn Backbone> {
    let (dir, config) = open(model, &HeadOptions::default()).unwrap();
    config.build(&dir, Device::Cpu, Precision::Fp32).unwrap()
}

fn outputs(backbone: &dyn Backbone, adapter: &Adapter, io: &Path, padded: bool) -> Tensor {
    let _guard = tch::no_grad_guard();
    let layout = Layout::padded(lengths(padded).to_vec(), WIDTH, vec![0, 1, 2], Device::Cpu);
    let groups = [Group { rows: 0..3, hooks: adapter }];
    let cx = Forward::eval(backbone.config().sites(), &layout, &groups);
    backbone.forward(&cx, &Inputs::ids(read(io, "input_ids"))).tensor().contiguous()
}

/// The largest difference at real tokens.
fn distance(a: &Tensor, b: &Tensor, io: &Path) -> f64 {
    assert_eq!(a.size(), b.size());
    let mut off = (a - b).abs();
    if off.dim() == 3 {
        off *= read(io, "attention_mask").unsqueeze(-1);
    }
    off.max().double_value(&[])
}

fn list(cases: &[Value], folder: &Path, file: &str) -> Vec<Value> {
    let path = folder.join(file);
    std::fs::write(&path, Value::from(cases.to_vec()).to_string()).unwrap();
    adapters_python("adapterhub.py", &[&path.display().to_string()]).as_array().unwrap().clone()
}

#[test]
fn adapters_of_either_open_in_the_other() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path(), &[&WHOLE[..], &SOME].concat());
    let made = list(&cases.iter().map(Case::json).collect::<Vec<_>>(), folder.path(), "make.json");
    let mut back = Vec::new();
    for (case, made) in cases.iter().zip(&made) {
        let label = format!("{} {}", case.family, case.name);
        assert!(made["moved"].as_f64().unwrap() > 1e-2, "{label}: the adapter does nothing");
        let backbone = load(&case.model);
        let adapter =
            adapterhub::import(&case.adapter, &*backbone).unwrap_or_else(|error| panic!("{label}: {error:?}"));
        let found = outputs(&*backbone, &adapter, &case.io, case.padded());
        let off = distance(&found, &read(&case.io, "adapted"), &case.io);
        assert!(off < TOLERANCE, "{label}: off by {off}");
        back.push(ours(case, &adapter, &*backbone, folder.path()));
    }
    for (case, found) in cases.iter().zip(list(&back, folder.path(), "open.json")) {
        let label = format!("{} {}: {found}", case.family, case.name);
        assert!(found["off"].as_f64().unwrap() < TOLERANCE, "{label}");
        assert!(found["moved"].as_f64().unwrap() > 1e-2, "{label}");
        assert_eq!(found["name"], "ours", "{label}");
        assert_eq!((&found["missing"], &found["unexpected"]), (&json!([]), &json!([])), "{label}");
    }
}

/// An adapter of the same options with values of our own, written, and its outputs.
fn ours(case: &Case, like: &Adapter, backbone: &dyn Backbone, folder: &Path) -> Value {
    let method = find(MethodKind::Adapter, like.config().card().name).unwrap();
    let export = pleach_methods::Export { base: "tiny" };
    let options = like.config().adapter_config(backbone.config(), like.plan(), &export);
    let config: Arc<dyn pleach_methods::AdapterConfig> = method.import(&options).unwrap().into();
    let adapter = Adapter::build(config, Arc::new(like.plan().clone()), backbone, Key::seed(8), None).unwrap();
    let values = adapter.params().flatten();
    let noise = (Tensor::arange(values.size()[0], (Kind::Float, Device::Cpu)) * 1.7).sin() * 0.1;
    adapter.params().unflatten(&(values + noise)).unwrap();
    let to = folder.join(format!("{}-{}-ours", case.family, case.name));
    std::fs::create_dir_all(&to).unwrap();
    for (name, bytes) in adapterhub::export(&adapter, backbone.config(), "tiny", "ours").unwrap() {
        std::fs::write(to.join(name), bytes).unwrap();
    }
    let io = to.with_extension("safetensors");
    let adapted = outputs(backbone, &adapter, &case.io, case.padded());
    let (ids, mask) = (read(&case.io, "input_ids"), read(&case.io, "attention_mask"));
    Tensor::write_safetensors(&[("input_ids", &ids), ("attention_mask", &mask), ("adapted", &adapted)], &io).unwrap();
    json!({"model": case.model, "adapter": to, "io": io, "open": true})
}

/// Children saved by the library are the first values of ours; maps of the fusion layer are copied.
#[test]
fn compositions_are_the_librarys() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        ("stack", json!({}), json!({})),
        // The library divides by the number of adapters, on top of the weights.
        ("average", json!({"weights": [1.4, 0.6]}), json!({"weights": [0.7, 0.3]})),
        ("fuse", json!({"fusion": "dynamic"}), json!({})),
        ("fuse", json!({"fusion": "static"}), json!({"value": false, "regularization": false})),
    ];
    let children = json!({
        "one": {"preset": "seq_bn", "reduction_factor": 4},
        "two": {"preset": "seq_bn", "reduction_factor": 8, "non_linearity": "gelu"},
    });
    let (mut wanted, mut cases) = (Vec::new(), Vec::new());
    for family in families().iter().filter(|family| ["bert", "llama"].contains(&family.name())) {
        let model = folder.path().join(family.name());
        write_tiny(*family, None, &model, 3).unwrap();
        for (number, (kind, theirs, ours)) in kinds.iter().enumerate() {
            let place = folder.path().join(format!("{}-{kind}-{number}", family.name()));
            std::fs::create_dir_all(&place).unwrap();
            let io = place.with_extension("safetensors");
            write_inputs(&io, true);
            let mut case = json!({"model": model, "adapter": place, "io": io, "seed": 5, "composition": kind,
                "children": children});
            case.as_object_mut().unwrap().extend(theirs.as_object().unwrap().clone());
            wanted.push(case);
            cases.push((family.name(), *kind, ours.clone(), model.clone(), place, io));
        }
    }
    let made = list(&wanted, folder.path(), "compose.json");
    for ((family, kind, mut options, model, place, io), made) in cases.into_iter().zip(made) {
        assert!(made["moved"].as_f64().unwrap() > 1e-2, "{family} {kind}: it does nothing");
        let backbone = load(&model);
        let adapters = ["one", "two"].map(|name| {
            let mut child = children[name].clone();
            let more = json!({"name": name, "method": "bottleneck", "init_from": place.join(name)});
            child.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            child
        });
        options["adapters"] = Value::from(adapters.to_vec());
        let method = find(MethodKind::Adapter, kind).unwrap();
        let config: Arc<dyn pleach_methods::AdapterConfig> =
            method.parse(options.as_object().unwrap(), "adapter").unwrap().into();
        let plan = Arc::new(config.plan(backbone.config()).unwrap());
        let adapter = Adapter::build(config, plan, &*backbone, Key::seed(1), None).unwrap();
        if kind == "fuse" {
            copy_fusion(&adapter, backbone.config(), &place.join("fusion.safetensors"));
        }
        let off = distance(&outputs(&*backbone, &adapter, &io, true), &read(&io, "adapted"), &io);
        assert!(off < TOLERANCE, "{family} {kind} {options}: off by {off}");
    }
}

fn copy_fusion(adapter: &Adapter, model: &dyn BackboneConfig, file: &Path) {
    let file = TensorFile::open(file).unwrap();
    for name in file.names() {
        let part = name.rsplit_once("one,two.").unwrap().1;
        let block: u32 = name.split('.').find_map(|word| word.parse().ok()).unwrap();
        let planned = adapter.plan().trained().find(|tensor| {
            tensor.part == part
                && model.sites()[tensor.site].block == Some(block)
                && tensor.name.contains("fusion_layer")
        });
        let leaf = adapter.params().get(&planned.unwrap_or_else(|| panic!("{name} has no place")).name).unwrap();
        leaf.detach().copy_(&pleach_nn::tensor_from_entry(&file.get(name).unwrap()).unwrap());
    }
    assert_eq!(file.names().count(), adapter.plan().trained().filter(|t| t.name.contains("fusion_layer")).count());
}
