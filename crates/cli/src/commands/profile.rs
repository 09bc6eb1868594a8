//! `pleach profile`: where the time of the newest steps went, rank by rank.

use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use pleach_proto::v1::{GetProfileResponse, RankTimes, Stage, StageTime};
use serde_json::{Map, Value, json};

use super::trace;
use crate::args::{Global, Profile};
use crate::out;

/// Stages by name, in the order of a step.
pub(super) const STAGES: [(Stage, &str); 9] = [
    (Stage::Data, "data"),
    (Stage::Wait, "wait"),
    (Stage::Forward, "forward"),
    (Stage::Backward, "backward"),
    (Stage::Reduce, "reduce"),
    (Stage::Optimiser, "optimiser"),
    (Stage::Commit, "commit"),
    (Stage::Evaluate, "evaluate"),
    (Stage::Checkpoint, "checkpoint"),
];

pub(super) async fn run(global: &Global, args: &Profile) -> Result<()> {
    let profile = super::connect(global).await?.profile(&args.job).await?;
    if let Some(file) = &args.trace {
        write_trace(file, &profile)?;
    }
    out::emit(args.output.output, &value(&args.job, &profile), || page(&profile))
}

/// Writes the trace of a profile.
pub(super) fn write_trace(file: &Path, profile: &GetProfileResponse) -> Result<()> {
    std::fs::write(file, trace::chrome(profile).to_string())
        .or_code(code::IO, || format!("--trace {}: cannot be written", file.display()))
}

/// What the steps of a rank took.
struct Sums {
    steps: usize,
    micros: [u64; STAGES.len()],
}

impl Sums {
    fn of(rank: &RankTimes) -> Self {
        let times: Vec<&StageTime> = rank.steps.iter().flat_map(|step| &step.stages).collect();
        let sum = |(stage, _)| times.iter().filter(|time| time.stage() == stage).map(|time| time.micros).sum();
        Self { steps: rank.steps.len(), micros: STAGES.map(sum) }
    }

    fn total(&self) -> u64 {
        self.micros.iter().sum()
    }

    fn share(&self, micros: u64) -> f64 {
        micros as f64 / self.total().max(1) as f64
    }

    fn seconds(&self, micros: u64) -> f64 {
        micros as f64 / 1e6 / self.steps.max(1) as f64
    }

    fn input_wait_share(&self) -> f64 {
        self.share(self.micros[0])
    }
}

fn value(job: &str, profile: &GetProfileResponse) -> Value {
    let rank = |rank: &RankTimes| {
        let sums = Sums::of(rank);
        let stage = |((_, name), micros): (&(Stage, &str), &u64)| {
            ((*name).to_owned(), json!({"seconds": sums.seconds(*micros), "share": sums.share(*micros)}))
        };
        json!({
            "rank": rank.rank,
            "worker": rank.worker,
            "steps": sums.steps,
            "first_step": rank.steps.first().map(|step| step.step),
            "last_step": rank.steps.last().map(|step| step.step),
            "seconds_per_step": sums.seconds(sums.total()),
            "input_wait_share": sums.input_wait_share(),
            "stages": STAGES.iter().zip(&sums.micros).map(stage).collect::<Map<_, _>>(),
        })
    };
    json!({
        "job": job,
        "generation": profile.generation,
        "ranks": profile.ranks.iter().map(rank).collect::<Vec<_>>(),
    })
}

/// A line a rank: the mean step, and the share of each stage in it.
pub(super) fn page(profile: &GetProfileResponse) -> String {
    if profile.ranks.is_empty() {
        out::note("no step was told yet");
        return String::new();
    }
    let heads = ["RANK", "WORKER", "STEPS", "MS/STEP"].map(str::to_owned);
    let names = STAGES.map(|(_, name)| name.to_uppercase());
    let rows = profile.ranks.iter().map(|rank| {
        let sums = Sums::of(rank);
        let milliseconds = format!("{:.1}", 1e3 * sums.seconds(sums.total()));
        let first = [rank.rank.to_string(), rank.worker.clone(), sums.steps.to_string(), milliseconds];
        line(first, sums.micros.map(|micros| format!("{:.1}%", 100.0 * sums.share(micros))))
    });
    out::table(line(heads, names).each_ref().map(String::as_str), rows)
}

fn line(first: [String; 4], stages: [String; STAGES.len()]) -> [String; 4 + STAGES.len()] {
    let mut cells = first.into_iter().chain(stages);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use pleach_proto::v1::StepTimes;

    use super::*;

    /// Two steps on each of two ranks; the second one waits for the first in the exchange.
    pub(crate) fn sample() -> GetProfileResponse {
        let step = |step: u64, begun: u64, stages: &[(Stage, u64)]| StepTimes {
            tasks: vec!["search".into()],
            step,
            begun_unix_us: begun,
            stages: stages
                .iter()
                .map(|(stage, micros)| StageTime { stage: (*stage).into(), micros: *micros })
                .collect(),
        };
        let slow = [
            (Stage::Data, 5_000),
            (Stage::Forward, 20_000),
            (Stage::Backward, 40_000),
            (Stage::Forward, 20_000),
            (Stage::Backward, 10_000),
            (Stage::Reduce, 4_000),
            (Stage::Commit, 1_000),
        ];
        let quick = [(Stage::Data, 1_000), (Stage::Forward, 30_000), (Stage::Reduce, 68_000), (Stage::Commit, 1_000)];
        let at = 1_700_000_000_000_000;
        let rank = |rank, worker: &str, steps| RankTimes { rank, worker: worker.into(), steps };
        GetProfileResponse {
            generation: 2,
            ranks: vec![
                rank(0, "w0", vec![step(7, at + 50, &slow), step(8, at + 100_100, &slow)]),
                rank(1, "w1", vec![step(7, at, &quick), step(8, at + 100_000, &quick)]),
            ],
        }
    }

    #[test]
    fn people_get_a_line_a_rank() {
        insta::assert_snapshot!(page(&sample()));
    }

    #[test]
    fn scripts_get_all_stages() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&value("demo", &sample())).unwrap_or_default());
    }

    #[test]
    fn the_shares_of_a_rank_add_up() {
        for rank in &sample().ranks {
            let sums = Sums::of(rank);
            let shares: f64 = sums.micros.iter().map(|micros| sums.share(*micros)).sum();
            assert!((shares - 1.0).abs() < 1e-12, "{shares}");
        }
    }
}
