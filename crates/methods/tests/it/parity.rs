//! Recorded cases: outputs with the adapter, and twelve steps of training from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, Room, StepInfo};
use pleach_nn::{HeadKind, Precision};
use rstest::rstest;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, case, distance, imported, model, parse, tensors};

#[rstest]
#[case("llama-lora")]
#[case("llama-lora-qv-rslora")]
#[case("bert-lora")]
#[case("adalora-allocates")]
#[case("adalora-bert")]
#[case("lora-bias-all")]
#[case("lora-dora-rslora-saved")]
#[case("lora-embedding")]
#[case("lora-pissa")]
#[case("lora-tokens-tied")]
#[case("mixtral-experts")]
#[case("norm-bert")]
#[case("norm-llama")]
#[case("prefix-bert")]
#[case("prefix-llama")]
#[case("prefix-mistral")]
#[case("gemma2-embedding")]
#[case("prompt-bert")]
#[case("prompt-llama")]
#[case("fourierft-llama")]
#[case("hra-bert")]
#[case("ia3-llama")]
#[case("loha-bert")]
#[case("lokr-factor")]
#[case("randlora-llama")]
#[case("randlora-very-sparse")]
#[case("vera-unsaved")]
#[case("oft-coft")]
#[case("boft-bias")]
#[case("boft-butterfly")]
#[case("tokens-gemma2")]
#[case("prefix-gemma2")]
#[case("prompt-distilbert")]
#[case("p_tuning-lstm")]
#[case("prefix-projected-bert")]
#[case("tokens-tied")]
#[case("ast-all")]
#[case("ia3-bart")]
#[case("prefix-t5")]
#[case("whisper-qv")]
fn outputs_losses_and_trained_tensors_are_the_recorded_ones(#[case] name: &str) {
    agrees(name);
}

fn agrees(name: &str) {
    let (model, io) = (model(name, Precision::Fp32), tensors(&case(name).join("io.safetensors")));
    let adapter = imported(&model, &case(name).join("adapter"));
    let batch = Batch::recorded(&model, &io, "eval").room(adapter.config());
    let found = batch.real(&model.run(&batch, &all(&batch, &adapter)));
    assert_near(&found, &batch.real(&io["eval.adapted_logits"]), 2e-4);
    if adapter.config().virtual_tokens().prompt == 0 {
        assert!(distance(&found, &batch.real(&io["eval.base_logits"])) > 1e-3);
    }

    let recorded: Value = serde_json::from_slice(&std::fs::read(case(name).join("train.json")).unwrap()).unwrap();
    let adapter = with_network(&model, adapter, name);
    let mut optimizer = AdamW::new(&adapter, &case(name));
    for (step, expected) in recorded["losses"].as_array().unwrap().iter().enumerate() {
        let part = format!("batch.{step}");
        let batch = Batch::recorded(&model, &io, &part);
        let loss = loss(&model, &adapter, &batch, &io[&format!("{part}.labels")]);
        let (found, expected) = (loss.double_value(&[]), expected.as_f64().unwrap());
        assert!((found / expected - 1.0).abs() < 2e-4, "step {step}: {found} for {expected}");
        loss.backward();
        let norm = optimizer.step(&adapter);
        if step == 0 {
            let expected = recorded["grad_norm_step0"].as_f64().unwrap();
            assert!((norm - expected).abs() <= 1e-3 * expected, "norm {norm} for {expected}");
        }
    }
    let ours: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().collect();
    for (name, expected) in tensors(&case(name).join("trained/adapter_model.safetensors")) {
        // PEFT also writes what is not trained: the table under a target, and the frozen bias under a saved module.
        if let Some(found) = ours.get(&name) {
            assert_near(found, &expected, 5e-3);
        } else {
            assert!(adapter.plan().named(&name).is_none(), "{name}");
        }
    }
}

/// Where PEFT trained a network that its file leaves out: the adapter over that network.
fn with_network(model: &Model, adapter: Adapter, name: &str) -> Adapter {
    let network = case(name).join("encoder.safetensors");
    if !network.is_file() {
        return adapter;
    }
    let said = std::fs::read(case(name).join("adapter/adapter_config.json")).unwrap();
    let mut options: Map<String, Value> = serde_json::from_slice(&said).unwrap();
    let about = ["auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"];
    options.retain(|name, _| !about.contains(&name.as_str()) && name != "task_type");
    let config = parse(adapter.config().card().name, &Value::Object(options));
    let mut values = tensors(&case(name).join("adapter/adapter_model.safetensors"));
    let table = values.remove("prompt_embeddings").unwrap();
    values.extend(tensors(&network));
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    let whole = Adapter::build(config, plan, &*model.backbone, Key::seed(0), Some(&values)).unwrap();
    let exported: BTreeMap<_, _> = whole.exported().unwrap().into_iter().collect();
    assert_near(&exported["prompt_embeddings"], &table, 1e-5);
    whole
}

pub(crate) fn loss(model: &Model, adapter: &Adapter, batch: &Batch, labels: &Tensor) -> Tensor {
    let room = Room::same(&batch.layout, adapter.config().virtual_tokens());
    // Virtual tokens of an encoder are none of its decoder's.
    let decodes = model.config.info().head == HeadKind::Seq2SeqLm;
    let labels = &if decodes { labels.shallow_clone() } else { room.tokens(labels, -100) };
    let logits = model.run_at(&batch.room(adapter.config()), &all(batch, adapter), true, 0);
    let each = [HeadKind::TokenClassification, HeadKind::MaskedLm, HeadKind::Seq2SeqLm];
    let each = each.contains(&model.config.info().head);
    let loss = if each {
        logits.flatten(0, 1).cross_entropy_loss(&labels.flatten(0, 1), None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
    } else if logits.dim() == 2 {
        logits.cross_entropy_for_logits(labels)
    } else {
        let width = logits.size()[1];
        let (logits, labels) =
            (logits.narrow(1, 0, width - 1).flatten(0, 1), labels.narrow(1, 1, width - 1).flatten(0, 1));
        logits.cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
    };
    match adapter.regulariser() {
        Some(term) => loss + term,
        None => loss,
    }
}

/// Steps of every recorded case.
const STEPS: u64 = 12;

/// Written out here so that this test leans on no trainer.
pub(crate) struct AdamW {
    first: Tensor,
    second: Tensor,
    steps: i32,
    /// Whether the recorded loop let the method take its own step: PEFT leaves that call to its users.
    allocates: bool,
}

impl AdamW {
    pub(crate) fn new(adapter: &Adapter, case: &Path) -> Self {
        let text = std::fs::read(case.join("trained/adapter_config.json")).unwrap();
        let allocates = !serde_json::from_slice::<Value>(&text).unwrap()["rank_pattern"].is_null();
        let zeros = || Tensor::zeros_like(&adapter.params().flatten());
        Self { first: zeros(), second: zeros(), steps: 0, allocates }
    }

    /// One step with clipping to norm one; returns the norm before.
    pub(crate) fn step(&mut self, adapter: &Adapter) -> f64 {
        let (lr, beta1, beta2, eps, decay) = (0.005, 0.9, 0.999, 1e-8, 0.01);
        let grads = adapter.params().flatten_grads();
        let norm = grads.square().sum(Kind::Float).sqrt().double_value(&[]);
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        let grads = grads * clip;
        self.steps += 1;
        self.first = &self.first * beta1 + &grads * (1.0 - beta1);
        self.second = &self.second * beta2 + grads.square() * (1.0 - beta2);
        let (bias1, bias2): (f64, f64) = (1.0 - f64::powi(beta1, self.steps), 1.0 - f64::powi(beta2, self.steps));
        let values = adapter.params().flatten() * (1.0 - lr * decay);
        let update = &self.first / (self.second.sqrt() / bias2.sqrt() + eps) * (lr / bias1);
        adapter.params().unflatten(&(values - update)).unwrap();
        // A method's own step sees the gradients that the update used.
        for (_, leaf) in adapter.params().iter().filter(|(_, leaf)| leaf.grad().defined()) {
            let _ = leaf.grad().g_mul_scalar_(clip);
        }
        if self.allocates {
            adapter.after_step(StepInfo::new(self.steps as u64, STEPS, &[STEPS])).unwrap();
        }
        adapter.params().zero_grads();
        norm
    }
}
