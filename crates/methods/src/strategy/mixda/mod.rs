//! MixDA: domain adapters beside the last map of a few feed-forward parts, and a gate that mixes them with it.
//!
//! With `z` the hidden state of the part, `F = W2 z + b2` and `K_k(z)` the domain adapters (method `domain`),
//! `o = sum_k w_k K_k + w_{n+1} F` stands in for `F`, where `w = gate(q)` in `R^{n+1}`: a small network with ReLU between
//! its maps, then sigmoid or softmax. It reads what the feed-forward part reads (`attention_output`) or `z`
//! (`ffn_hidden`), of every token or of one a sequence.
//!
//! **Stage 1** trains a domain adapter, the task's adapter of method `domain`, on texts alone. Rows of the domain, the job's
//! data, go through `o = K` and are learnt (`L_K`): all that is predicted of them goes through `K`. General rows go through
//! `F` and draw `K` to it, `L_S = mean |F - K|^2` over places, tokens and features; `L = knowledge_loss_factor L_K + L_S`.
//! They are masked as the domain's are, and nothing of them is predicted. Sums and counts of both losses are those of the
//! global batch. What it leaves is a domain adapter.
//!
//! **Stage 2** trains gates and the task's own adapter on labelled rows; the model and the domain adapters stay as they are.
//! The last biases of a gate begin so that all weights are `1 / (n + 1)`.
//!
//! Differs from the released code, whose gate sees one position, padding or not, and whose `L_S` compares the mixture with
//! itself. Diao, Xu, Xu, Wang, Zhang, *Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained
//! Language Models' Memories*, ACL 2023.

#[cfg(feature = "torch")]
pub(crate) mod gate;
mod first;
mod mixture;
mod options;
#[cfg(feature = "torch")]
mod run;

use pleach_base::{Result, code};
use pleach_nn::Role;

pub use options::{Activation, Config, GateOptions, Loaded, Pool, Query};

use crate::adapter::AdapterConfig;
use crate::adapter::common::refuse;
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};

static CARD: Card = Card {
    name: "mixda",
    kind: MethodKind::Strategy,
    title: "MixDA",
    summary: "Trains adapters of domains on texts that keep what the model knew, and mixes them with the feed-forward parts beside which \
              they stand, beside an adapter of the task.",
    formula: "Stage 1: `o = K(z)`, loss `knowledge_loss_factor L_K + mean |W2 z + b2 - K(z)|^2`, the latter on general texts. Stage 2: \
              `o = sum_k w_k K_k(z) + w_{n+1} (W2 z + b2)` with `w = gate(q)` for every token.",
    paper: "Diao et al., Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained Language \
            Models' Memories, ACL 2023 (arXiv:2306.05406)",
    status: Status::Experimental,
    roles: &[Role::Linear, Role::SublayerOut, Role::Head],
    sync: &[Sync::MeanGrads],
    mergeable: false,
    identity_at_init: false,
    sample_job: concat!(
        "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n",
        "  data: {source: ./train.jsonl, task: causal_lm}\n",
        "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n",
        "  strategy:\n    method: mixda\n    load_adapters:\n",
        "      - {id: medicine, init_from: ./medicine, layers: [0, 1]}\n",
        "      - {id: reviews, init_from: ./reviews, layers: [0, 1]}\n",
        "  tasks:\n    - {name: answers, adapter: {method: bottleneck, non_linearity: swish}}\n",
        "  checkpoint: {store: ./checkpoints}\n"
    ),
    invalid: &[
        Invalid { options: r#"{"load_adapters": []}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"load_adapters": [{"id": "a"}, {"id": "a"}]}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"load_adapters": [{"id": "gate"}]}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"load_adapters": [{"id": "a", "layers": [4711]}]}"#, code: code::METHOD_CONFIG },
        Invalid {
            options: r#"{"load_adapters": [{"id": "a", "layers": [0]}], "gate": {"pool": "last"}}"#,
            code: code::METHOD_CONFIG,
        },
        Invalid {
            options: r#"{"load_adapters": [{"id": "a", "layers": [0]}], "gate": {"hidden": 0}}"#,
            code: code::METHOD_CONFIG,
        },
        Invalid { options: r#"{"load_adapters": [{"id": "a"}], "general_data": "x"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1, "no_old_knowledge": true, "general_data": "x"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1, "no_old_knowledge": true, "load_adapters": [{"id": "a"}]}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1, "general_data": "x", "mlm_mix": [0.8, 0.1, 0.2]}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1, "general_data": "x", "mlm_probability": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 1, "general_data": "x", "knowledge_loss_factor": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 3}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"gates": {}}"#, code: code::UNKNOWN_KEY },
    ],
    ..Card::ADAPTER
};

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        let options = self.clone();
        if self.stage != 1 {
            return Ok(Box::new(mixture::Mixture { options, task: adapter }));
        }
        let method = adapter.card().name;
        if method == mixture::DOMAIN {
            return Ok(Box::new(first::First { options, domain: adapter }));
        }
        Err(refuse("stage", &format!("1 trains a domain adapter, and the task's adapter is `{method}`"))
            .hint("write `method: domain` in its `adapter`"))
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &CARD;

    const EXAMPLE: &'static str = r#"{"load_adapters": [{"id": "a", "layers": [0, 1], "adapter_down_scale": 4},
        {"id": "b", "layers": [1], "adapter_down_scale": 8}], "gate": {"hidden": 5}}"#;

    const INNER: (&'static str, &'static str) = ("bottleneck", "{}");

    fn validate(&self) -> Result<()> {
        self.check()
    }
}
