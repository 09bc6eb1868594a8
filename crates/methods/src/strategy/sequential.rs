//! Sequential training: the classes of a sequence of tasks one after the other, by one module and a head that grows, and
//! nothing done against forgetting. What the other strategies of continual learning are measured against.

use pleach_base::{Result, code};
use pleach_nn::{Init, Role};

use crate::adapter::common::{options, positive};
use crate::adapter::{AdapterConfig, StepInfo};
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind};
use crate::continual::sequence::{Continual, Piece, Recipe};
use crate::continual::tasks::{self, Split};

/// On tiny models, which have three classes.
pub(super) const EXAMPLE: &str = r#"{"num_increment_classes": 1}"#;

/// A job with a strategy of continual learning, and its options as they follow in the line.
macro_rules! sample_job {
    ($method:literal, $options:literal) => {
        concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model, num_labels: 10}\n",
            "  data: {source: ./train.jsonl, task: sequence_classification}\n",
            "  train: {global_batch: 16, epochs: 5, optimizer: {lr: 2e-3}}\n  tasks:\n",
            "    - {name: classes, adapter: {method: lora}}\n  strategy: {method: ",
            $method,
            $options,
            "}\n  checkpoint: {store: ./checkpoints}\n"
        )
    };
}
pub(super) use sample_job;

options! {
    /// Options of sequential training.
    pub struct Config {
        /// The classes of each task; cut in order of their numbers when left out.
        tasks: Option<Vec<Split>> = None,
        /// Classes of each task where `tasks` is left out.
        num_increment_classes: u32 = 2,
        /// Passes over the rows of each task: `spec.train.epochs`.
        num_epochs: u32 = 5,
        /// Whether classes of older tasks do not compete in training.
        local_loss: bool = false,
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "sequential",
        kind: MethodKind::Strategy,
        title: "Sequential training",
        summary: "Trains one adapter on a sequence of tasks, each with classes of its own.",
        formula: "Task `k` trains module and head on its own rows; scores are those of all classes seen so far.",
        paper: "none: the usual baseline of class-incremental learning",
        roles: &[Role::Linear, Role::SublayerOut, Role::AttnKv, Role::Head],
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!("sequential", ""),
        invalid: &[
            Invalid { options: r#"{"tasks": [[0, 1], [1, 2]]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_epochs": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_increment_classes": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"epochs": 3}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = EXAMPLE;

    fn validate(&self) -> Result<()> {
        self.tasks.as_deref().map_or(Ok(()), tasks::check)?;
        positive("num_epochs", self.num_epochs)?;
        positive("num_increment_classes", self.num_increment_classes)
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Continual::boxed(self, adapter)
    }
}

impl Recipe for Config {
    fn splits(&self, classes: u32) -> Result<Vec<Vec<u32>>> {
        tasks::of(self.tasks.as_deref(), self.num_increment_classes, self.num_increment_classes, classes)
    }

    fn epochs(&self) -> u32 {
        self.num_epochs
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
            Piece::Module => true,
            Piece::Head(task) if self.local_loss => task == step.phase,
            Piece::Head(task) => task <= step.phase,
        }
    }

    #[cfg(feature = "torch")]
    fn scores(
        &self,
        _: &crate::continual::view::View<'_>,
        run: &dyn Fn(u32) -> Result<tch::Tensor>,
    ) -> Result<tch::Tensor> {
        Ok(run(0)?.softmax(-1, None::<tch::Kind>))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_later_tasks_wait() {
        let step = StepInfo::new(5, 9, &[3, 3, 3]);
        let config = Config::default();
        let moves = |piece| config.updates(piece, step);
        assert_eq!([0, 1, 2].map(|task| moves(Piece::Head(task))), [true, true, false]);
        let local = Config { local_loss: true, ..config };
        assert_eq!([0, 1, 2].map(|task| local.updates(Piece::Head(task), step)), [false, true, false]);
    }
}
