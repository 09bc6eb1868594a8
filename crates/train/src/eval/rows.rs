//! Loss and accuracy over labelled rows.

use std::collections::BTreeMap;

use pleach_base::Result;
use pleach_data::{Batch, Content, Example};

use super::metrics::Metric;
use super::{Scored, Scorer, batches};
use crate::agree;
use crate::engine::{MicroBatch, Mode, forward, wrong_head};

pub(super) fn score(scorer: &Scorer<'_>, examples: &[Example], metrics: &[Metric]) -> Result<Scored> {
    let objective = scorer.ground.objective;
    let task = objective.task().ok_or_else(|| wrong_head(objective))?;
    let lengths: Vec<usize> = examples.iter().map(length).collect();
    let (mut loss, mut correct, mut count) = (0.0, 0.0, 0.0);
    for batch in batches(&lengths).iter().skip(scorer.group.rank()).step_by(scorer.group.world()) {
        scorer.observer.progress();
        agree::alive(scorer.group)?;
        let rows: Vec<Example> = batch.iter().map(|index| examples[*index].clone()).collect();
        let rows = Batch::collate(task, &rows)?;
        let micro = MicroBatch::new(&scorer.ground, &rows)?;
        let Some(targets) = &micro.targets else { continue };
        let output = forward(scorer.model, scorer.hooks, &micro.passes[0], Mode::EVAL);
        loss += objective.terms(&output, targets)?.iter().map(|t| t.sum.double_value(&[])).sum::<f64>();
        correct += objective.correct(&output, targets)?;
        count += micro.count;
    }
    let totals = agree::sums(scorer.group, &[loss, correct, count])?;
    let mean = |sum: f64| if totals[2] > 0.0 { sum / totals[2] } else { 0.0 };
    let value = |metric: &Metric| match metric {
        Metric::Loss => Some(mean(totals[0])),
        Metric::Accuracy => Some(mean(totals[1])),
        Metric::Recall(_) | Metric::Mrr => None,
    };
    let metrics: BTreeMap<_, _> = metrics.iter().filter_map(|metric| Some((metric.name(), value(metric)?))).collect();
    Ok(Scored { metrics, samples: examples.len() as u64 })
}

fn length(example: &Example) -> usize {
    match &example.content {
        Content::Lm(input) | Content::Marked(input, _) | Content::Classification { input, .. } => input.len(),
        Content::Pair { passage, .. } => passage.len(),
    }
}
