//! SNNK on models: the identity to the bit, the random matrices that must be those of the training, and uptraining.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, StepInfo, find};
use pleach_nn::{
    BaseOp, Group, HeadKind, HookSet, Part, Precision, Role, SiteCx, SiteHook, SiteId, families, write_tiny,
};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::support::{Model, all, assert_near, distance, fresh, moved, parse};
use crate::zoo::backbone;

fn family(name: &str) -> Model {
    backbone(*families().iter().find(|family| family.name() == name).unwrap())
}

#[test]
fn new_adapters_change_nothing() {
    for (family, method, options) in [
        ("bert", "snnk", json!({"num_rfs": 4})),
        ("llama", "snnk", json!({"num_rfs": 4, "kernel": "cos", "down_sample": 3})),
        ("bert", "p_adapter", json!({"reduction_factor": 2})),
        ("bart", "p_adapter", json!({"reduction_factor": 2, "image_sample_len": 2})),
    ] {
        let model = self::family(family);
        let adapter = fresh(&model, &parse(method, &options), Key::seed(3));
        let batch = model.batch(&[6, 4, 5], Some(7));
        let off = distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[]));
        // p-Adapter has attention run in the open, which rounds otherwise.
        let most = if method == "snnk" { 0.0 } else { 1e-5 };
        assert!(off <= most, "{method} on {family}: {off}");
        assert!(
            adapter.kept().values().all(|tensor| !tensor.requires_grad()),
            "{method}: what is drawn is not trained"
        );
    }
}

fn built(model: &Model, options: &Value, values: Option<&BTreeMap<String, Tensor>>) -> pleach_base::Result<Adapter> {
    let config = parse("snnk", options);
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    Adapter::build(config, plan, &*model.backbone, Key::seed(1), values)
}

#[test]
fn other_random_matrices_are_refused() {
    let model = family("bert");
    for save in [true, false] {
        let options = json!({"num_rfs": 4, "seed": 5, "save_projection": save});
        let adapter = built(&model, &options, None).unwrap();
        let export = Export { base: "model" };
        let said = adapter.adapter_config(&*model.config, &export).unwrap();
        let read = |said: &Map<String, Value>, values: &BTreeMap<String, Tensor>| {
            let config: Arc<dyn AdapterConfig> =
                find(MethodKind::Adapter, "snnk").unwrap().import(said).unwrap().into();
            let plan = Arc::new(config.plan(&*model.config).unwrap());
            Adapter::build(config, plan, &*model.backbone, Key::seed(9), Some(values)).map(drop)
        };
        let values: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().collect();
        assert_eq!(values.keys().any(|name| name.ends_with("snnk.G")), save);
        read(&said, &values).unwrap();
        let error = if save {
            let mut other: BTreeMap<_, _> = values.iter().map(|(name, value)| (name.clone(), value.copy())).collect();
            let g = other.iter_mut().find(|(name, _)| name.ends_with("snnk.G")).unwrap().1;
            let _ = g.get(0).get(0).g_add_scalar_(1e-3);
            read(&said, &other).unwrap_err()
        } else {
            let mut other = said.clone();
            other.insert("seed".to_owned(), json!(6));
            read(&other, &values).unwrap_err()
        };
        assert_eq!(error.code(), code::ADAPTER_FORMAT, "{error:?}");
        assert!(error.message().starts_with("projection_checksum: "), "{error}");
    }
}

/// What ranks compare before they train tells of another seed.
#[test]
fn ranks_with_other_seeds_have_other_digests() {
    let model = family("bert");
    let digest = |seed| built(&model, &json!({"num_rfs": 4, "seed": seed}), None).unwrap().params().digest();
    assert_eq!(digest(5), digest(5));
    assert_ne!(digest(5), digest(6));
}

/// Notes what comes in at one site and what goes out of another.
struct Probe<'a> {
    inner: &'a Adapter,
    sites: [SiteId; 2],
    first: Spy<'a>,
    last: Spy<'a>,
}

struct Spy<'a> {
    hook: &'a dyn SiteHook,
    seen: RefCell<Option<[Tensor; 2]>>,
}

impl HookSet for Probe<'_> {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        match self.sites.iter().position(|own| *own == site) {
            Some(0) => Some(&self.first),
            Some(_) => Some(&self.last),
            None => self.inner.at(site),
        }
    }
}

impl SiteHook for Spy<'_> {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let input = x[0].shallow_clone();
        let y = self.hook.around(cx, x, base);
        *self.seen.borrow_mut() = Some([input, y[0].shallow_clone()]);
        y
    }
}

#[test]
fn an_uptrained_part_is_features_and_the_last_map() {
    let model = family("bert");
    let options = json!({"layers": 1, "num_rfs": 4});
    let method = find(MethodKind::Compress, "snnk_uptrain").unwrap();
    let config: Arc<dyn AdapterConfig> = method.parse(options.as_object().unwrap(), "compress").unwrap().into();
    let adapter = moved(&model, &config, 3);
    let sites = model.config.sites();
    let of = |part: Part| sites.with_role(Role::Linear).filter(|site| site.part == part).last().unwrap();
    let (up, down) = (of(Part::Up), of(Part::Down));
    let spy = |site: SiteId| Spy { hook: adapter.at(site).unwrap(), seen: RefCell::new(None) };
    let probe = Probe { inner: &adapter, sites: [up.id, down.id], first: spy(up.id), last: spy(down.id) };
    let batch = model.batch(&[6, 4, 5], Some(7));
    let whole = model.run(&batch, &[Group { rows: 0..3, hooks: &probe }]);
    assert!(distance(&whole, &model.run(&batch, &[])) > 1e-3);
    let [x, _] = probe.first.seen.take().unwrap();
    let [_, found] = probe.last.seen.take().unwrap();
    let named = |part: &str| format!("base_model.model.{}.snnk_uptrain.{part}", up.path);
    let g = &adapter.kept()[&named("uptrain_G")];
    let y = adapter.params().get(&named("uptrain_Y")).unwrap();
    let length = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
    let phi = (x / length).linear(g, None::<&Tensor>).relu() / 2.0;
    let frozen = model.backbone.weights(down.id).unwrap();
    let expected = phi.linear(y, None::<&Tensor>).linear(&frozen.weight, frozen.bias.as_ref());
    assert_near(&found, &expected, 1e-5);
}

/// Sums that came in through gradients, in parts, have the solution of all rows at once.
#[test]
fn a_head_in_closed_form_is_the_least_squares_one() {
    let bert = *families().iter().find(|family| family.name() == "bert").unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_tiny(bert, Some(HeadKind::SequenceClassification), folder.path(), 7).unwrap();
    let model = crate::support::model_at(folder.path(), Precision::Fp32);
    let classes = model.config.info().num_labels as i64;
    let options = json!({"num_rfs": 6, "ridge": 0.5, "normalize": "none"});
    let method = find(MethodKind::Strategy, "snnk_closed_form").unwrap();
    let config: Arc<dyn AdapterConfig> = method.parse(options.as_object().unwrap(), "strategy").unwrap().into();
    let adapter = fresh(&model, &config, Key::seed(3));
    let before = adapter.params().digest();
    let head = model.config.sites().with_role(Role::Head).last().unwrap();
    let batch = model.batch(&[6, 4, 5, 3, 2, 6], Some(7));
    let (mut phis, mut targets) = (Vec::new(), Vec::new());
    for step in 0..3u64 {
        let part = batch.rows(2 * step as usize..2 * step as usize + 2);
        let labels = Tensor::from_slice(&[step as i64 % classes, (step as i64 + 1) % classes]);
        let site = [head.id, head.id];
        let spy = || Spy { hook: adapter.at(head.id).unwrap(), seen: RefCell::new(None) };
        let probe = Probe { inner: &adapter, sites: site, first: spy(), last: spy() };
        let logits = model.run_at(&part, &[Group { rows: 0..2, hooks: &probe }], true, step);
        assert_eq!(logits.abs().max().double_value(&[]), 0.0, "nothing is predicted before the solution");
        let loss = logits.cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, 0.0);
        loss.backward();
        let info = StepInfo::new(step + 1, 3, &[3]);
        adapter.before_update(info).unwrap();
        assert_ne!(adapter.params().digest(), before);
        if info.ends_phase() {
            adapter.end_phase(info).unwrap();
        }
        adapter.params().zero_grads();
        let [x, _] = probe.first.seen.take().unwrap();
        let g = adapter.kept().iter().find(|(name, _)| name.ends_with("bundled_G")).unwrap().1;
        phis.push(x.linear(g, None::<&Tensor>).relu() / 6f64.sqrt());
        targets.push(labels.one_hot(classes));
    }
    let (phi, targets) = (Tensor::cat(&phis, 0).to_kind(Kind::Double), Tensor::cat(&targets, 0).to_kind(Kind::Double));
    let ridge = Tensor::eye(6, (Kind::Double, tch::Device::Cpu)) * 0.5;
    let expected = (phi.tr().matmul(&phi) + ridge).inverse().matmul(&phi.tr()).matmul(&targets).tr();
    let (_, w) = adapter.params().iter().find(|(name, _)| name.ends_with("bundled_W")).unwrap();
    assert_near(w, &expected, 1e-5);
    assert!(expected.abs().max().double_value(&[]) > 0.1);
    let files: Vec<_> = adapter.exported().unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(files.iter().any(|name| name.ends_with("bundled_W")) && !files.iter().any(|name| name.ends_with("gram")));
}
