//! MixDA: what the gate mixes, what is frozen, and where domain adapters come from.

use std::sync::{Arc, Mutex};

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, Plan, find, import};
use pleach_nn::{Group, HookSet, Part, Precision, Role, SiteCx, SiteHook, SiteId, families};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, fresh, model, moved, parse};
use crate::zoo::backbone;

/// The mixture with these options around a bottleneck adapter.
fn mixture(options: &Value) -> pleach_base::Result<Arc<dyn AdapterConfig>> {
    let around = find(MethodKind::Strategy, "mixda")?.around(options.as_object().unwrap(), "spec.strategy")?.unwrap();
    let task = find(MethodKind::Adapter, "bottleneck")?.parse(&serde_json::Map::new(), "adapter")?;
    Ok(around.wrap(task)?.into())
}

fn two() -> Value {
    json!({"load_adapters": [{"id": "a", "layers": [0, 1], "adapter_down_scale": 4},
                             {"id": "b", "layers": [1], "adapter_down_scale": 8}], "gate": {"hidden": 5}})
}

fn with_gate(gate: &Value) -> Value {
    let mut options = two();
    for (name, value) in gate.as_object().unwrap() {
        options["gate"][name] = value.clone();
    }
    options
}

fn bert() -> Model {
    backbone(*families().iter().find(|family| family.name() == "bert").unwrap())
}

/// Everything off its beginning, domain adapters included.
fn stirred(model: &Model, config: &Arc<dyn AdapterConfig>) -> Adapter {
    let adapter = moved(model, config, 3);
    let mut rng = Key::seed(8).rng();
    for (name, tensor) in adapter.kept() {
        let noise: Vec<f32> = (0..tensor.numel()).map(|_| 0.05 * rng.normal()).collect();
        assert!(name.contains("domain_"), "{name}: only domain adapters are kept");
        tensor.shallow_clone().copy_(&(tensor + Tensor::from_slice(&noise).reshape(tensor.size())));
    }
    adapter
}

/// Sets every weight of all gates: `closed` of domain adapters to 0 and of the frozen map to 1.
fn close(adapter: &Adapter) {
    let _no_grad = tch::no_grad_guard();
    for (name, leaf) in adapter.params().iter().filter(|(name, _)| name.starts_with("gate.")) {
        let mut leaf = leaf.shallow_clone();
        let _ = leaf.zero_();
        if name.ends_with(".1.bias") {
            let n = leaf.size()[0];
            let _ = leaf.fill_(-1e4);
            let _ = leaf.narrow(0, n - 1, 1).fill_(1e4);
        }
    }
}

fn out(model: &Model, batch: &Batch, adapter: &Adapter) -> Tensor {
    batch.real(&model.run(batch, &all(batch, adapter)))
}

#[test]
fn with_the_weight_of_the_frozen_map_alone_the_model_is_the_base_to_the_bit() {
    let model = bert();
    let batch = model.batch(&[6, 4, 5], Some(7));
    for input in ["attention_output", "ffn_hidden"] {
        // The task's adapter stays at its beginning, where it adds nothing only if its second map is zero.
        let mut options = with_gate(&json!({"input": input}));
        options["load_adapters"][0]["layers"] = json!([0]);
        let around = find(MethodKind::Strategy, "mixda").unwrap();
        let around = around.around(options.as_object().unwrap(), "s").unwrap().unwrap();
        let task = json!({"preset": "seq_bn", "init_weights": "mam_adapter"});
        let task = find(MethodKind::Adapter, "bottleneck").unwrap().parse(task.as_object().unwrap(), "a").unwrap();
        let config: Arc<dyn AdapterConfig> = around.wrap(task).unwrap().into();
        let adapter = fresh(&model, &config, Key::seed(1));
        for tensor in adapter.kept().values() {
            let _ = tensor.shallow_clone().fill_(0.3);
        }
        let base = batch.real(&model.run(&batch, &[]));
        assert!(distance(&out(&model, &batch, &adapter), &base) > 1e-3, "{input}: the domain adapters do something");
        close(&adapter);
        assert_eq!(distance(&out(&model, &batch, &adapter), &base), 0.0, "{input}");
    }
}

#[test]
fn gates_and_the_tasks_adapter_are_trained_and_domain_adapters_are_not() {
    let model = bert();
    let config = mixture(&two()).unwrap();
    let adapter = stirred(&model, &config);
    let batch = model.batch(&[6, 4, 5], Some(7));
    out(&model, &batch, &adapter).square().sum(Kind::Float).backward();
    let mut kinds = std::collections::BTreeSet::new();
    for (name, leaf) in adapter.params().iter() {
        assert!(!name.contains("domain_"), "{name}");
        assert!(leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        kinds.insert(name.split('.').next().unwrap().to_owned());
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["base_model", "gate"]);
    for (name, tensor) in adapter.kept() {
        assert!(!tensor.requires_grad() && !tensor.grad().defined(), "{name}");
    }
    let last = |block: usize| {
        let name = format!("gate.base_model.model.bert.encoder.layer.{block}.output.dense.1.weight");
        adapter.params().get(&name).map(Tensor::size)
    };
    assert_eq!((last(0), last(1)), (Some(vec![2, 5]), Some(vec![3, 5])), "one weight an adapter there and one more");
}

/// Rows lie alone or in company, padded or packed; a row alone has the shape that it has among others.
#[test]
fn no_pool_sees_padding_or_other_rows() {
    let model = bert();
    for pool in ["none", "first", "last_real", "mean"] {
        for activation in ["sigmoid", "softmax"] {
            for input in ["attention_output", "ffn_hidden"] {
                let gate = json!({"pool": pool, "activation": activation, "input": input});
                let adapter = stirred(&model, &mixture(&with_gate(&gate)).unwrap());
                let (padded, packed) = (model.batch(&[6, 4, 5], Some(9)), model.batch(&[6, 4, 5], None));
                let expected = out(&model, &padded, &adapter);
                assert_near(&out(&model, &packed, &adapter), &expected, 1e-5);
                let alone = padded.rows(0..1);
                let alone = out(&model, &alone, &adapter);
                assert_near(&alone, &expected.narrow(0, 0, alone.size()[0]), 1e-5);
            }
        }
    }
}

#[test]
fn a_gate_without_anything_learnt_weighs_all_alike() {
    let model = bert();
    for (activation, weight) in [("sigmoid", 1.0 / 3.0), ("softmax", 1.0 / 3.0)] {
        let adapter = fresh(&model, &mixture(&with_gate(&json!({"activation": activation}))).unwrap(), Key::seed(1));
        let name = "gate.base_model.model.bert.encoder.layer.1.output.dense.1.bias";
        let bias = adapter.params().get(name).unwrap();
        let weights = if activation == "sigmoid" { bias.sigmoid() } else { bias.softmax(-1, None::<Kind>) };
        assert!((weights - weight).abs().max().double_value(&[]) < 1e-6, "{activation}");
    }
}

/// A domain adapter that another job left is read from its folder; one of another width is not taken.
#[test]
fn domain_adapters_come_from_their_folders() {
    let model = model("bert-lora", Precision::Fp32);
    let options = json!({"layers": [0, 1], "adapter_down_scale": 4});
    let domain = moved(&model, &parse("domain", &options), 5);
    let folder = tempfile::tempdir().unwrap();
    let said = domain.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), serde_json::to_vec(&said).unwrap()).unwrap();
    let tensors = domain.exported().unwrap();
    Tensor::write_safetensors(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
    let load = |scale: u32| {
        let loaded = json!({"id": "a", "init_from": folder.path(), "layers": [0, 1], "adapter_down_scale": scale});
        let config = mixture(&json!({"load_adapters": [loaded], "gate": {"hidden": 3}})).unwrap();
        let plan = Arc::new(config.plan(&*model.config).unwrap());
        Adapter::build(config, plan, &*model.backbone, Key::seed(2), None)
    };
    let adapter = load(4).unwrap();
    for (name, tensor) in &tensors {
        assert!(adapter.kept()[&format!("a.{name}")].equal(tensor), "{name}");
    }
    let error = load(8).map(drop).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_FORMAT, "{error}");
    // What it leaves is whole: nobody needs the folder to read it.
    let written = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    assert!(!serde_json::to_string(&written).unwrap().contains("init_from"));
}

/// Without the gate the only domain adapter stands in for the map, as in its own training.
#[test]
fn without_a_gate_a_domain_adapter_stands_in_for_the_map() {
    let model = bert();
    let loaded = json!([{"id": "a", "layers": [1], "adapter_down_scale": 4}]);
    let config = mixture(&json!({"load_adapters": loaded, "disable_moe": true})).unwrap();
    let adapter = stirred(&model, &config);
    assert!(adapter.params().iter().all(|(name, _)| !name.starts_with("gate.")));
    let task: Plan = adapter.plan().children.last().unwrap().clone();
    assert!(task.params() == adapter.plan().params());
    let two = mixture(&json!({"load_adapters": [{"id": "a"}, {"id": "b"}], "disable_moe": true}));
    assert_eq!(two.map(drop).unwrap_err().code(), code::METHOD_CONFIG);
}

#[test]
fn a_task_adapter_at_the_same_map_is_refused() {
    let model = bert();
    let around = find(MethodKind::Strategy, "mixda").unwrap();
    let around = around.around(two().as_object().unwrap(), "s").unwrap().unwrap();
    let lora = json!({"target_modules": "all-linear"});
    let lora = find(MethodKind::Adapter, "lora").unwrap().parse(lora.as_object().unwrap(), "a").unwrap();
    let error = around.wrap(lora).unwrap().plan(&*model.config).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("load_adapters: the adapter `lora` acts on"), "{error}");
}

/// The training of a domain adapter with general rows.
fn stage_1() -> Arc<dyn AdapterConfig> {
    let options = json!({"stage": 1, "general_data": "general.jsonl"});
    let around = find(MethodKind::Strategy, "mixda").unwrap().around(options.as_object().unwrap(), "s");
    let domain = json!({"layers": [0, 1], "adapter_down_scale": 4});
    let domain = find(MethodKind::Adapter, "domain").unwrap().parse(domain.as_object().unwrap(), "a").unwrap();
    around.unwrap().unwrap().wrap(domain).unwrap().into()
}

/// What the last maps of the feed-forward parts give.
#[derive(Default)]
struct Spy(Mutex<Vec<Tensor>>);

impl SiteHook for Spy {
    fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.0.lock().unwrap().push(y[0].shallow_clone());
        y
    }
}

struct Spies(Vec<SiteId>, Spy);

impl HookSet for Spies {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.0.contains(&site).then_some(&self.1 as &dyn SiteHook)
    }
}

/// The mean over the real tokens of a row of `|F|^2`, mean over features, at each of two places of the frozen model.
fn squares(model: &Model, batch: &Batch, row: usize) -> Vec<f64> {
    let places = model.config.sites().with_role(Role::Linear).filter(|site| site.part == Part::Down);
    let spies = Spies(places.map(|site| site.id).collect(), Spy::default());
    let alone = batch.rows(row..row + 1);
    let _ = model.run(&alone, &[Group { rows: 0..1, hooks: &spies }]);
    let seen = spies.1.0.into_inner().unwrap();
    seen.iter().map(|frozen| alone.real(frozen).square().mean(Kind::Double).double_value(&[])).collect()
}

/// Sums that the hooks added in a pass, a row a place: of distances, and of tokens.
fn summed(model: &Model, batch: &Batch, adapter: &Adapter, train: bool) -> Option<Tensor> {
    let _ = model.run_at(batch, &all(batch, adapter), train, 0);
    adapter.board().take_sums([2, 2])
}

fn mixed(model: &Model, width: Option<usize>) -> Batch {
    let batch = model.batch(&[6, 4, 5], width);
    Batch { layout: batch.layout.of_tasks(vec![0, 1, 0]), ..batch }
}

/// Rows of the domain go through the adapter, general ones through the frozen map, whoever else is in the batch.
#[test]
fn stage_1_tells_rows_of_the_domain_from_general_ones() {
    let model = bert();
    let adapter = moved(&model, &stage_1(), 3);
    for width in [Some(9), None] {
        let (both, plain) = (mixed(&model, width), model.batch(&[6, 4, 5], width));
        let out = |batch: &Batch| model.run_at(batch, &all(batch, &adapter), true, 0);
        let row = |output: Tensor, row: i64| output.narrow(0, row, 1);
        let (found, domain, base) = (out(&both), out(&plain), model.run(&plain, &[]));
        for (number, expected) in [(0, &domain), (1, &base), (2, &domain)] {
            let expected = row(expected.shallow_clone(), number);
            assert_eq!(distance(&row(found.shallow_clone(), number), &expected), 0.0, "row {number} of {width:?}");
        }
        assert!(distance(&domain, &base) > 1e-3);
        let _ = adapter.board().take_sums([2, 2]);
    }
}

#[test]
fn at_first_general_rows_are_as_far_as_the_frozen_map_is_long() {
    let model = bert();
    let (new, trained) = (fresh(&model, &stage_1(), Key::seed(1)), moved(&model, &stage_1(), 3));
    for width in [Some(9), None] {
        let batch = mixed(&model, width);
        let expected = squares(&model, &batch, 1);
        let sums = summed(&model, &batch, &new, true).unwrap();
        let later = summed(&model, &batch, &trained, true).unwrap();
        for (place, expected) in expected.iter().enumerate() {
            let place = place as i64;
            assert_eq!(sums.double_value(&[place, 1]), 4.0, "tokens of the general row, without padding");
            let mean = sums.double_value(&[place, 0]) / 4.0;
            assert!((mean - expected).abs() < 1e-5 * expected, "{mean} and {expected} at {place}");
            assert!((later.double_value(&[place, 0]) / 4.0 - expected).abs() > 1e-3 * expected);
        }
        let loss = stage_1().batch_loss(&sums).unwrap().double_value(&[]);
        assert!((loss - (expected[0] + expected[1]) / 2.0).abs() < 1e-5 * loss, "the mean over places");
        assert!(summed(&model, &batch, &new, false).is_none(), "an evaluation notes nothing");
        assert!(summed(&model, &model.batch(&[6, 4], width), &new, true).is_none(), "nor do rows of the domain");
    }
}

/// The term on general rows pulls at the adapter alone, and rows of the domain have no part in it.
#[test]
fn general_rows_pull_at_the_adapter_whatever_the_domain_is() {
    let model = bert();
    let pull = |lengths: &[usize], tasks: Vec<u32>| {
        let adapter = moved(&model, &stage_1(), 3);
        let batch = model.batch(lengths, None);
        let batch = Batch { layout: batch.layout.of_tasks(tasks), ..batch };
        summed(&model, &batch, &adapter, true).unwrap().select(1, 0).sum(Kind::Float).backward();
        let grads: Vec<_> = adapter.params().iter().map(|(_, leaf)| leaf.grad().flatten(0, -1)).collect();
        assert!(grads.iter().all(|grad| grad.abs().max().double_value(&[]) > 0.0));
        Tensor::cat(&grads, 0)
    };
    // The second row is the same in both: its tokens depend on its number.
    assert_near(&pull(&[3, 5], vec![0, 1]), &pull(&[7, 5], vec![0, 1]), 1e-5);
}

#[test]
fn a_file_whose_gate_has_another_size_is_refused() {
    let model = bert();
    let adapter = stirred(&model, &mixture(&two()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let said = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), serde_json::to_vec(&said).unwrap()).unwrap();
    assert!(!said.contains_key("general_data"), "the options of stage 1 are none of stage 2");
    let name = "gate.base_model.model.bert.encoder.layer.1.output.dense.1.weight";
    let write = |outputs: i64| {
        let cut = |(own, tensor): (String, Tensor)| match own == name {
            true => (own, tensor.narrow(0, 0, outputs).contiguous()),
            false => (own, tensor),
        };
        let tensors: Vec<_> = adapter.exported().unwrap().into_iter().map(cut).collect();
        Tensor::write_safetensors(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
        let imported = import(folder.path()).unwrap();
        imported.check(&imported.config.plan(&*model.config).unwrap())
    };
    write(3).unwrap();
    let error = write(2).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_FORMAT);
    assert!(error.message().contains(name), "{error}");
}
