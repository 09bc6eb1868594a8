//! What workers were fed, from their own append-only logs: which history counts, and whether it has each sample once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// Term and generation.
pub(crate) type Fence = (u64, u64);

/// One rank's rows of one step.
#[derive(Clone, Debug)]
struct Fed {
    step: u64,
    fence: Fence,
    rank: u64,
    world: u64,
    lanes: BTreeMap<u64, Vec<u64>>,
}

/// All logs of a cluster that trains one task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Feeds {
    fed: Vec<Fed>,
    /// By fence: the step that the generation went on from, and where it took it from, by rank as they told it.
    resumed: BTreeMap<Fence, BTreeSet<(u64, String)>>,
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {row}"))
}

impl Feeds {
    /// Reads what is there. A line without its end is not there yet.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut feeds = Self::default();
        let Ok(entries) = std::fs::read_dir(folder) else { return feeds };
        for entry in entries {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().for_each(|line| feeds.take(&serde_json::from_str(line).unwrap()));
        }
        feeds
    }

    fn take(&mut self, row: &Value) {
        let fence = (number(row, "term"), number(row, "generation"));
        let step = number(row, "step");
        if row["kind"] == "resume" {
            let source = row["source"].as_str().unwrap().to_owned();
            self.resumed.entry(fence).or_default().insert((step, source));
            return;
        }
        let lanes = row["lanes"].as_array().unwrap().iter().map(|lane| {
            let samples = lane["samples"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
            (number(lane, "lane"), samples.collect())
        });
        let lanes = lanes.collect();
        self.fed.push(Fed { step, fence, rank: number(row, "rank"), world: number(row, "world"), lanes });
    }

    /// The newest step that all of `world` ranks of one generation were fed; 0 when there is none.
    pub(crate) fn newest(&self, world: u64) -> u64 {
        let mut ranks: BTreeMap<(Fence, u64), BTreeSet<u64>> = BTreeMap::new();
        for fed in self.fed.iter().filter(|fed| fed.world == world) {
            ranks.entry((fed.fence, fed.step)).or_default().insert(fed.rank);
        }
        let whole = ranks.iter().filter(|(_, ranks)| ranks.len() as u64 == world);
        whole.map(|((_, step), _)| *step).max().unwrap_or(0)
    }

    /// The step that each generation went on from; its ranks must be of one mind.
    pub(crate) fn generations(&self) -> BTreeMap<Fence, u64> {
        let one = |(fence, told): (&Fence, &BTreeSet<(u64, String)>)| {
            let steps: BTreeSet<u64> = told.iter().map(|(step, _)| *step).collect();
            assert_eq!(steps.len(), 1, "ranks of {fence:?} went on from different steps: {told:?}");
            (*fence, *steps.first().unwrap())
        };
        self.resumed.iter().map(one).collect()
    }

    /// Where the states of generations came from, in order.
    pub(crate) fn sources(&self) -> Vec<(Fence, BTreeSet<String>)> {
        let sources = |told: &BTreeSet<(u64, String)>| told.iter().map(|(_, source)| source.clone()).collect();
        self.resumed.iter().map(|(fence, told)| (*fence, sources(told))).collect()
    }

    /// Whether every generation but the first went on from a state that a rank held in memory.
    pub(crate) fn resumed_from_memory(&self) -> bool {
        let sources = self.sources();
        sources.len() > 1 && sources[1..].iter().all(|(_, from)| from.iter().eq(["memory"]))
    }

    /// The worlds that steps of the effective history were made by, without repeats in a row.
    pub(crate) fn worlds(&self, total: u64) -> Vec<u64> {
        let history = self.history(total);
        let mut worlds: Vec<u64> = history.values().map(|fed| fed[0].world).collect();
        worlds.dedup();
        worlds
    }

    /// By step: the rows of the generation whose step counts. What a generation made beyond the step that a later one
    /// went on from does not count, and neither does what lies beyond `total`: the job ended there.
    fn history(&self, total: u64) -> BTreeMap<u64, Vec<&Fed>> {
        let mut history: BTreeMap<u64, Vec<&Fed>> = BTreeMap::new();
        for (fence, from) in self.generations() {
            history.split_off(&(from + 1));
            for fed in self.fed.iter().filter(|fed| fed.fence == fence) {
                assert!(fed.step > from, "{fence:?} went on from {from} but fed step {}", fed.step);
                history.entry(fed.step).or_default().push(fed);
            }
        }
        history.split_off(&(total + 1));
        let steps: Vec<u64> = history.keys().copied().collect();
        assert_eq!(steps, (1..=total).collect::<Vec<_>>(), "the steps that count");
        history
    }

    /// By step: the samples in lane order, after a check that each rank and each lane is there once.
    pub(crate) fn samples(&self, total: u64) -> BTreeMap<u64, Vec<u64>> {
        let mut steps = BTreeMap::new();
        for (step, fed) in self.history(total) {
            let ranks: Vec<u64> = fed.iter().map(|fed| fed.rank).collect();
            let unique: BTreeSet<u64> = ranks.iter().copied().collect();
            assert!(
                unique.len() == ranks.len() && ranks.len() as u64 == fed[0].world,
                "step {step} of {:?} was fed to ranks {ranks:?} of {}",
                fed[0].fence,
                fed[0].world
            );
            let mut lanes: BTreeMap<u64, &Vec<u64>> = BTreeMap::new();
            for (lane, samples) in fed.iter().flat_map(|fed| &fed.lanes) {
                assert!(lanes.insert(*lane, samples).is_none(), "step {step}: lane {lane} was fed twice");
            }
            steps.insert(step, lanes.into_values().flatten().copied().collect());
        }
        steps
    }

    /// Fails unless each of `rows` samples is in one step of each whole epoch, and in one at most of the last.
    pub(crate) fn assert_exactly_once(&self, total: u64, rows: u64, batch: u64) {
        let samples = self.samples(total);
        let steps_an_epoch = rows.div_ceil(batch);
        for epoch in 0..total.div_ceil(steps_an_epoch) {
            let (first, last) = (epoch * steps_an_epoch + 1, (epoch + 1) * steps_an_epoch);
            let mut seen: Vec<u64> = samples.range(first..=last).flat_map(|(_, ids)| ids).copied().collect();
            let count = seen.len();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), count, "epoch {epoch}: a sample was trained twice");
            if last <= total {
                assert_eq!(seen, (0..rows).collect::<Vec<_>>(), "epoch {epoch}: each sample once");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two ranks, four rows, steps of two rows: two steps an epoch; generation 2 goes on from step 1 after generation 1 was fed two.
    fn history() -> Vec<Value> {
        let fed = |generation: u64, rank: u64, step: u64, sample: u64| {
            json!({"kind": "fed", "term": 1, "generation": generation, "step": step, "rank": rank, "world": 2,
                "lanes": [{"lane": rank, "samples": [sample]}]})
        };
        let resume = |generation: u64, step: u64| json!({"kind": "resume", "term": 1, "generation": generation, "step": step, "source": "memory"});
        vec![
            resume(1, 0),
            fed(1, 0, 1, 0),
            fed(1, 1, 1, 1),
            fed(1, 0, 2, 2),
            fed(1, 1, 2, 3),
            resume(2, 1),
            fed(2, 0, 2, 2),
            fed(2, 1, 2, 3),
        ]
    }

    fn judged(rows: &[Value]) -> std::thread::Result<()> {
        let mut feeds = Feeds::default();
        rows.iter().for_each(|row| feeds.take(row));
        std::panic::catch_unwind(|| feeds.assert_exactly_once(2, 4, 2))
    }

    #[test]
    fn a_step_that_is_made_again_counts_once() {
        assert!(judged(&history()).is_ok());
    }

    #[test]
    fn what_is_lost_repeated_or_fed_to_nobody_is_found() {
        let spoilt = |spoil: &dyn Fn(&mut Vec<Value>)| {
            let mut rows = history();
            spoil(&mut rows);
            judged(&rows)
        };
        assert!(spoilt(&|rows| rows[7]["lanes"][0]["samples"] = json!([2])).is_err(), "repeated in another lane");
        assert!(spoilt(&|rows| rows[6]["lanes"][0]["samples"] = json!([0])).is_err(), "repeated in another step");
        assert!(spoilt(&|rows| rows[7]["lanes"][0]["samples"] = json!([])).is_err(), "lost");
        assert!(spoilt(&|rows| rows[7]["lanes"][0]["lane"] = json!(0)).is_err(), "a lane twice");
        assert!(spoilt(&|rows| drop(rows.pop())).is_err(), "a rank without rows");
        assert!(spoilt(&|rows| rows[5]["step"] = json!(2)).is_err(), "fed a step that was made before");
        assert!(spoilt(&|rows| rows.truncate(6)).is_err(), "a step that no generation made");
    }
}
