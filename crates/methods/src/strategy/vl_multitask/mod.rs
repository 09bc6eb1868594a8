//! VL-Adapter: one adapter trained on several tasks, with its tensors shared among them or not. Behind attention (to the
//! encoder too) and the feed-forward part of every block, before the residual sum, `a(h) = h + U act(D h + b) + c`, or two
//! maps of Kronecker products (Compacter); LoRA and prompts as they are. Beside it all normalisations of the model.
//!
//! `sharing: single` has one set of tensors for all tasks, which their prompts alone tell apart: the paper's finding is
//! that this is the best. `multiple` has one set a task, `share_up` and `share_down` share one of the two maps, `hyper`
//! (Hyperformer) generates both from an embedding of task and block. Norms of the adapter serve all tasks. Tasks take
//! turns: every step, on every rank, has rows of one task, and what belongs to other tasks is left as it is.
//!
//! Not here: the visual embedding of VL-BART as a part of a model, since no backbone of this build reads visual features;
//! its mathematics is in `visual`.
//!
//! Sung, Cho, Bansal, *VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks*, 2022; Mahabadi,
//! Ruder, Dehghani, Henderson, *Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks*, 2021.

#[cfg(feature = "torch")]
mod dispatch;
pub(crate) mod hyper;
mod options;
mod plan;
#[cfg(test)]
mod tests;
#[cfg(feature = "torch")]
pub(crate) mod visual;
mod wrapped;

use pleach_base::{Result, code};

pub use self::options::{Config, LossWeight, Sampling, Sharing, Task};
#[cfg(feature = "torch")]
pub(crate) use self::plan::shared;
use self::wrapped::Wrapped;
use crate::adapter::AdapterConfig;
use crate::adapter::common::refuse;
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "vl_multitask",
        kind: MethodKind::Strategy,
        title: "VL-Adapter",
        summary: "Trains one adapter on several tasks that take turns, sharing all, half or none of it among them.",
        formula: "`h + U act(D h + b) + c` behind attention and the feed-forward part, before the residual sum; `sharing: \
                  single` has one such adapter for all tasks, told apart by prompts, `multiple` one a task, `share_up` and \
                  `share_down` halves, `hyper` generates them from embeddings of task and block.",
        paper: "Sung et al., VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks, 2022 \
                (arXiv:2112.06825)",
        status: Status::Experimental,
        sync: &[Sync::MeanGrads, Sync::PerTaskGroups],
        mergeable: false,
        identity_at_init: false,
        sample_job: concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n  data: {source: ./train.jsonl, task: causal_lm}\n",
            "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 1e-3}}\n  tasks:\n    - {name: all, adapter: {method: bottleneck}}\n",
            "  strategy:\n    method: vl_multitask\n    tasks: [{name: vqa, prompt: \"vqa: \"}, {name: caption, prompt: \"caption: \"}]\n  checkpoint: {store: ./checkpoints}\n",
        ),
        invalid: &[
            Invalid { options: r#"{"tasks": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}, {"name": "a"}]}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"tasks": [{"name": "a", "prompt": "x: "}, {"name": "b", "prompt": "x: "}]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"tasks": [{"name": "a", "batch_ratio": 0}]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a", "loss_weight": "answer_score"}]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "sharing": "some"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "reduction_factor": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "reduction_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "non_linearity": "step"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "sampling": "balanced"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "task_embedding_dim": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [{"name": "a"}], "reduction": 8}"#, code: code::UNKNOWN_KEY },
        ],
        roles: &[pleach_nn::Role::SublayerOut, pleach_nn::Role::Norm],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"tasks": [{"name": "a", "prompt": "a: "}, {"name": "b", "prompt": "b: "}],
        "sharing": "multiple", "reduction_factor": 4}"#;

    const INNER: (&'static str, &'static str) = ("bottleneck", "{}");

    fn validate(&self) -> Result<()> {
        self.check()
    }
}

/// Adapters that the paper compares.
const METHODS: &[&str] = &["bottleneck", "compacter", "lora", "prompt"];

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        let name = adapter.card().name;
        if !METHODS.contains(&name) {
            return Err(refuse("sharing", &format!("{name} has no parts to share among tasks"))
                .hint(format!("adapter methods: {}", METHODS.join(", "))));
        }
        let only = |methods: &[&str]| match methods.contains(&name) {
            true => Ok(()),
            false => Err(refuse("sharing", &format!("{} is for {}", self.sharing, methods.join(", ")))),
        };
        match self.sharing {
            Sharing::Single | Sharing::Multiple => {}
            Sharing::ShareUp | Sharing::ShareDown => only(&METHODS[..3])?,
            Sharing::Hyper => only(&METHODS[..1])?,
        }
        Ok(Box::new(Wrapped::new(self.clone(), adapter)))
    }
}
