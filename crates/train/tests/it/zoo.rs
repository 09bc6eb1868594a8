//! What every registered adapter method owes to distributed training, on one backbone each: any number of ranks, an
//! interruption, and the files. A listed method is a tested one.

use std::path::Path;
use std::sync::Arc;

use pleach_methods::{Method, MethodKind, methods};
use pleach_nn::{families, write_tiny};
use pleach_train::{Outcome, StopSignal};
use serde_json::{Map, Value, json};

use crate::fixture::{Heard, llama_job, parse, run, run_alone, stored};
use crate::gang::{alone, near, survives_kills};
use crate::processes::{Gang, gang};

/// A strict job of three steps with the method's example options, on a tiny llama.
fn job(method: &dyn Method, folder: &Path, model: &Path) -> Value {
    let llama = families().iter().find(|family| family.name() == "llama").unwrap();
    write_tiny(*llama, None, model, 1).unwrap();
    let mut job = llama_job(folder, 20);
    job["spec"]["backbone"]["path"] = json!(model);
    let mut options: Map<String, Value> = serde_json::from_str(method.example()).unwrap();
    options.insert("method".to_owned(), json!(method.card().name));
    if method.card().kind == MethodKind::Router {
        job["spec"]["router"] = Value::Object(options);
        job["spec"]["tasks"][0]["adapter"] = json!({"method": "lora", "r": 2, "target_modules": "all-linear"});
    } else {
        job["spec"]["tasks"][0]["adapter"] = Value::Object(options);
    }
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"].as_object_mut().unwrap().remove("eval");
    job
}

fn each(test: impl Fn(&dyn Method, &Path) + std::panic::RefUnwindSafe) {
    let failed: Vec<_> = methods()
        .filter(|method| matches!(method.card().kind, MethodKind::Adapter | MethodKind::Router))
        .filter(|method| {
            let run = || test(*method, tempfile::tempdir().unwrap().path());
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
        })
        .map(|method| method.card().name)
        .collect();
    assert!(failed.is_empty(), "these methods fail, see above: {failed:?}");
}

/// Strict mode promises bits; fast mode rounding.
#[test]
fn two_ranks_train_what_one_trains() {
    each(|method, folder| {
        let name = method.card().name;
        let mut job = job(method, folder, &folder.join("model"));
        let one = alone(&job, folder);
        assert_eq!(one.end, "Finished", "{name}: {}", one.message);
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
            let heard = Arc::new(Heard::draining_at(if generation == 1 { 1 } else { 99 }, &stop));
            let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
            digests.extend(heard.digests());
            assert_eq!(outcome == Outcome::Finished, generation == 2, "{name}: generation {generation}");
        }
        assert_eq!(digests, expected.digests(), "{name}");
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let of = |folder: &Path, step: &str| stored(folder)[&format!("{step}/{file}")].clone();
            assert!(of(&cut, "00000003-g0002") == of(&whole, "00000003-g0001"), "{name}: {file}");
        }
    });
}

#[test]
fn killed_ranks_leave_no_trace() {
    each(|method, folder| {
        let job = job(method, folder, &folder.join("model"));
        survives_kills(method.card().name, &job, folder, [1, 2]);
    });
}

/// What a method trains reads back as the same adapter: otherwise nothing of it would ever be given to others.
#[test]
fn a_trained_step_passes_its_gate() {
    each(|method, folder| {
        let (outcome, _) = run_alone(&job(method, folder, &folder.join("model")));
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{}", method.card().name);
        let manifest: Value = serde_json::from_slice(&stored(folder)["00000003-g0001/manifest.json"]).unwrap();
        assert_eq!(manifest["gate"], json!({"publishable": true, "findings": []}), "{}", method.card().name);
    });
}
