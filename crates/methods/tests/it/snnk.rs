//! SNNK on models: the identity to the bit, the random matrices that must be those of the training, and uptraining.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, find};
use pleach_nn::{BaseOp, Group, HookSet, Part, Role, SiteCx, SiteHook, SiteId, families};
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
