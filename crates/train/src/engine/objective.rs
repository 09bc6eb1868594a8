//! What a task learns from a batch: which head it needs, which terms its loss has.

use pleach_base::{Result, code};
use pleach_nn::{HeadKind, Output};
use pleach_spec::job::DataTask;
use tch::Tensor;

use crate::loss::{Counts, Term, classification, contrastive, language};

/// The loss of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Predict the next token.
    CausalLm,
    /// Assign one class a row.
    Classification,
    /// Bring queries near their passages, against all passages of the global batch.
    Contrastive {
        /// Divisor of the cosine similarities.
        temperature: f64,
    },
}

impl Objective {
    /// The objective of a data task.
    #[must_use]
    pub fn of(task: DataTask, temperature: f64) -> Self {
        match task {
            DataTask::CausalLm => Self::CausalLm,
            DataTask::SequenceClassification => Self::Classification,
            DataTask::Retrieval => Self::Contrastive { temperature },
        }
    }

    /// The data task that it learns from.
    #[must_use]
    pub fn task(self) -> DataTask {
        match self {
            Self::CausalLm => DataTask::CausalLm,
            Self::Classification => DataTask::SequenceClassification,
            Self::Contrastive { .. } => DataTask::Retrieval,
        }
    }

    /// The head that the backbone must end in.
    #[must_use]
    pub fn head(self) -> HeadKind {
        match self {
            Self::CausalLm => HeadKind::CausalLm,
            Self::Classification => HeadKind::SequenceClassification,
            Self::Contrastive { .. } => HeadKind::Embedding,
        }
    }

    /// Name of the term.
    #[must_use]
    pub fn term(self) -> &'static str {
        match self {
            Self::CausalLm => language::TERM,
            Self::Classification => classification::TERM,
            Self::Contrastive { .. } => contrastive::TERM,
        }
    }

    /// Counts of a number of things that the term counts.
    #[must_use]
    pub fn counts(self, count: f64) -> Counts {
        Counts::of(self.term(), count)
    }

    /// The terms of one micro-batch whose rows do not see each other.
    ///
    /// # Errors
    /// `INTERNAL` when the model ends in another head than [`Objective::head`].
    pub(crate) fn terms(self, output: &Output, targets: &Tensor) -> Result<Vec<Term>> {
        match (self, output) {
            (Self::CausalLm, Output::Tokens(logits)) => Ok(language::terms(logits, targets)),
            (Self::Classification, Output::Classes(logits)) => Ok(classification::terms(logits, targets)),
            _ => Err(wrong_head(self)),
        }
    }

    /// How many predictions of one micro-batch are right.
    ///
    /// # Errors
    /// As [`Objective::terms`].
    pub(crate) fn correct(self, output: &Output, targets: &Tensor) -> Result<f64> {
        match (self, output) {
            (Self::CausalLm, Output::Tokens(logits)) => Ok(language::correct(logits, targets)),
            (Self::Classification, Output::Classes(logits)) => Ok(classification::correct(logits, targets)),
            _ => Err(wrong_head(self)),
        }
    }
}

pub(crate) fn wrong_head(objective: Objective) -> pleach_base::Error {
    code::INTERNAL.error(format!("the backbone was built without the head that {objective:?} needs"))
}
