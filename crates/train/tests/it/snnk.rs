//! What stands around adapters for SNNK, in whole trainings: on any number of ranks, through an interruption, and with
//! files that give it again.

use std::path::Path;
use std::sync::Arc;

use pleach_nn::{HeadKind, families, write_tiny};
use pleach_train::{Outcome, StopSignal};
use serde_json::{Value, json};

use crate::fixture::{Heard, llama_job, parse, run, run_alone, stored};
use crate::gang::{alone, survives_kills};
use crate::processes::{Gang, gang};

/// A strict job of three steps on a tiny model of a family.
fn job(folder: &Path, model: &Path, family: &str, head: Option<HeadKind>) -> Value {
    let family = families().iter().find(|own| own.name() == family).unwrap();
    write_tiny(*family, head, model, 1).unwrap();
    let mut job = llama_job(folder, 20);
    job["spec"]["backbone"]["path"] = json!(model);
    job["spec"]["tasks"][0]["adapter"] = json!({"method": "lora", "r": 2});
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"].as_object_mut().unwrap().remove("eval");
    job
}

fn uptraining(folder: &Path, model: &Path) -> Value {
    let mut job = job(folder, model, "gpt2", None);
    job["spec"]["compress"] = json!({"method": "snnk_uptrain", "layers": 1, "num_rfs": 4});
    job
}

fn closed_form(folder: &Path, model: &Path) -> Value {
    let mut job = job(folder, model, "bert", Some(HeadKind::SequenceClassification));
    let row = |row: usize| {
        let ids: Vec<_> = (0..2 + row % 5).map(|at| (row * 13 + at * 29) % 50).collect();
        format!("{}\n", json!({"input_ids": ids, "label": row % 2}))
    };
    let data = folder.join("classes.jsonl");
    std::fs::write(&data, (0..20).map(row).collect::<String>()).unwrap();
    job["spec"]["data"] = json!({"source": data, "task": "sequence_classification", "max_length": 16});
    job["spec"]["strategy"] = json!({"method": "snnk_closed_form", "num_rfs": 8});
    job
}

type Make = fn(&Path, &Path) -> Value;

const ALL: [(&str, Make); 2] = [("uptraining", uptraining), ("closed form", closed_form)];

#[test]
fn two_ranks_train_what_one_trains() {
    for (name, make) in ALL {
        let folder = tempfile::tempdir().unwrap();
        let job = make(folder.path(), &folder.path().join("model"));
        let one = alone(&job, folder.path());
        assert_eq!(one.end, "Finished", "{name}: {}", one.message);
        let two = gang(folder.path(), &job, 2, &Gang::default());
        assert_eq!((two[0].end.as_str(), &two[0].digests), ("Finished", &one.digests), "{name}: {}", two[0].message);
        assert_eq!(two[0].losses, one.losses, "{name}");
    }
}

#[test]
fn killed_ranks_leave_no_trace() {
    for (name, make) in ALL {
        let folder = tempfile::tempdir().unwrap();
        survives_kills(name, &make(folder.path(), &folder.path().join("model")), folder.path(), [1, 2]);
    }
}

#[test]
fn an_interruption_leaves_no_trace_and_the_files_give_it_again() {
    for (name, make) in ALL {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut, model) = (folder.path().join("whole"), folder.path().join("cut"), folder.path().join("model"));
        std::fs::create_dir_all(&whole).unwrap();
        std::fs::create_dir_all(&cut).unwrap();
        let (outcome, expected) = run_alone(&make(&whole, &model));
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{name}");
        let job = make(&cut, &model);
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
        let manifest: Value = serde_json::from_slice(&stored(&whole)["00000003-g0001/manifest.json"]).unwrap();
        assert_eq!(manifest["gate"], json!({"publishable": true, "findings": []}), "{name}");
    }
}
