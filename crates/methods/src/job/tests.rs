use std::path::PathBuf;

use pleach_nn::{ModelDir, configure};

use super::*;
use crate::explain::{explain, fields};
use crate::registry::{kinds, methods, schemas};

fn job(text: &str) -> Job {
    pleach_spec::parse(text, "job.yaml").unwrap()
}

fn model(name: &str, job: &Job) -> Box<dyn BackboneConfig> {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/parity")).join(name).join("model");
    configure(&ModelDir::config_only(&path).unwrap(), &head_options(job).unwrap()).unwrap()
}

fn with_adapter(adapter: &str) -> Job {
    let sample = methods().next().unwrap().card().sample_job;
    let line = sample.lines().find(|line| line.contains("- {name: answers")).unwrap();
    job(&sample.replace(line, &format!("    - {{name: answers, adapter: {adapter}}}")))
}

#[test]
fn every_sample_job_plans() {
    for method in methods() {
        let job = job(method.card().sample_job);
        // What replaces the activation of a plain feed-forward part has none to replace in a gated one.
        let of = if method.card().name == "snnk_uptrain" { "bert-lora" } else { "llama-lora" };
        let plan = plan_job(&job, &*model(of, &job)).unwrap();
        assert!(plan.tasks.iter().all(|task| task.trainable > 0 && !task.sites.is_empty()), "{}", method.card().name);
    }
}

#[test]
fn reconstruction_needs_documents_of_two_windows() {
    let plan = |max_length, tasks: &str| {
        let options = format!("fastlora_r: 8, fastlora_max_rank: 4, window: 16, tasks: {tasks}");
        let mut job = with_adapter(&format!("{{method: generative, {options}}}"));
        job.spec.data.as_mut().unwrap().max_length = max_length;
        plan_job(&job, &*model("llama-lora", &job))
    };
    let error = plan(31, "[reconstruction, completion]").unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().contains("adapter.window: documents of at most 31"), "{error}");
    assert!(plan(32, "[reconstruction]").is_ok() && plan(31, "[completion]").is_ok());
}

#[test]
fn a_plan_has_pefts_line_and_a_row_a_site() {
    let job = with_adapter("{method: lora, r: 4, target_modules: all-linear}");
    let plan = plan_job(&job, &*model("llama-lora", &job)).unwrap();
    let task = &plan.tasks[0];
    assert_eq!(plan.class, "LlamaForCausalLM");
    assert_eq!(task.trainable_line(), "trainable params: 9,344 || all params: 134,592 || trainable%: 6.9425");
    assert_eq!(task.sites.len(), 14);
    let row = &task.sites[6];
    assert_eq!((row.path.as_str(), row.params), ("model.layers.0.mlp.down_proj", 4 * (176 + 64)));
    assert_eq!(row.tensors, ["lora_A [4, 176]", "lora_B [64, 4]"]);
    assert_eq!(task.sites.iter().map(|row| row.params).sum::<u64>(), task.trainable);
}

#[test]
fn errors_name_the_place_in_the_job() {
    let refuse = |adapter: &str| {
        let job = with_adapter(adapter);
        plan_job(&job, &*model("llama-lora", &job)).unwrap_err()
    };
    let error = refuse("{method: lorra}");
    assert_eq!((error.code(), error.hint_text()), (code::METHOD_UNKNOWN, Some("did you mean `lora`?")));
    assert_eq!(error.message(), "spec.tasks[0].adapter.method: no adapter method is called `lorra`");
    let error = refuse("{method: lora, target_modules: [q_porj]}");
    assert_eq!(error.code(), code::TARGET_NOTHING);
    assert!(error.message().starts_with("spec.tasks[0].adapter.target_modules: "), "{error}");
    assert!(error.hint_text().unwrap().starts_with("nearest: q_proj"));
    let error = refuse("{method: lora, target_modules: [q_proj, v_porj]}");
    assert_eq!((error.code(), error.hint_text()), (code::TARGET_NOTHING, Some("did you mean `v_proj`?")));
    assert!(error.message().starts_with("spec.tasks[0].adapter.target_modules: `v_porj` "), "{error}");
    let mut job = with_adapter("{method: lora}");
    job.spec.router = Some(Section { method: "mixlorra".into(), options: serde_json::Map::new() });
    let error = plan_job(&job, &*model("llama-lora", &job)).unwrap_err();
    assert_eq!(error.code(), code::METHOD_UNKNOWN);
    assert_eq!(error.hint_text(), Some("did you mean `mixlora`?"));
    assert!(error.message().starts_with("spec.router.method: "), "{error}");
}

#[test]
fn the_head_follows_the_data() {
    let mut job = with_adapter("{method: lora}");
    assert_eq!(head_options(&job).unwrap().kind, Some(HeadKind::CausalLm));
    if let Some(data) = &mut job.spec.data {
        data.task = DataTask::Retrieval;
    }
    assert_eq!(model("bert-lora", &job).info().class, "BertModel");
    job.spec.data = None;
    assert_eq!(head_options(&job).unwrap_err().code(), code::BAD_VALUE);
}

#[test]
fn cards_pages_and_schemas_are_complete() {
    for (kind, members) in kinds() {
        let names: Vec<_> = members.iter().map(|method| method.card().name).collect();
        assert!(names.is_sorted(), "the registry is in order");
        for method in *members {
            let card = method.card();
            assert_eq!(card.kind, *kind);
            assert!(!card.invalid.is_empty() && !card.sync.is_empty() && !card.roles.is_empty(), "{}", card.name);
            let page = explain(*method);
            for field in fields(*method) {
                assert!(page.contains(&format!("`{}`", field.name)), "{}", field.name);
                assert!(!field.description.is_empty() && !field.kind.is_empty(), "{} needs a description", field.name);
            }
            if card.name == "lora" {
                let kind = |name: &str| fields(*method).into_iter().find(|field| field.name == name).unwrap().kind;
                assert_eq!((kind("r"), kind("target_modules")), ("integer".into(), "string or array".into()));
                assert_eq!(
                    (kind("bias"), kind("init_lora_weights")),
                    ("none or all or lora_only".into(), "boolean or string".into())
                );
            }
            assert!(schemas()[&kind.to_string()].contains_key(card.name));
        }
    }
}
