//! MoSA as the engine trains it: what an expert never does, what drawn ones are, what one expert is.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::{SystemClock, rng::Key};
use pleach_data::{Batch, Content, Encoded, Example};
use pleach_methods::{Adapter, AdapterConfig, MethodKind, StepInfo, find};
use pleach_nn::{Backbone, HeadOptions, Precision};
use pleach_spec::job::{DataTask, Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use pleach_train::{Engine, Objective, Silent, StepBatch, TaskSetup};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::fixture::parity;

fn backbone() -> Box<dyn Backbone> {
    tch::set_num_threads(1);
    let options = HeadOptions { kind: Some(Objective::CausalLm.head()), ..HeadOptions::default() };
    let (dir, config) = pleach_nn::open(&parity("llama-lora").join("model"), &options).unwrap();
    config.build(&dir, Device::Cpu, Precision::Fp32).unwrap()
}

/// A visual adapter, and around it MoSA with these options, if there are any.
fn config(style: &str, mosa: Option<Value>) -> Arc<dyn AdapterConfig> {
    let options = json!({"style": style, "bottleneck_size": 6});
    let adapter = find(MethodKind::Adapter, "visual_adapter").unwrap();
    let adapter = adapter.parse(options.as_object().unwrap(), "adapter").unwrap();
    let Some(mosa) = mosa else { return adapter.into() };
    let around = find(MethodKind::Strategy, "mosa").unwrap().around(mosa.as_object().unwrap(), "strategy");
    around.unwrap().unwrap().wrap(adapter).unwrap().into()
}

fn adapter(model: &dyn Backbone, config: &Arc<dyn AdapterConfig>) -> Adapter {
    let plan = Arc::new(config.plan(model.config()).unwrap());
    Adapter::build(Arc::clone(config), plan, model, Key::seed(4).named("a"), None).unwrap()
}

fn batch(step: u64) -> StepBatch {
    let row = |row: u64| {
        let ids: Vec<u32> = (0..5 + row % 3).map(|at| ((row * 31 + at * 17 + step * 7) % 250) as u32).collect();
        let content = Content::Lm(Encoded { type_ids: vec![0; ids.len()], ids });
        Example { sample_id: row, row_task: None, content }
    };
    let rows: Vec<_> = (0..4).map(row).collect();
    StepBatch { lanes: vec![(0, Batch::collate(DataTask::CausalLm, &rows).unwrap())], lane_rows: vec![4] }
}

const STEPS: u64 = 8;

fn setup(adapter: Adapter) -> TaskSetup {
    TaskSetup {
        name: "a".into(),
        adapter,
        adapter_config: Value::Null,
        objective: Objective::CausalLm,
        optimizer: OptimizerSpec { lr: 1e-2, weight_decay: 0.1, ..OptimizerSpec::default() },
        schedule: ScheduleSpec::default(),
        total_steps: STEPS,
        max_grad_norm: 1.0,
        non_finite: NonFinite::Stop,
        determinism: Determinism::Fast,
        micro_batch: None,
        checkpointing: false,
        own_steps: true,
    }
}

/// Trains `adapter` in place; `after` is called after every step.
fn train(model: &dyn Backbone, adapter: &Adapter, mut after: impl FnMut(u64)) -> Vec<f64> {
    let group = pleach_comm::local(Device::Cpu);
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    engine.add_task(setup(adapter.alias().unwrap())).unwrap();
    let mut losses = Vec::new();
    for step in 1..=STEPS {
        losses.push(engine.forward_backward(&"a".into(), &batch(step)).unwrap().loss);
        engine.optim_step(&"a".into(), false).unwrap();
        after(step);
    }
    losses
}

fn values(adapter: &Adapter) -> BTreeMap<String, Tensor> {
    adapter.params().iter().map(|(name, leaf)| (name.to_owned(), leaf.detach().copy())).collect()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    a.equal(b)
}

/// With decay, with both projections split, in every mode.
#[test]
fn an_expert_changes_its_own_entries_alone_and_only_when_it_is_drawn() {
    let model = backbone();
    for mode in ["all", "row", "column"] {
        let config = config("adaptformer", Some(json!({"expert_num": 3, "share": "none", "mask_mode": mode})));
        let adapter = adapter(&*model, &config);
        let start = values(&adapter);
        let mut before = values(&adapter);
        let (mut moved, mut left) = (0, 0);
        train(&*model, &adapter, |step| {
            let now = values(&adapter);
            let info = StepInfo::new(step, STEPS, &[STEPS]);
            for tensor in adapter.plan().trained().filter(|tensor| tensor.name.contains(".expert_")) {
                let name = &tensor.name;
                if config.takes_part(tensor, info, adapter.parts().key) {
                    moved += usize::from(!same(&now[name], &before[name]));
                } else {
                    left += 1;
                    assert!(same(&now[name], &before[name]), "{mode}, step {step}: {name} was not drawn");
                }
            }
            before = now;
        });
        assert!(moved > 20 && left > 20, "{mode}: {moved} moved, {left} were left alone");
        let end = values(&adapter);
        let mut masked = 0;
        for (name, bands) in adapter.kept().iter().filter_map(|(name, t)| Some((name.strip_suffix(".mosa_bands")?, t)))
        {
            for expert in 0..3 {
                let name = format!("{name}.expert_{expert}");
                let outside = bands.not_equal(f64::from(expert));
                let change = (&end[&name] - &start[&name]).masked_select(&outside);
                assert_eq!(change.count_nonzero(None).int64_value(&[]), 0, "{mode}: {name}");
                masked += 1;
            }
        }
        assert!(masked >= 12, "{mode}: both projections of two blocks");
    }
}

/// What is evaluated and exported is the mean over experts, and as large as the plain adapter.
#[test]
fn the_merged_tensor_is_the_mean_of_the_experts() {
    let model = backbone();
    let config = config("adaptformer", Some(json!({"expert_num": 3})));
    let adapter = adapter(&*model, &config);
    train(&*model, &adapter, |_| {});
    let exported: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().collect();
    let now = values(&adapter);
    let mut split = 0;
    for (name, merged) in &exported {
        let experts: Vec<_> = (0..3).filter_map(|i| now.get(&format!("{name}.expert_{i}"))).collect();
        if experts.is_empty() {
            assert!(same(merged, &now[name]), "{name} is shared");
            continue;
        }
        split += 1;
        let mean = Tensor::stack(&experts, 0).mean_dim(0, false, None);
        assert!((merged - mean).abs().max().double_value(&[]) < 1e-7, "{name}");
        assert!(merged.abs().max().double_value(&[]) > 0.0, "{name} was trained");
    }
    let plain = adapter_plan(&*model);
    assert_eq!(split, 2 * plain.sites.len(), "weight and bias of each up projection");
    let names: Vec<_> = plain.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(exported.keys().cloned().collect::<std::collections::BTreeSet<_>>(), names.into_iter().collect());
    let numbers: usize = exported.values().map(Tensor::numel).sum();
    assert_eq!(numbers as u64, plain.params());
}

fn adapter_plan(model: &dyn Backbone) -> pleach_methods::Plan {
    config("adaptformer", None).plan(model.config()).unwrap()
}

/// One expert without a second pass is the adapter itself, dropout included.
#[test]
fn one_expert_alone_is_the_plain_adapter_to_the_bit() {
    let model = backbone();
    for share in ["down", "up", "none"] {
        let alone = json!({"expert_num": 1, "share": share, "additional_forward": false, "reg_weight": 0});
        for style in ["adaptformer", "pfeiffer", "houlsby"] {
            let (plain, split) = (config(style, None), config(style, Some(alone.clone())));
            let (plain, split) = (adapter(&*model, &plain), adapter(&*model, &split));
            assert_eq!(train(&*model, &plain, |_| {}), train(&*model, &split, |_| {}), "{style}, {share}");
            let exported: BTreeMap<_, _> = split.exported().unwrap().into_iter().collect();
            for (name, leaf) in plain.params().iter() {
                assert!(same(&exported[name], leaf), "{style}, {share}: {name}");
            }
        }
    }
}

/// The two passes of a step run through two experts of a projection at most, and through two in some steps.
#[test]
fn a_step_gives_gradients_to_two_experts_of_a_place_at_most() {
    let model = backbone();
    let config = config("adaptformer", Some(json!({"expert_num": 4})));
    let adapter = adapter(&*model, &config);
    let mut before = values(&adapter);
    let mut most = 0;
    train(&*model, &adapter, |_| {
        let now = values(&adapter);
        let mut by_place: BTreeMap<String, usize> = BTreeMap::new();
        for (name, value) in
            now.iter().filter(|(name, value)| name.contains("up.weight.expert_") && !same(value, &before[*name]))
        {
            assert_ne!(value.numel(), 0);
            *by_place.entry(name.rsplit_once(".expert_").unwrap().0.to_owned()).or_default() += 1;
        }
        assert!(by_place.values().all(|count| (1..=2).contains(count)), "{by_place:?}");
        most = most.max(*by_place.values().max().unwrap());
        before = now;
    });
    assert_eq!(most, 2);
}

#[test]
fn what_has_no_projection_is_refused() {
    let model = backbone();
    let refused = |mosa: Value, method: &str, options: Value| {
        let adapter =
            find(MethodKind::Adapter, method).unwrap().parse(options.as_object().unwrap(), "adapter").unwrap();
        let around =
            find(MethodKind::Strategy, "mosa").unwrap().around(mosa.as_object().unwrap(), "s").unwrap().unwrap();
        let error = around.wrap(adapter).and_then(|config| config.plan(model.config())).unwrap_err();
        assert_eq!(error.code(), pleach_base::code::METHOD_CONFIG);
        error.message().to_owned()
    };
    assert!(refused(json!({}), "ia3", json!({})).starts_with("share: the adapter `ia3`"));
    let few = refused(
        json!({"expert_num": 16, "bias_shared": false, "share": "none"}),
        "visual_adapter",
        json!({"bottleneck_size": 6}),
    );
    assert!(few.starts_with("expert_num: ") && few.contains("only 6 entries"), "{few}");
}
