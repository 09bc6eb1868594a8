//! MOS: an adapter for every task, each drawn to the mean of those before it while it trains, and found again at test time
//! by what it predicts.
//!
//! Task `k` goes on from the adapter of the task before. The loss is cross-entropy among the task's own classes and
//! `reg` times a contrast in which every feature, beside the means of older classes, is to match itself. After every step
//! (or epoch) of a task that is not the first `A <- (1 - m) A + m mean(A_0..A_k-1)`. Of every new class mean and spread of
//! its features are kept; then the head is trained on samples of all classes, and prototypes are the classes' means under
//! the first adapter. Scores begin with the task of the nearest prototype and go on to the task of the class that the
//! head predicts under that task's adapter, until it stays.
//!
//! The contrast is between the rows of a lane: lanes are computed one by one, so it does not depend on the number of
//! workers. Stored adapters are never changed; `merge_schedule: reference`, which changes them in evaluation as the
//! paper's released code does, is for recordings only. Alignment is drawn from the task's key, alike on every rank.
//!
//! Sun et al., *MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning*, AAAI 2025.

#[cfg(feature = "torch")]
mod run;

use pleach_base::{Result, code};
use pleach_nn::{Init, Role, Site};

use super::sequential::sample_job;
use crate::adapter::common::{options, positive, positive_number, refuse, usual_init};
use crate::adapter::{AdapterConfig, StepInfo};
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Sync};
use crate::continual::sequence::{Continual, Piece, Recipe};
use crate::continual::tasks::{self, Split};
use crate::continual::{MergeSchedule, Spread};
use crate::plan::{Keep, PlannedTensor};

options! {
    /// Options of MOS.
    pub struct Config {
        /// The classes of each task; cut in order of their numbers when left out.
        tasks: Option<Vec<Split>> = None,
        /// Classes of the first task where `tasks` is left out.
        init_cls: u32 = 2,
        /// Classes of each later task where `tasks` is left out.
        increment: u32 = 2,
        /// Passes over the rows of each task: `spec.train.epochs`.
        tuned_epoch: u32 = 20,
        /// The head's rate as a multiple of the adapters', which is the optimiser's.
        head_lr_factor: f64 = 0.1,
        /// How far an adapter is drawn to the mean of older ones in a merge.
        adapter_momentum: f64 = 0.1,
        /// When it is.
        merge_schedule: MergeSchedule = MergeSchedule::PerStep,
        /// Weight of the contrast.
        reg: f64 = 0.1,
        /// Divisor of the contrast's products.
        reg_temperature: f64 = 0.8,
        /// Whether prototypes vote with the head.
        ensemble: bool = true,
        /// Most adapters that are tried for a row.
        max_refine: u32 = 4,
        /// Passes of the head's alignment.
        crct_epochs: u32 = 30,
        /// Rate of the alignment's first pass.
        ca_lr: f64 = 0.005,
        /// Decay in the alignment.
        ca_weight_decay: f64 = 5e-4,
        /// Samples of each class in a pass of the alignment; five times the batch in the paper.
        ca_samples_per_class: u32 = 80,
        /// What is kept of the spread of a class.
        ca_storage_efficient_method: Spread = Spread::Covariance,
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "mos",
        kind: MethodKind::Strategy,
        title: "MOS",
        summary: "Learns classes task by task with an adapter for each, and finds a row's adapter by what it predicts.",
        formula: "`A_k <- (1 - m) A_k + m mean(A_0..A_k-1)` after every step; scores `softmax(W z_t) + softmax(b cos)` for \
                  the task `t` that predicts a class of its own.",
        paper: "Sun et al., MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning, AAAI 2025 \
                (arXiv:2412.09441)",
        sync: &[Sync::MeanGrads, Sync::EmaAfterStep, Sync::SyncStats, Sync::SharedSeed],
        roles: &[Role::Linear, Role::SublayerOut, Role::AttnKv, Role::Head],
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!("mos", ", tuned_epoch: 5"),
        invalid: &[
            Invalid { options: r#"{"adapter_momentum": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapter_momentum": -0.1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [[0, 1], [1, 2]]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"merge_schedule": "reference"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"merge_schedule": "never"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"reg_temperature": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"max_refine": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"ca_storage_efficient_method": "all"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"momentum": 0.1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"init_cls": 1, "increment": 1}"#;

    const INNER: (&'static str, &'static str) = ("adaptformer", r#"{"dim": 4}"#);

    fn validate(&self) -> Result<()> {
        self.tasks.as_deref().map_or(Ok(()), tasks::check)?;
        for (name, value) in [
            ("init_cls", self.init_cls),
            ("increment", self.increment),
            ("tuned_epoch", self.tuned_epoch),
            ("max_refine", self.max_refine),
            ("ca_samples_per_class", self.ca_samples_per_class),
        ] {
            positive(name, value)?;
        }
        positive_number("reg_temperature", self.reg_temperature)?;
        positive_number("head_lr_factor", self.head_lr_factor)?;
        positive_number("ca_lr", self.ca_lr)?;
        if !(0.0..1.0).contains(&self.adapter_momentum) {
            return Err(refuse("adapter_momentum", "must be at least 0 and below 1"));
        }
        if !(self.reg >= 0.0 && self.reg.is_finite()) {
            return Err(refuse("reg", "must be a number that is not negative"));
        }
        if self.merge_schedule == MergeSchedule::Reference {
            let why = "changes stored adapters in evaluation, which only recordings of the paper's code repeat";
            return Err(refuse("merge_schedule", why).hint("use per_step, which is the paper's rule"));
        }
        Ok(())
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Continual::boxed(self, adapter)
    }
}

/// Names of what is kept of the classes.
const MEANS: &str = "mos.means";
const SPREADS: &str = "mos.spreads";
const PROTOTYPES: &str = "mos.prototypes";

/// Name of a task's stored adapter.
fn stored(task: usize) -> String {
    format!("task{task}")
}

impl Config {
    /// Whether an adapter is merged after a step.
    #[cfg(any(test, feature = "torch"))]
    fn merges(&self, step: StepInfo) -> bool {
        let epochs = u64::from(self.tuned_epoch.max(1));
        let due = match self.merge_schedule {
            MergeSchedule::PerStep | MergeSchedule::Reference => true,
            MergeSchedule::PerEpoch => {
                let each = step.phase_total.div_ceil(epochs).max(1);
                step.phase_step.is_multiple_of(each) || step.ends_phase()
            }
        };
        due && step.phase > 0 && self.adapter_momentum > 0.0
    }
}

impl Recipe for Config {
    fn splits(&self, classes: u32) -> Result<Vec<Vec<u32>>> {
        tasks::of(self.tasks.as_deref(), self.init_cls, self.increment, classes)
    }

    fn epochs(&self) -> u32 {
        self.tuned_epoch
    }

    fn copies(&self, tasks: usize) -> Vec<String> {
        (0..tasks).map(stored).collect()
    }

    #[cfg(feature = "torch")]
    fn local_loss(&self) -> bool {
        true
    }

    fn head_init(&self, width: usize) -> Init {
        usual_init(width)
    }

    fn tensors(&self, head: &Site, classes: usize) -> Vec<PlannedTensor> {
        let width = head.dims.input;
        let spread = match self.ca_storage_efficient_method {
            Spread::Covariance => vec![classes, width, width],
            Spread::Variance => vec![classes, width],
        };
        let planned = |(name, shape): (&str, Vec<usize>)| {
            PlannedTensor::trained(name.to_owned(), head.id, "mos_class", shape, Init::Zeros).keep(Keep::Moving)
        };
        let rows = vec![classes, width];
        [(MEANS, rows.clone()), (SPREADS, spread), (PROTOTYPES, rows)].into_iter().map(planned).collect()
    }

    fn updates(&self, piece: Piece, step: StepInfo) -> bool {
        match piece {
            Piece::Module => true,
            Piece::Head(task) => task <= step.phase,
        }
    }

    fn lr_scale(&self, piece: Piece) -> f64 {
        if piece == Piece::Module { 1.0 } else { self.head_lr_factor }
    }

    fn couples_rows(&self) -> bool {
        self.reg > 0.0
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, view: &crate::continual::view::View<'_>, step: StepInfo) -> Result<()> {
        if self.merges(step) { run::merge(self, view, step.phase) } else { Ok(()) }
    }

    #[cfg(feature = "torch")]
    fn end_task(&self, view: &crate::continual::view::View<'_>, task: usize) -> Result<()> {
        view.store(&stored(task))
    }

    #[cfg(feature = "torch")]
    fn surveys(&self, task: usize) -> Vec<u32> {
        let first = run::pass(0);
        if task == 0 { vec![first] } else { vec![first, run::pass(task)] }
    }

    #[cfg(feature = "torch")]
    fn surveyed(
        &self,
        view: &crate::continual::view::View<'_>,
        task: usize,
        found: &crate::continual::Survey,
    ) -> Result<Vec<String>> {
        run::surveyed(self, view, task, found)
    }

    #[cfg(feature = "torch")]
    fn shows_features(&self, train: bool, pass: u32) -> bool {
        if train { self.reg > 0.0 } else { pass > 0 }
    }

    #[cfg(feature = "torch")]
    fn more_loss(
        &self,
        view: &crate::continual::view::View<'_>,
        features: &tch::Tensor,
    ) -> Result<Option<tch::Tensor>> {
        run::contrast(self, view, features).map(Some)
    }

    #[cfg(feature = "torch")]
    fn scores(
        &self,
        view: &crate::continual::view::View<'_>,
        run: &dyn Fn(u32) -> Result<tch::Tensor>,
    ) -> Result<tch::Tensor> {
        run::scores(self, view, run)
    }
}

#[cfg(test)]
mod tests {
    use pleach_nn::{HeadOptions, ModelDir, configure};
    use serde_json::json;

    use super::*;
    use crate::registry::find;

    #[test]
    fn the_count_of_the_papers_adapter() {
        let model = json!({"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 768,
                           "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                           "image_size": 224, "patch_size": 16});
        let serde_json::Value::Object(model) = model else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
        let options = serde_json::Map::from_iter([("dim".to_owned(), json!(16))]);
        let adapter = find(MethodKind::Adapter, "adaptformer").unwrap().parse(&options, "adapter").unwrap();
        assert_eq!(adapter.plan(model.as_ref()).unwrap().params(), 304_320);
    }

    #[test]
    fn merges_come_after_steps_or_epochs_of_later_tasks() {
        let merges = |schedule, step| {
            let config = Config { tuned_epoch: 2, merge_schedule: schedule, ..Config::default() };
            config.merges(StepInfo::new(step, 12, &[6, 6]))
        };
        assert!(!(1..=6).any(|step| merges(MergeSchedule::PerStep, step)), "the first task has nothing to merge with");
        assert!((7..=12).all(|step| merges(MergeSchedule::PerStep, step)));
        let at: Vec<_> = (1..=12).filter(|step| merges(MergeSchedule::PerEpoch, *step)).collect();
        assert_eq!(at, [9, 12]);
        let off = Config { adapter_momentum: 0.0, ..Config::default() };
        assert!(!off.merges(StepInfo::new(7, 12, &[6, 6])));
    }
}
