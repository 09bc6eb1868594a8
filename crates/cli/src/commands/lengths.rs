//! The largest pass that a job's own rows make, for the plan of memory: read where the data is at hand.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, TaskName};
use pleach_data::{Content, Dataset, Encoder, Limits, OpenOptions, Order, RowCache, Side};
use pleach_methods::parse_adapter;
use pleach_nn::BackboneConfig;
use pleach_spec::Job;
use pleach_spec::job::{DataSpec, DataTask, Determinism, is_remote};

use crate::audit::understood;

/// Rows that are looked at, at most.
const LOOK: usize = 20_000;
/// Padded cells per real token above which the trainer packs sequences.
const PADDING_WORTH_AVOIDING: f64 = 1.1;

/// Tokens of the largest pass of every task; `None` where the rows are elsewhere, or cannot be read.
pub(super) fn largest(job: &Job, folder: &Path, model: &dyn BackboneConfig) -> Vec<Option<u64>> {
    let of = |(index, task): (usize, &pleach_spec::job::TaskSpec)| {
        let data = task.data.as_ref().or(job.spec.data.as_ref())?;
        (!is_remote(&data.source)).then(|| of_task(job, index, data, folder, model).ok()).flatten()
    };
    job.spec.tasks.iter().enumerate().map(of).collect()
}

fn of_task(job: &Job, index: usize, data: &DataSpec, folder: &Path, model: &dyn BackboneConfig) -> Result<u64> {
    let (info, train, task) = (model.info(), &job.spec.train, &job.spec.tasks[index]);
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let limits = Limits {
        vocab_size: small(info.vocab_size),
        num_labels: (data.task == DataTask::SequenceClassification).then_some(small(info.num_labels)),
        max_positions: Some(small(info.max_positions)),
    };
    let adapter = parse_adapter(job, index)?;
    let encoder = Encoder::open(data, folder, Side::Both, limits)?
        .understanding(understood(adapter.as_ref()))
        .with_tasks(adapter.row_tasks());
    let rows = RowCache::of_user();
    let options = OpenOptions { max_bad_rows: data.max_bad_rows, rows, ..OpenOptions::default() };
    let dataset = Dataset::open_source(&data.source, &encoder, &options)?;
    let lanes = train.lanes.unwrap_or(1);
    let order = Order::open(&dataset, &encoder, train, lanes, &TaskName::from(task.name.as_str()), data)?;
    let mut lengths: BTreeMap<u64, [usize; 2]> = BTreeMap::new();
    let mut largest = 0;
    // The first rank of the fewest workers has the most lanes.
    let own = lanes.div_ceil(job.spec.workers.min.max(1));
    for step in 0..order.plan().total_steps() {
        if lengths.len() > LOOK {
            break;
        }
        let lane_rows = (0..own).map(|lane| order.lane_rows(step, lane).rows);
        let units: Vec<Vec<u64>> = match train.determinism {
            Determinism::Strict => lane_rows.collect(),
            Determinism::Fast => vec![lane_rows.flatten().collect()],
        };
        let most = train.micro_batch.map_or(usize::MAX, |rows| rows as usize);
        for rows in units.iter().flat_map(|unit| unit.chunks(most.max(1))) {
            let mut sides = [Vec::new(), Vec::new()];
            for row in rows {
                let both = match lengths.get(row) {
                    Some(known) => *known,
                    None => *lengths.entry(*row).or_insert(measure(&dataset, &encoder, *row)?),
                };
                sides.iter_mut().zip(both).for_each(|(side, length)| side.push(length));
            }
            let [first, second] = sides.map(|side| cells(&side));
            // With micro-batches one text of a pair is differentiated after the other.
            // Rows of a source beside are as many again, and taken to be as long.
            let second = if adapter.beside().is_some() { first } else { second };
            largest = largest.max(if train.micro_batch.is_some() { first.max(second) } else { first + second });
        }
    }
    Ok(largest)
}

/// Tokens of a row, and of its second text where it has one.
fn measure(dataset: &Dataset, encoder: &Encoder, row: u64) -> Result<[usize; 2]> {
    Ok(match encoder.encode(&dataset.row(row)?)?.content {
        Content::Pair { query, passage } => [query.map_or(0, |query| query.len()), passage.len()],
        Content::Lm(text) | Content::Marked(text, _) | Content::Classification { input: text, .. } => [text.len(), 0],
    })
}

/// Tokens as the trainer lays them out: padded where that costs little, else packed.
fn cells(lengths: &[usize]) -> u64 {
    let (real, widest) = (lengths.iter().sum::<usize>(), lengths.iter().copied().max().unwrap_or(0));
    let padded = widest * lengths.len();
    let packs = padded as f64 > PADDING_WORTH_AVOIDING * real as f64;
    (if packs { real } else { padded }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_rows_are_packed_and_even_ones_padded() {
        assert_eq!(cells(&[10, 10, 9]), 30);
        assert_eq!(cells(&[10, 2, 2]), 14);
        assert_eq!(cells(&[]), 0);
    }
}
