//! MixDA: domain adapters beside the last map of a few feed-forward parts, and a gate that mixes them with it.
//!
//! With `z` the hidden state of the part, `F = W2 z + b2` and `K_k(z)` the domain adapters (method `domain`),
//! `o = sum_k w_k K_k + w_{n+1} F` stands in for `F`, where `w = gate(q)` in `R^{n+1}`: a small network with ReLU between
//! its maps, then sigmoid or softmax. It reads what the feed-forward part reads (`attention_output`) or `z`
//! (`ffn_hidden`), of every token or of one a sequence.
//!
//! **Stage 1** trains a domain adapter alone: rows of the domain go through `o = K` and are learnt (`L_K`), general rows go
//! through `F` and draw `K` to it, `L_S = mean |F - K|^2` over layers, tokens and features. Both losses are here as formulas
//! (`gate`); jobs cannot train by `L_S` yet, and `stage: 1` is refused.
//!
//! **Stage 2** trains gates and the task's own adapter on labelled rows; the model and the domain adapters stay as they are.
//! The last biases of a gate begin so that all weights are `1 / (n + 1)`.
//!
//! Differs from the released code, whose gate sees one position, padding or not, and whose `L_S` compares the mixture with
//! itself. Diao, Xu, Xu, Wang, Zhang, *Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained
//! Language Models' Memories*, ACL 2023.

#[cfg(feature = "torch")]
pub(crate) mod gate;
mod mixture;
mod options;
#[cfg(feature = "torch")]
mod run;

use pleach_base::{Result, code};
use pleach_nn::Role;

pub use options::{Activation, Config, GateOptions, Loaded, Pool, Query};

use crate::adapter::AdapterConfig;
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};

static CARD: Card = Card {
    name: "mixda",
    kind: MethodKind::Strategy,
    title: "MixDA",
    summary: "Mixes frozen domain adapters with the feed-forward parts beside which they stand, beside an adapter of the task.",
    formula: "`o = sum_k w_k K_k(z) + w_{n+1} (W2 z + b2)` with `w = gate(q)` for every token.",
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
        Invalid { options: r#"{"stage": 1}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"stage": 3}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"gates": {}}"#, code: code::UNKNOWN_KEY },
    ],
    ..Card::ADAPTER
};

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(mixture::Mixture { options: self.clone(), task: adapter }))
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
