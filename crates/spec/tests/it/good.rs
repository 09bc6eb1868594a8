//! What is read, and what becomes of it.

use std::path::Path;

use pleach_spec::job::{Dtype, OptimizerName};
use pleach_spec::{load, parse, read};

use crate::JOB;

#[test]
fn defaults_fill_what_is_absent() {
    let job = parse(JOB, "job.yaml").unwrap();
    assert_eq!(job.metadata.tenant, "default");
    assert_eq!(job.spec.train.optimizer.name, OptimizerName::AdamW);
    assert_eq!(job.spec.train.optimizer.lr, 2e-4);
    assert_eq!(job.spec.tasks[0].adapter.options["r"], 16);
    assert_eq!(job.spec.train.lanes, None);
}

#[test]
fn retrieval_takes_templates_or_ready_ids() {
    let bare = JOB.replace("task: causal_lm", "task: retrieval");
    parse(&bare, "job.yaml").unwrap();
    parse(&bare.replace("task: retrieval", "task: retrieval\n    text_pair: '{passage}'"), "job.yaml").unwrap();
}

#[test]
fn resolving_decides_lanes_and_metrics_once() {
    let job = parse(JOB, "job.yaml").unwrap().resolve();
    assert_eq!(job.spec.train.lanes, Some(4));
    assert_eq!(job.spec.eval.as_ref().unwrap().metrics, ["loss"]);
    assert_eq!(job.clone().resolve(), job);
    job.validate().unwrap();
}

#[test]
fn the_same_job_in_another_order_and_spelling_is_the_same_text() {
    let other = r#"{"kind": "Job", "apiVersion": "pleach.dev/v1",
        "spec": {"checkpoint": {"store": "out"}, "eval": {"source": "data/held.jsonl"},
          "tasks": [{"adapter": {"target_modules": ["q_proj", "v_proj"], "r": 16, "method": "lora"}, "name": "answers"}],
          "train": {"optimizer": {"lr": 0.0002, "name": "adamw"}, "epochs": 2, "global_batch": 12},
          "data": {"task": "causal_lm", "source": "data/*.jsonl", "max_length": 512},
          "workers": {"max": 4}, "backbone": {"dtype": "float32", "path": "models/mini"}},
        "metadata": {"tenant": "default", "name": "demo"}}"#;
    let one = parse(JOB, "a").unwrap().resolve();
    let two = parse(other, "b").unwrap().resolve();
    assert_eq!(one.canonical_json(), two.canonical_json());
    assert_eq!(parse(&one.canonical_json(), "stored").unwrap(), one, "what is stored reads back");
    let changed = load(JOB, "a", &["spec.train.seed=1".into()]).unwrap().job.resolve();
    assert_ne!(one.canonical_json(), changed.canonical_json());
}

#[test]
fn overrides_are_applied_in_order_before_typing() {
    let sets = [
        "spec.tasks[0].adapter.r=8",
        "spec.train.optimizer.betas=[0.8, 0.9]",
        "spec.backbone.dtype=bfloat16",
        "spec.checkpoint.retention.last=5",
        "spec.checkpoint.store=s3://bucket/a=b",
        "spec.tasks.0.adapter.r=4",
    ];
    let job = load(JOB, "job.yaml", &sets.map(String::from)).unwrap().job;
    assert_eq!(job.spec.tasks[0].adapter.options["r"], 4);
    assert_eq!(job.spec.train.optimizer.betas, [0.8, 0.9]);
    assert_eq!(job.spec.backbone.dtype, Dtype::Bf16);
    assert_eq!(job.spec.checkpoint.retention.last, 5);
    assert_eq!(job.spec.checkpoint.store, "s3://bucket/a=b");
}

#[test]
fn anchors_work_and_the_places_of_method_options_are_known() {
    let text =
        JOB.replace("data/*.jsonl", "&files data/*.jsonl").replace("{source: data/held.jsonl}", "{source: *files}");
    let loaded = load(&text, "job.yaml", &["spec.tasks[0].adapter.lora_alpha=no".into()]).unwrap();
    assert_eq!(loaded.job.spec.eval.unwrap().source, "data/*.jsonl");
    let place = |path: &str| {
        let error = pleach_base::code::UNKNOWN_KEY.error(format!("{path}: unknown key"));
        loaded.places.locate(error).message().to_owned()
    };
    assert_eq!(
        place("spec.tasks[0].adapter.target_modules"),
        "job.yaml:17:38: spec.tasks[0].adapter.target_modules: unknown key"
    );
    assert_eq!(
        place("spec.tasks[0].adapter.lora_alpha"),
        "--set spec.tasks[0].adapter.lora_alpha=no: spec.tasks[0].adapter.lora_alpha: unknown key"
    );
    assert_eq!(place("spec.tasks[0].adapter.none"), "job.yaml:17:7: spec.tasks[0].adapter.none: unknown key");
}

#[test]
fn the_sample_jobs_are_valid_and_need_no_resolving_twice() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/jobs");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let job = read(&path, &[]).unwrap_or_else(|error| panic!("{error:?}")).job;
        assert_eq!(Some(job.metadata.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
        seen += 1;
    }
    assert!(seen >= 3, "{seen} sample jobs");
}

#[test]
fn the_schema_has_a_sentence_for_every_key() {
    let schema = pleach_spec::schema(&pleach_spec::MethodSchemas::new());
    let mut silent = Vec::new();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            if property.get("description").is_none() {
                silent.push(format!("{name}.{key}"));
            }
        }
    }
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn every_key_and_every_plain_default_stands_in_the_documentation() {
    let page = include_str!("../../../../docs/job-file.md");
    let schema = pleach_spec::schema(&pleach_spec::MethodSchemas::new());
    let sets = std::iter::once(&schema).chain(schema["$defs"].as_object().unwrap().values());
    let keys = sets.flat_map(|set| set["properties"].as_object().into_iter().flatten());
    let (mut missing, mut numbers) = (Vec::new(), 0);
    for (key, about) in keys {
        if !page.contains(&format!("{key}`")) {
            missing.push(key.clone());
        }
        if let Some(default) = about.get("default").and_then(serde_json::Value::as_f64) {
            numbers += 1;
            let forms =
                [format!("`{key}` | {default} |"), format!("`{key}` | {default:.1} |"), format!("`{key}` ({default}")];
            let small = format!("`{key}` ({default:e}");
            if !forms.iter().chain([&small]).any(|form| page.contains(form)) {
                missing.push(format!("{key}'s default {default}"));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(numbers >= 12, "{numbers} defaults were looked at");
}

#[test]
fn a_task_inherits_what_its_own_data_and_optimizer_leave_out() {
    let own = "\n    - {name: tone, adapter: {method: lora}, data: {source: tone.parquet, text: null}, optimizer: {lr: 1}}\n  eval:";
    let text = JOB
        .replace("\n  eval:", own)
        .replace("task: causal_lm", "task: causal_lm\n    text: \"{q}\"\n    max_length: 99")
        .replace("{lr: 2e-4}", "{lr: 2e-4, weight_decay: 0.1}");
    let job = parse(&text, "job.yaml").unwrap();
    let tone = &job.spec.tasks[1];
    let data = tone.data.as_ref().unwrap();
    assert_eq!((data.source.as_str(), data.text.as_deref(), data.max_length), ("tone.parquet", Some("{q}"), 99));
    let optimizer = tone.optimizer.as_ref().unwrap();
    assert_eq!((optimizer.lr, optimizer.weight_decay), (1.0, 0.1));
    assert_eq!(job.spec.tasks[0].data, None, "a task without data of its own keeps none");
    assert_eq!(parse(&job.canonical_json(), "stored").unwrap(), job, "what is stored inherits nothing more");
}
