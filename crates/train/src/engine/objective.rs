//! What a task learns from a batch: which head it needs, which terms its loss has.

use pleach_base::{Result, code};
use pleach_nn::{HeadKind, Output};
use pleach_spec::job::DataTask;
use tch::{Kind, Tensor};

use crate::loss::{Counts, IGNORE, Term, classification, contrastive, language, regression};

/// The loss of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Predict the next token.
    CausalLm,
    /// Predict the token at hand: a decoder's, whose input is its labels moved by one.
    Seq2SeqLm,
    /// Predict the tokens that were masked.
    MaskedLm,
    /// Assign one class a row: a text, an image, a recording.
    Classification,
    /// Assign one class a token.
    TokenClassification,
    /// Bring queries near their passages, against all passages of the global batch.
    Contrastive {
        /// Divisor of the cosine similarities.
        temperature: f64,
    },
    /// Bring images and texts of two towers together, against all of the micro-batch: only for a global batch that is
    /// one.
    Pairs,
    /// Come near to given vectors: the mean of squared differences.
    Regression,
}

impl Objective {
    /// The objective of a data task.
    #[must_use]
    pub fn of(task: DataTask, temperature: f64) -> Self {
        match task {
            DataTask::CausalLm => Self::CausalLm,
            DataTask::MaskedLm => Self::MaskedLm,
            DataTask::SequenceClassification => Self::Classification,
            DataTask::Retrieval => Self::Contrastive { temperature },
        }
    }

    /// What a model with this head is trained on; `None` when the head does not say.
    #[must_use]
    pub fn of_head(head: HeadKind) -> Option<Self> {
        match head {
            HeadKind::CausalLm => Some(Self::CausalLm),
            HeadKind::Seq2SeqLm => Some(Self::Seq2SeqLm),
            HeadKind::MaskedLm => Some(Self::MaskedLm),
            HeadKind::SequenceClassification | HeadKind::ImageClassification | HeadKind::AudioClassification => {
                Some(Self::Classification)
            }
            HeadKind::TokenClassification => Some(Self::TokenClassification),
            HeadKind::Contrastive => Some(Self::Pairs),
            HeadKind::Embedding => None,
        }
    }

    /// The data task that it learns from, where jobs have one.
    #[must_use]
    pub fn task(self) -> Option<DataTask> {
        match self {
            Self::CausalLm => Some(DataTask::CausalLm),
            Self::MaskedLm => Some(DataTask::MaskedLm),
            Self::Classification => Some(DataTask::SequenceClassification),
            Self::Contrastive { .. } => Some(DataTask::Retrieval),
            Self::Seq2SeqLm | Self::TokenClassification | Self::Pairs | Self::Regression => None,
        }
    }

    /// The head that a text model must end in.
    #[must_use]
    pub fn head(self) -> HeadKind {
        match self {
            Self::CausalLm => HeadKind::CausalLm,
            Self::Seq2SeqLm => HeadKind::Seq2SeqLm,
            Self::MaskedLm => HeadKind::MaskedLm,
            Self::Classification => HeadKind::SequenceClassification,
            Self::TokenClassification => HeadKind::TokenClassification,
            Self::Contrastive { .. } | Self::Regression => HeadKind::Embedding,
            Self::Pairs => HeadKind::Contrastive,
        }
    }

    /// Name of the term.
    #[must_use]
    pub fn term(self) -> &'static str {
        match self {
            Self::CausalLm => language::TERM,
            Self::Seq2SeqLm => "seq2seq_lm",
            Self::MaskedLm => "masked_lm",
            Self::Classification => classification::TERM,
            Self::TokenClassification => "token_classification",
            Self::Contrastive { .. } | Self::Pairs => contrastive::TERM,
            Self::Regression => regression::TERM,
        }
    }

    /// Counts of a number of things that the term counts.
    #[must_use]
    pub fn counts(self, count: f64) -> Counts {
        Counts::of(self.term(), count)
    }

    /// Whether labels stand at tokens.
    pub(crate) fn labels_tokens(self) -> bool {
        matches!(self, Self::CausalLm | Self::Seq2SeqLm | Self::MaskedLm | Self::TokenClassification)
    }

    /// How many things the term counts in `rows` rows with these targets.
    pub(crate) fn count(self, targets: &Tensor, rows: usize) -> f64 {
        if self == Self::Regression {
            return targets.numel() as f64;
        }
        if !self.labels_tokens() {
            return rows as f64;
        }
        let targets = match self {
            // Nothing predicts the first token of a row, or of a packed batch.
            Self::CausalLm => targets.slice(-1, 1, None::<i64>, 1),
            _ => targets.shallow_clone(),
        };
        targets.not_equal(IGNORE).sum(Kind::Int64).int64_value(&[]) as f64
    }

    /// The terms of one micro-batch whose rows do not see each other.
    ///
    /// # Errors
    /// `INTERNAL` when the model ends in another head than [`Objective::head`].
    pub(crate) fn terms(self, output: &Output, targets: &Tensor) -> Result<Vec<Term>> {
        match (self, output) {
            (Self::CausalLm, Output::Tokens(logits)) => Ok(language::terms(logits, targets)),
            (Self::Classification, Output::Classes(logits)) => Ok(classification::terms(self.term(), logits, targets)),
            (Self::Seq2SeqLm | Self::MaskedLm | Self::TokenClassification, Output::Tokens(logits)) => {
                Ok(classification::terms(self.term(), logits, targets))
            }
            (Self::Pairs, Output::Pair(pair)) => Ok(contrastive::both_ways(&pair.logits_per_image, targets)),
            (Self::Regression, Output::Vectors(vectors)) => Ok(regression::terms(vectors, targets)),
            _ => Err(wrong_head(self)),
        }
    }

    /// The predictions that the loss counts, `[n, classes]`.
    ///
    /// # Errors
    /// As [`Objective::terms`], also for objectives whose rows see each other.
    pub(crate) fn predictions(self, output: &Output, targets: &Tensor) -> Result<Tensor> {
        let (logits, labels) = match (self, output) {
            (Self::CausalLm, Output::Tokens(logits)) => language::shift(logits, targets),
            (Self::Classification, Output::Classes(logits))
            | (Self::Seq2SeqLm | Self::MaskedLm | Self::TokenClassification, Output::Tokens(logits)) => {
                (logits.reshape([-1, logits.size()[logits.dim() - 1]]), targets.reshape([-1]))
            }
            _ => return Err(wrong_head(self)),
        };
        let counted = labels.not_equal(IGNORE).nonzero().squeeze_dim(1);
        Ok(logits.index_select(0, &counted))
    }

    /// How many predictions of one micro-batch are right.
    ///
    /// # Errors
    /// As [`Objective::terms`].
    pub(crate) fn correct(self, output: &Output, targets: &Tensor) -> Result<f64> {
        match (self, output) {
            (Self::CausalLm, Output::Tokens(logits)) => Ok(language::correct(logits, targets)),
            (Self::Classification, Output::Classes(logits))
            | (Self::Seq2SeqLm | Self::MaskedLm | Self::TokenClassification, Output::Tokens(logits)) => {
                Ok(classification::correct(logits, targets))
            }
            (Self::Pairs, Output::Pair(pair)) => Ok(classification::correct(&pair.logits_per_image, targets)),
            _ => Err(wrong_head(self)),
        }
    }
}

pub(crate) fn wrong_head(objective: Objective) -> pleach_base::Error {
    code::INTERNAL.error(format!("the backbone was built without the head that {objective:?} needs"))
}
