//! What every registered method owes on every family of backbones that it can work on. A listed method and a listed
//! family are tested ones; who cannot work on whom is told by [`refusals`].

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, find, methods};
use pleach_nn::{HeadKind, Init, Precision, Replaced, families, to_le_bytes, write_tiny};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, fresh, model_at, moved};
use crate::zoo::{Pair, adapters, backbone, each, example};

#[test]
fn the_model_is_unchanged_until_the_first_step() {
    each(|Pair { method, model }| {
        let config = example(*method);
        let adapter = fresh(model, &config, Key::seed(3));
        let batch = model.batch(&[6, 4, 5], Some(7)).room(&*config);
        // What stands where no token is, is nobody's.
        let run = |groups: &[pleach_nn::Group<'_>]| batch.real(&model.run(&batch, groups));
        let off = distance(&run(&all(&batch, &adapter)), &run(&[]));
        assert_eq!(off < 1e-5, config.card().identity_at_init, "off by {off}");
    });
}

#[test]
fn exactly_the_planned_tensors_are_built_and_trained() {
    each(|Pair { method, model }| {
        let config = example(*method);
        let adapter = moved(model, &config, 3);
        let plan = config.plan(&*model.config).unwrap();
        let built: Vec<_> = adapter.params().iter().map(|(name, leaf)| (name.to_owned(), leaf.size())).collect();
        let planned: Vec<_> = plan
            .trained()
            .map(|tensor| (tensor.name.clone(), tensor.shape.iter().map(|n| *n as i64).collect::<Vec<_>>()))
            .collect();
        assert_eq!(built, planned, "names, shapes and order");
        assert_eq!(adapter.params().numel() as u64, plan.params());

        let batch = model.batch(&[6, 4, 5], Some(7)).room(&*config);
        let output = model.run(&batch, &all(&batch, &adapter));
        batch.real(&output).square().sum(Kind::Float).backward();
        for (name, leaf) in adapter.params().iter() {
            // Modules that the head never runs are planned with a note.
            if adapter.plan().named(name).is_some_and(|tensor| !model.config.sites()[tensor.site].runs) {
                continue;
            }
            assert!(leaf.grad().defined() && leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        }
        for site in model.config.sites().iter() {
            if let Some(weights) = model.backbone.weights(site.id) {
                assert!(!weights.weight.requires_grad() && !weights.weight.grad().defined(), "{}", site.path);
            }
        }
    });
}

#[test]
fn a_seed_gives_the_same_adapter_and_another_seed_another() {
    each(|Pair { method, model }| {
        let config = example(*method);
        let digest = |seed| fresh(model, &config, Key::seed(seed).named("task")).params().digest();
        assert_eq!(digest(1), digest(1));
        let plan = config.plan(&*model.config).unwrap();
        let any = |wanted: fn(Init) -> bool| plan.trained().any(|tensor| wanted(tensor.init));
        let drawn = any(|init| matches!(init, Init::Uniform { .. } | Init::Normal { .. }));
        // What a method works out may depend on the key or not.
        if drawn || !any(|init| init == Init::Derived) {
            assert_eq!(digest(1) != digest(2), drawn);
        }
    });
}

#[test]
fn saved_and_loaded_it_is_the_same_to_the_bit() {
    each(|Pair { method, model }| {
        let config = example(*method);
        let adapter = moved(model, &config, 5);
        let restore = |(name, tensor): (String, Tensor)| {
            let bytes = to_le_bytes(&tensor);
            let shape: Vec<i64> = bytes.shape.iter().map(|n| *n as i64).collect();
            (name, Tensor::from_data_size(&bytes.bytes, &shape, tensor.kind()))
        };
        let values: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().map(restore).collect();
        let whole = adapter.params().iter().all(|(name, _)| values.contains_key(name));
        // What is made by a network in training is read as what it made.
        let reader = if whole { Arc::clone(&config) } else { reader(model, &adapter) };
        let plan = Arc::new(reader.plan(&*model.config).unwrap());
        let again = Adapter::build(reader, plan, &*model.backbone, Key::seed(9), Some(&values)).unwrap();
        assert!(!whole || again.params().digest() == adapter.params().digest());
        let batch = model.batch(&[6, 4, 5], Some(7)).room(&*config);
        let (a, b) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &all(&batch, &again)));
        assert_eq!(distance(&a, &b), 0.0);
    });
}

/// The configuration that a reader of the adapter's file has.
fn reader(model: &Model, adapter: &Adapter) -> Arc<dyn AdapterConfig> {
    let config = adapter.config();
    let said = config.adapter_config(&*model.config, adapter.plan(), &Export { base: "../model" });
    find(config.card().kind, config.card().name).unwrap().import(&said).unwrap().into()
}

#[test]
fn merged_it_gives_the_same_outputs() {
    each(|Pair { method, model }| {
        let config = example(*method);
        if !config.card().mergeable {
            return;
        }
        let adapter = moved(model, &config, 5);
        let mut merged = Replaced::default();
        for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
            assert!(!weights.weight.requires_grad() || adapter.plan().saved.contains(&site));
            merged.insert(site, weights);
        }
        let batch = model.batch(&[6, 4, 5], Some(7));
        let groups = [pleach_nn::Group { rows: 0..3, hooks: &merged }];
        let (a, b) = (model.run(&batch, &groups), model.run(&batch, &all(&batch, &adapter)));
        // Large deltas make large scores, and outputs: rounding grows with those.
        let size = b.abs().max().double_value(&[]).max(1.0);
        assert_near(&batch.real(&a), &batch.real(&b), 3e-5 * size);
        assert!(distance(&a, &model.run(&batch, &[])) > 1e-3, "it does something");
    });
}

#[test]
fn both_layouts_give_the_same() {
    each(|Pair { method, model }| {
        let adapter = moved(model, &example(*method), 7);
        let (padded, packed) = (model.batch(&[6, 4, 5], Some(7)), model.batch(&[6, 4, 5], None));
        let (padded, packed) = (padded.room(adapter.config()), packed.room(adapter.config()));
        let a = padded.real(&model.run(&padded, &all(&padded, &adapter)));
        assert_near(&a, &packed.real(&model.run(&packed, &all(&packed, &adapter))), 1e-5);
    });
}

/// Gradients of the mean over a batch are the weighted mean of those over its parts: what data-parallel training needs.
#[test]
fn two_halves_make_the_whole() {
    each(|Pair { method, model }| {
        let adapter = moved(model, &example(*method), 7);
        let batch = model.batch(&[6, 4, 5, 5], Some(6)).room(adapter.config());
        let grads = |part: &Batch| {
            adapter.params().zero_grads();
            part.real(&model.run(part, &all(part, &adapter))).square().sum(Kind::Float).backward();
            adapter.params().flatten_grads()
        };
        let whole = grads(&batch);
        let halves = grads(&batch.rows(0..2)) + grads(&batch.rows(2..4));
        let scale = whole.abs().max().double_value(&[]);
        assert_near(&(halves / scale), &(whole / scale), 1e-5);
    });
}

#[test]
fn an_alias_has_gradients_of_its_own() {
    each(|Pair { method, model }| {
        let adapter = moved(model, &example(*method), 7);
        let lane = adapter.alias().unwrap();
        let batch = model.batch(&[6, 4, 5], Some(7)).room(adapter.config());
        batch.real(&model.run(&batch, &all(&batch, &lane))).square().sum(Kind::Float).backward();
        assert!(adapter.params().iter().all(|(_, leaf)| !leaf.grad().defined()));
        assert!(lane.params().flatten_grads().abs().max().double_value(&[]) > 0.0);
        adapter
            .params()
            .unflatten(&Tensor::zeros([adapter.params().numel() as i64], (Kind::Float, Device::Cpu)))
            .unwrap();
        assert_eq!(lane.params().digest(), adapter.params().digest());
    });
}

/// The frozen model's tensors are lent, not given: whatever a hook does to them in place would be seen by everybody.
#[test]
fn inputs_and_weights_are_left_as_they_were() {
    each(|Pair { method, model }| {
        let adapter = moved(model, &example(*method), 7);
        let batch = model.batch(&[6, 4, 5], Some(7)).room(adapter.config());
        let weights = || -> Vec<String> {
            let sites = model.config.sites().iter().filter_map(|site| model.backbone.weights(site.id));
            sites.map(|weights| hex(&to_le_bytes(&weights.weight).bytes)).collect()
        };
        let (before, plain) = (weights(), model.run(&batch, &[]));
        let first = model.run_at(&batch, &all(&batch, &adapter), true, 3);
        let again = model.run_at(&batch, &all(&batch, &adapter), true, 3);
        assert_eq!(distance(&first, &again), 0.0, "a pass leaves no trace in the next");
        assert_eq!(distance(&plain, &model.run(&batch, &[])), 0.0);
        assert!(before == weights());
    });
}

fn hex(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    bytes.hash(&mut hash);
    format!("{:x}", hash.finish())
}

/// Options that are refused because they are left out.
const NEEDED: [&str; 4] =
    ["full_ft_max_steps_per_iteration", "sparse_ft_max_steps_per_iteration", "adapters", "token_indices"];

/// Of strategies and compressions too, around the adapter of their tests. On models that the method works on, so that it
/// is the options that are refused; the message names one of them.
#[test]
fn declared_invalid_options_are_refused_with_their_code() {
    let of = |name: &str| *families().iter().find(|family| family.name() == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_tiny(of("bert"), Some(HeadKind::SequenceClassification), folder.path(), 7).unwrap();
    let models = [backbone(of("llama")), backbone(of("bert")), model_at(folder.path(), Precision::Fp32)];
    let mut wrong = Vec::new();
    for method in methods() {
        let works = |model: &&Model| example(method).plan(&*model.config).is_ok();
        let model = models.iter().find(works).unwrap_or_else(|| panic!("no model for {}", method.card().name));
        for invalid in method.card().invalid {
            let options: Map<String, Value> = serde_json::from_str(invalid.options).unwrap();
            let planned = method.parse(&options, "spec").and_then(|config| config.plan(&*model.config));
            let which = format!("{} {}", method.card().name, invalid.options);
            match planned {
                Ok(_) => wrong.push(format!("{which} is accepted")),
                Err(error) if error.code() != invalid.code => wrong.push(format!("{which}: {error:?}")),
                Err(error) => {
                    let given = options.keys().any(|name| error.message().contains(name.as_str()));
                    let begins = |name: &&&str| error.message().starts_with(&format!("spec.{name}: "));
                    let missing = NEEDED.iter().find(begins).is_some_and(|name| !options.contains_key(*name));
                    if !given && !missing {
                        wrong.push(format!("{which} is refused for another reason: {error}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A pair that cannot work is refused by the plan, with a reason; nothing is refused without need.
#[test]
fn refusals() {
    let mut works = 0;
    for family in families() {
        let model = backbone(*family);
        for method in adapters() {
            let Err(error) = example(method).plan(&*model.config) else {
                works += 1;
                continue;
            };
            let who = format!("{} on {}", method.card().name, family.name());
            assert!([code::METHOD_CONFIG, code::TARGET_NOTHING].contains(&error.code()), "{who}: {error:?}");
            assert_ne!(method.card().name, "lora", "{who}: linear maps are everywhere");
            println!("{who}: {}", error.message());
        }
    }
    assert!(works >= adapters().count() * families().len() * 3 / 4, "only {works} pairs work");
}
