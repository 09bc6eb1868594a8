//! What every registered strategy and compression owes to distributed training, around the adapter of its tests: any number of ranks, an
//! interruption, and files that others can read.

use std::path::Path;
use std::sync::Arc;

use pleach_methods::{Method, MethodKind, methods};
use pleach_nn::{HeadKind, HeadOptions, families, write_tiny};
use pleach_train::{Outcome, StopSignal};
use serde_json::{Map, Value, json};

use crate::fixture::{Heard, llama_job, lm_row, parse, run, run_alone, stored};
use crate::gang::{alone, near, survives_kills};
use crate::processes::{Gang, gang};

/// A strict job of several steps with the strategy's example options around the adapter of its tests.
fn job(method: &dyn Method, folder: &Path, model: &Path) -> Value {
    let llama = families().iter().find(|family| family.name() == "llama").unwrap();
    write_tiny(*llama, None, model, 1).unwrap();
    let mut job = llama_job(folder, 40);
    // For those that tell tasks apart, and of no use to the others.
    let named = |row: usize| {
        let mut fields: Value = serde_json::from_str(&lm_row(row, 0)).unwrap();
        fields["task"] = json!(u8::from(row % 5 > 1)); // two whole steps of one task, three of the other
        format!("{fields}\n")
    };
    std::fs::write(folder.join("train.jsonl"), (0..40).map(named).collect::<String>()).unwrap();
    job["spec"]["backbone"]["path"] = json!(model);
    let section = |name: &str, options: &str| {
        let mut section: Map<String, Value> = serde_json::from_str(options).unwrap();
        section.insert("method".to_owned(), json!(name));
        Value::Object(section)
    };
    let (adapter, options) = method.inner().unwrap();
    job["spec"]["tasks"][0]["adapter"] = section(adapter, options);
    job["spec"][method.card().kind.to_string()] = section(method.card().name, method.example());
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"].as_object_mut().unwrap().remove("eval");
    job
}

/// Whether it is for a causal model; those that are for others have tests of their own.
fn is_for_text(method: &dyn Method) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let llama = families().iter().find(|family| family.name() == "llama").unwrap();
    write_tiny(*llama, None, folder.path(), 1).unwrap();
    let head = HeadOptions { kind: Some(HeadKind::CausalLm), ..HeadOptions::default() };
    let (_, model) = pleach_nn::open(folder.path(), &head).unwrap();
    let options: Value = serde_json::from_str(method.example()).unwrap();
    method.parse(options.as_object().unwrap(), "strategy").unwrap().plan(&*model).is_ok()
}

fn each(test: impl Fn(&dyn Method, &Path) + std::panic::RefUnwindSafe) {
    let around = |method: &&dyn Method| [MethodKind::Strategy, MethodKind::Compress].contains(&method.card().kind);
    let strategies = methods().filter(around).filter(|method| is_for_text(*method));
    let strategies: Vec<_> = strategies.collect();
    assert!(strategies.len() >= 4, "MoSA, MixDA and coded adapters are");
    let failed: Vec<_> = strategies
        .into_iter()
        .filter(|method| {
            let run = || test(*method, tempfile::tempdir().unwrap().path());
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
        })
        .map(|method| method.card().name)
        .collect();
    assert!(failed.is_empty(), "these strategies fail, see above: {failed:?}");
}

#[test]
fn two_ranks_train_what_one_trains() {
    each(|method, folder| {
        let name = method.card().name;
        let mut job = job(method, folder, &folder.join("model"));
        let one = alone(&job, folder);
        assert_eq!(one.end, "Finished", "{name}: {}", one.message);
        assert!(one.digests.len() >= 5, "{name}");
        let two = gang(folder, &job, 2, &Gang::default());
        assert_eq!((two[0].end.as_str(), &two[0].digests), ("Finished", &one.digests), "{name}: {}", two[0].message);
        assert_eq!(two[0].losses, one.losses, "{name}");
        job["spec"]["train"]["determinism"] = json!("fast");
        job["spec"]["checkpoint"]["store"] = json!(folder.join("fast"));
        let fast = gang(folder, &job, 2, &Gang { generation: 2, ..Gang::default() });
        near(&fast[0].losses, &one.losses, 1e-4);
    });
}

#[test]
fn an_interruption_leaves_no_trace() {
    each(|method, folder| {
        let name = method.card().name;
        let (whole, cut, model) = (folder.join("whole"), folder.join("cut"), folder.join("model"));
        std::fs::create_dir_all(&whole).unwrap();
        std::fs::create_dir_all(&cut).unwrap();
        let (outcome, expected) = run_alone(&job(method, &whole, &model));
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{name}");
        let job = job(method, &cut, &model);
        let group = pleach_comm::local(tch::Device::Cpu);
        let mut digests = Vec::new();
        for generation in 1..=2 {
            let stop = StopSignal::default();
            let heard = Arc::new(Heard::draining_at(if generation == 1 { 3 } else { 99 }, &stop));
            let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
            digests.extend(heard.digests());
            assert_eq!(outcome == Outcome::Finished, generation == 2, "{name}: generation {generation}");
        }
        assert_eq!(digests, expected.digests(), "{name}");
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let of = |folder: &Path, step: &str| stored(folder)[&format!("{step}/{file}")].clone();
            assert!(of(&cut, "00000005-g0002") == of(&whole, "00000005-g0001"), "{name}: {file}");
        }
    });
}

#[test]
fn killed_ranks_leave_no_trace() {
    each(|method, folder| {
        let job = job(method, folder, &folder.join("model"));
        survives_kills(method.card().name, &job, folder, [2, 4]);
    });
}

/// What a strategy leaves reads back as the same adapter: otherwise nothing of it would ever be given to others.
#[test]
fn a_trained_step_passes_its_gate() {
    each(|method, folder| {
        let (outcome, _) = run_alone(&job(method, folder, &folder.join("model")));
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{}", method.card().name);
        let manifest: Value = serde_json::from_slice(&stored(folder)["00000005-g0001/manifest.json"]).unwrap();
        assert_eq!(manifest["gate"], json!({"publishable": true, "findings": []}), "{}", method.card().name);
    });
}
