//! MoSA: a bottleneck whose projections are split among sparse experts, trained one at a time and merged into one.
//!
//! A split tensor `W` becomes `N` experts `W_i`, all with the values that `W` begins with. Ranks of random scores, cut
//! into `N` bands, give each expert its own entries `M_i`, and `W_i` only ever changes there: its gradient is masked, and
//! what an optimiser does elsewhere (decay) is undone. In every training pass each place draws one expert for the down
//! and one for the up projection, for the whole batch, from the task's key, the step, the pass and the place: every rank
//! draws the same. Experts that no pass of a step drew are left as they are. Biases have no mask: every expert owns all.
//!
//! With `additional_forward` each batch is run twice with fresh draws, and the loss is
//! `CE(p1) + add_weight CE(p2) + reg_weight SKL(p1, p2)`, `SKL = 1/2 [KL(sg(p2) | p1) + KL(sg(p1) | p2)]`.
//!
//! Evaluation and files have the merged tensor, `1/N sum_i W_i` (`add`) or `sum_i M_i W_i` (`joint`): an adapter of the
//! wrapped method, as large as it always is. There is no router: experts are drawn uniformly.
//!
//! Zhang, Zou, An, Liu, Zhang, *Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training*, 2023.
//! Its code's `joint` divides by `N` once more, which shrinks what is split; this one does not.

mod draw;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
pub(crate) mod split;
mod wrap;

use pleach_base::{Result, code};
use pleach_nn::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::AdapterConfig;
use crate::adapter::common::{options, refuse};
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};

options! {
    /// Options of MoSA.
    pub struct Config {
        /// Number of experts that a tensor is split among, 1 to 16.
        expert_num: u32 = 4,
        /// The projection that is not split but one for all: `down`, `up` or `none`.
        share: Shared = Shared::Down,
        /// What is cut into bands: `all` of a matrix, each `row`, or each `column`.
        mask_mode: MaskMode = MaskMode::All,
        /// Whether every expert trains its whole biases; else they are split as well.
        bias_shared: bool = true,
        /// How experts become one tensor: `add` takes their mean, `joint` each one's own entries.
        merge: Merge = Merge::Add,
        /// Run each training batch twice, with fresh draws.
        additional_forward: bool = true,
        /// Weight of the second pass's loss.
        add_weight: f64 = 0.0,
        /// Weight of the symmetric divergence between both passes.
        reg_weight: f64 = 1.0,
        /// Pull the hidden states of both passes together: not in this build.
        deep_reg: bool = false,
        /// For what an expert is drawn: `step`.
        draw_per: DrawPer = DrawPer::Step,
    }
}

/// The projection that all experts share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// The first one.
    Down,
    /// The second one.
    Up,
    /// None: both are split.
    None,
}

/// What is cut into bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaskMode {
    /// The whole matrix.
    All,
    /// Each row.
    Row,
    /// Each column.
    Column,
}

/// How experts become one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// Their mean.
    Add,
    /// Each one's own entries.
    Joint,
}

/// For what an expert is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrawPer {
    /// For a step.
    Step,
    /// For each micro-batch: refused, since results would depend on how rows are cut.
    MicroBatch,
}

/// The most experts.
const MOST: u32 = 16;

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(wrap::Split { options: self.clone(), inner: adapter }))
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "mosa",
        kind: MethodKind::Strategy,
        title: "MoSA",
        summary: "Splits an adapter among sparse experts, trains drawn ones step by step, and merges them into one.",
        formula: "`W_i` begin alike and change within disjoint masks `M_i`; a pass runs through one drawn `i` a projection \
                  and place; evaluated and saved is `1/N sum_i W_i`.",
        paper: "Zhang et al., Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training, 2023 \
                (arXiv:2312.02923)",
        status: Status::Experimental,
        roles: &[Role::SublayerOut, Role::Linear, Role::Head],
        sync: &[Sync::MeanGrads, Sync::SharedSeed],
        mergeable: false,
        sample_job: concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n",
            "  data: {source: ./train.jsonl, task: causal_lm}\n",
            "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n",
            "  strategy: {method: mosa, expert_num: 4}\n",
            "  tasks:\n    - {name: answers, adapter: {method: visual_adapter, bottleneck_size: 16}}\n",
            "  checkpoint: {store: ./checkpoints}\n"
        ),
        invalid: &[
            Invalid { options: r#"{"expert_num": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"expert_num": 17}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"share": "left"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"merge": "mean"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"additional_forward": false}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"draw_per": "micro_batch"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"deep_reg": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"expert_nums": 4}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const INNER: (&'static str, &'static str) = ("visual_adapter", r#"{"bottleneck_size": 6}"#);

    fn validate(&self) -> Result<()> {
        if self.draw_per == DrawPer::MicroBatch {
            let why = "a draw a micro-batch would make results depend on how many workers share the rows";
            return Err(refuse("draw_per", why).hint("leave it out, or write `step`"));
        }
        if self.deep_reg {
            let why = "this build does not compare the hidden states of both passes";
            return Err(refuse("deep_reg", why).hint("leave it out"));
        }
        self.check()
    }
}

impl Config {
    /// Refuses what could not be trained.
    pub(crate) fn check(&self) -> Result<()> {
        if self.expert_num == 0 || self.expert_num > MOST {
            return Err(refuse("expert_num", &format!("must be 1 to {MOST}")));
        }
        for (field, weight) in [("add_weight", self.add_weight), ("reg_weight", self.reg_weight)] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(refuse(field, "must be at least 0"));
            }
            if weight > 0.0 && !self.additional_forward {
                return Err(refuse(field, "is for the second pass, which `additional_forward: false` leaves out")
                    .hint(format!("set `{field}: 0`")));
            }
        }
        Ok(())
    }
}
