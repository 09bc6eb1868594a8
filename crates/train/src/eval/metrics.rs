//! Which metrics an evaluation gives.

use pleach_base::{Result, code, suggest};
use pleach_spec::job::DataTask;

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Mean cross-entropy of what was to be predicted.
    Loss,
    /// Share of predictions that are right: target tokens, or rows.
    Accuracy,
    /// Share of queries whose passage is among the first K candidates.
    Recall(u32),
    /// Mean of one over the rank of the query's passage.
    Mrr,
}

impl Metric {
    /// `loss`, `accuracy`, `recall@K`, `mrr`.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Loss => "loss".into(),
            Self::Accuracy => "accuracy".into(),
            Self::Recall(k) => format!("recall@{k}"),
            Self::Mrr => "mrr".into(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "loss" => Some(Self::Loss),
            "accuracy" => Some(Self::Accuracy),
            "mrr" => Some(Self::Mrr),
            _ => text.strip_prefix("recall@")?.parse().ok().filter(|k| *k > 0).map(Self::Recall),
        }
    }

    fn fits(self, task: DataTask) -> bool {
        let ranks = matches!(self, Self::Recall(_) | Self::Mrr);
        ranks == (task == DataTask::Retrieval)
    }
}

/// The metrics that a job asks for, or those that fit `task` when it asks for none.
///
/// # Errors
/// `BAD_VALUE` for an unknown metric or one that the task does not have.
pub fn wanted(names: &[String], task: DataTask) -> Result<Vec<Metric>> {
    if names.is_empty() {
        return Ok(match task {
            DataTask::Retrieval => vec![Metric::Recall(1), Metric::Mrr],
            DataTask::CausalLm | DataTask::MaskedLm => vec![Metric::Loss],
            DataTask::SequenceClassification => vec![Metric::Loss, Metric::Accuracy],
        });
    }
    names.iter().map(|name| one(name, task)).collect()
}

fn one(name: &str, task: DataTask) -> Result<Metric> {
    let metric = Metric::parse(name).ok_or_else(|| {
        code::BAD_VALUE
            .error(format!("spec.eval.metrics: unknown metric `{name}`"))
            .hint(suggest::did_you_mean(name, ["loss", "accuracy", "recall@1", "mrr"]))
    })?;
    if metric.fits(task) {
        return Ok(metric);
    }
    Err(code::BAD_VALUE
        .error(format!("spec.eval.metrics: `{name}` is not a metric of {task:?}"))
        .hint("retrieval has `recall@K` and `mrr`, the other tasks have `loss` and `accuracy`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_against_the_task() {
        let of = |names: &[&str], task| wanted(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), task);
        assert_eq!(of(&["recall@5", "mrr"], DataTask::Retrieval).unwrap(), [Metric::Recall(5), Metric::Mrr]);
        assert_eq!(of(&[], DataTask::CausalLm).unwrap(), [Metric::Loss]);
        for (name, task) in [
            ("recall@0", DataTask::Retrieval),
            ("acuracy", DataTask::CausalLm),
            ("loss", DataTask::Retrieval),
            ("mrr", DataTask::SequenceClassification),
        ] {
            assert_eq!(of(&[name], task).unwrap_err().code(), code::BAD_VALUE, "{name}");
        }
    }
}
