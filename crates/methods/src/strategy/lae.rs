//! LAE: an online module learns task after task, offline copies follow it slowly, and all of them vote.
//!
//! Task `k` trains the module and the head's rows of its own classes by cross-entropy among those alone; from the second
//! task on the module rests for the first epochs, while the new rows find their place. After every step from the second
//! task on `off <- a off + (1 - a) on`; the copy is made at the end of the first task, and of a chain of copies one more
//! at the end of each: the newest follows the module, each older one the next newer (the paper's code mixes these up).
//! Scores are `max(p_on, p_off)` over the classes seen so far. The strategy stands around any adapter; the paper's are
//! those of `lae_pet`.
//!
//! A step is a step of the global batch, so nothing depends on the number of workers; `ema_decay_rescale` is for
//! results of trainings with smaller batches, `a^n` for steps `n` times as large.
//!
//! Gao et al., *A Unified Continual Learning Framework with General Parameter-Efficient Tuning*, ICCV 2023.

use pleach_base::{Result, code};
use pleach_nn::{Init, Role};

use super::sequential::{EXAMPLE, sample_job};
use crate::adapter::common::{options, positive, positive_number, refuse};
use crate::adapter::{AdapterConfig, StepInfo};
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Sync};
use crate::continual::Ensemble;
use crate::continual::sequence::{Continual, Piece, Recipe};
use crate::continual::tasks::{self, Split};

options! {
    /// Options of LAE.
    pub struct Config {
        /// The classes of each task; cut in order of their numbers when left out.
        tasks: Option<Vec<Split>> = None,
        /// Classes of each task where `tasks` is left out.
        num_increment_classes: u32 = 2,
        /// Passes over the rows of each task: `spec.train.epochs`.
        num_epochs: u32 = 5,
        /// Passes at the start of every task but the first in which the module rests.
        num_freeze_epochs: u32 = 3,
        /// Offline copies.
        num_emas: u32 = 1,
        /// What an offline copy keeps of itself in a step.
        ema_decay: f64 = 0.9999,
        /// How many steps a step counts for: the decay is raised to this power.
        ema_decay_rescale: f64 = 1.0,
        /// How the modules' probabilities become one.
        ensemble: Ensemble = Ensemble::Max,
        /// The same as `ensemble: offline`.
        eval_only_emas: bool = false,
        /// Whether classes of older tasks do not compete in training.
        local_loss: bool = true,
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "lae",
        kind: MethodKind::Strategy,
        title: "LAE",
        summary: "Learns classes task by task with an online module and offline averages of it that vote together.",
        formula: "`off <- a off + (1 - a) on` after every step; scores `max(softmax_on, softmax_off)`; loss among the \
                  classes of the task.",
        paper: "Gao et al., A Unified Continual Learning Framework with General Parameter-Efficient Tuning, ICCV 2023 \
                (arXiv:2303.10070)",
        sync: &[Sync::MeanGrads, Sync::EmaAfterStep],
        roles: &[Role::Linear, Role::SublayerOut, Role::AttnKv, Role::Head],
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!("lae", ", num_freeze_epochs: 3"),
        invalid: &[
            Invalid { options: r#"{"ema_decay": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"ema_decay": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_epochs": 3, "num_freeze_epochs": 3}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": [[0, 1], [1, 2]]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_emas": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"ensemble": "median"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"ema": 0.9}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = EXAMPLE;

    fn validate(&self) -> Result<()> {
        self.tasks.as_deref().map_or(Ok(()), tasks::check)?;
        positive("num_increment_classes", self.num_increment_classes)?;
        positive("num_emas", self.num_emas)?;
        positive_number("ema_decay_rescale", self.ema_decay_rescale)?;
        if !(self.ema_decay > 0.0 && self.ema_decay < 1.0) {
            return Err(refuse("ema_decay", "must be between 0 and 1, neither of them"));
        }
        if self.num_freeze_epochs >= self.num_epochs {
            let why = "leaves no epoch in which the module learns a later task";
            return Err(refuse("num_freeze_epochs", why).hint("give fewer than `num_epochs`"));
        }
        Ok(())
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Continual::boxed(self, adapter)
    }
}

/// Name of an offline copy, the oldest first.
fn copy(index: usize) -> String {
    format!("offline{index}")
}

impl Config {
    /// Whether the module rests in a step.
    fn rests(&self, step: StepInfo) -> bool {
        let share = u64::from(self.num_freeze_epochs) * step.phase_total / u64::from(self.num_epochs.max(1));
        step.phase > 0 && step.phase_step <= share
    }

    /// Copies that there are once this many tasks are done.
    #[cfg(feature = "torch")]
    fn alive(&self, tasks: usize) -> usize {
        tasks.min(self.num_emas as usize)
    }
}

impl Recipe for Config {
    fn splits(&self, classes: u32) -> Result<Vec<Vec<u32>>> {
        tasks::of(self.tasks.as_deref(), self.num_increment_classes, self.num_increment_classes, classes)
    }

    fn epochs(&self) -> u32 {
        self.num_epochs
    }

    fn copies(&self, _: usize) -> Vec<String> {
        (0..self.num_emas as usize).map(copy).collect()
    }

    #[cfg(feature = "torch")]
    fn local_loss(&self) -> bool {
        self.local_loss
    }

    fn head_init(&self, _: usize) -> Init {
        Init::Normal { std: 0.001 }
    }

    fn updates(&self, piece: Piece, step: StepInfo) -> bool {
        match piece {
            Piece::Module => !self.rests(step),
            Piece::Head(task) if self.local_loss => task == step.phase,
            Piece::Head(task) => task <= step.phase,
        }
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, view: &crate::continual::view::View<'_>, step: StepInfo) -> Result<()> {
        use crate::continual::lae::{accumulate_chain, rescaled};

        let copies: Vec<_> = (0..self.alive(step.phase)).map(|index| view.copy(&copy(index))).collect::<Result<_>>()?;
        let decay = rescaled(self.ema_decay, self.ema_decay_rescale);
        for (index, online) in view.module()?.into_iter().enumerate() {
            let chain: Vec<_> = copies.iter().map(|copy| copy[index].shallow_clone()).collect();
            accumulate_chain(&chain, online, decay);
        }
        Ok(())
    }

    #[cfg(feature = "torch")]
    fn end_task(&self, view: &crate::continual::view::View<'_>, task: usize) -> Result<()> {
        let next = task < self.num_emas as usize && task + 1 < view.splits.len();
        if next { view.store(&copy(task)) } else { Ok(()) }
    }

    #[cfg(feature = "torch")]
    fn scores(
        &self,
        view: &crate::continual::view::View<'_>,
        run: &dyn Fn(u32) -> Result<tch::Tensor>,
    ) -> Result<tch::Tensor> {
        // The copies that learnt something: at the end of the first task there is none.
        let copies = 1..=self.alive(view.seen() - 1) as u32;
        let offline: Vec<_> = copies.map(run).collect::<Result<_>>()?;
        let ensemble = if self.eval_only_emas { Ensemble::Offline } else { self.ensemble };
        Ok(crate::continual::lae::scores(&run(0)?, &offline, ensemble))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_rests_in_the_first_epochs_of_later_tasks() {
        let config = Config { num_epochs: 5, num_freeze_epochs: 3, ..Config::default() };
        let phases = [10, 10];
        let moves = |step| config.updates(Piece::Module, StepInfo::new(step, 20, &phases));
        assert!((1..=10).all(moves), "never in the first task");
        assert!(!(11..=16).any(moves) && (17..=20).all(moves));
    }
}
