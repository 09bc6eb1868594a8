//! What faults cost: how long until steps were made again, and seconds lost against the arm without faults.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::feed::{Fence, Line};
use crate::inject::Injected;
use crate::plan::Kind;

/// When what was seen in the feed logs.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// First sight of each step's rows, in order of steps that nobody had fed before: the step before it was agreed on by then.
    pub(crate) begun: BTreeMap<u64, Duration>,
    /// First sight of a generation going on, and from where.
    pub(crate) resumed: BTreeMap<Fence, (Duration, u64)>,
    /// First sight of a generation's rows for a step.
    fed: BTreeMap<(Fence, u64), Duration>,
}

impl Timeline {
    pub(crate) fn add(&mut self, line: &Line, now: Duration) {
        match line {
            Line::Fed(fed) => {
                self.begun.entry(fed.step).or_insert(now);
                self.fed.entry((line.fence(), fed.step)).or_insert(now);
            }
            Line::Resume(resume) => {
                self.resumed.entry(line.fence()).or_insert((now, resume.step));
            }
        }
    }

    /// The newest step that anyone fed.
    pub(crate) fn newest(&self) -> u64 {
        self.begun.last_key_value().map_or(0, |(step, _)| *step)
    }

    /// When a generation had made its first step: it feeds the next one then.
    fn first_made(&self, fence: Fence) -> Option<Duration> {
        let (_, from) = self.resumed.get(&fence)?;
        self.fed.get(&(fence, from + 2)).copied()
    }

    /// From the fault to the first step made by a generation that was formed after it, and before the next fault could have been
    /// its reason; or, if none was needed, to the next step.
    fn recovery(&self, fault: &Injected, next: Option<Duration>) -> Option<(Duration, bool)> {
        let limit = (fault.until + Duration::from_secs(12)).min(next.unwrap_or(Duration::MAX));
        let first =
            self.resumed.iter().filter(|(_, (at, _))| *at > fault.at && *at < limit).map(|(fence, _)| *fence).min();
        if let Some(first) = first {
            // It may have given way to another, such as one with a joiner, before it made a step.
            let made = self.resumed.range(first..).filter_map(|(fence, _)| self.first_made(*fence)).min();
            return Some((made?.saturating_sub(fault.at), true));
        }
        let after = self.begun.values().find(|at| **at > fault.at)?;
        Some((after.saturating_sub(fault.at), false))
    }
}

/// One fault with its price.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
    /// After the first step.
    pub(crate) at_seconds: f64,
    pub(crate) lasted_seconds: f64,
    /// Absent when the job ended before.
    pub(crate) recovery_seconds: Option<f64>,
    /// Whether a new generation was formed.
    pub(crate) reformed: bool,
    pub(crate) lost_seconds: f64,
}

/// How long nothing new was recorded: from each fault of the coordinators to the next record that is seen.
pub(crate) fn unrecorded(faults: &[Injected], seen: &[Duration]) -> Vec<f64> {
    let of_leaders = faults.iter().filter(|f| matches!(f.kind, Kind::LeaderKill | Kind::LeaderPause | Kind::LeaderCut));
    of_leaders
        .filter_map(|fault| {
            let next = seen.iter().filter(|at| **at > fault.at + Duration::from_millis(100)).min()?;
            Some(next.saturating_sub(fault.at).as_secs_f64())
        })
        .collect()
}

/// All faults of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ByKind {
    pub(crate) faults: u64,
    pub(crate) reformed: u64,
    pub(crate) recovery_median_seconds: Option<f64>,
    pub(crate) recovery_p99_seconds: Option<f64>,
    pub(crate) lost_seconds: f64,
}

/// Prices of all faults. `calm`: seconds of each step in the arm without faults.
pub(crate) fn rows(timeline: &Timeline, calm: &Timeline, faults: &[Injected], start: Duration) -> Vec<Row> {
    let mut faults = faults.to_vec();
    faults.sort_by_key(|fault| fault.at);
    let mut lost = vec![0.0; faults.len()];
    for (step, (began, ended)) in intervals(timeline) {
        let usual = calm_seconds(calm, step);
        let excess = (ended.saturating_sub(began)).as_secs_f64() - usual;
        let blamed = blamed(&faults, began, ended);
        for at in &blamed {
            lost[*at] += excess / blamed.len() as f64;
        }
    }
    faults
        .iter()
        .zip(lost)
        .enumerate()
        .map(|(at, (fault, lost_seconds))| {
            let recovery = timeline.recovery(fault, faults.get(at + 1).map(|next| next.at));
            Row {
                kind: fault.kind.name(),
                detail: fault.detail.clone(),
                at_seconds: fault.at.saturating_sub(start).as_secs_f64(),
                lasted_seconds: (fault.until.saturating_sub(fault.at)).as_secs_f64(),
                recovery_seconds: recovery.map(|(time, _)| time.as_secs_f64()),
                reformed: recovery.is_some_and(|(_, reformed)| reformed),
                lost_seconds,
            }
        })
        .collect()
}

/// Each step from the first sight of its rows to that of the next step's.
fn intervals(timeline: &Timeline) -> impl Iterator<Item = (u64, (Duration, Duration))> {
    timeline
        .begun
        .iter()
        .zip(timeline.begun.iter().skip(1))
        .map(|((step, began), (_, ended))| (*step, (*began, *ended)))
}

fn calm_seconds(calm: &Timeline, step: u64) -> f64 {
    match (calm.begun.get(&step), calm.begun.get(&(step + 1))) {
        (Some(began), Some(ended)) => (ended.saturating_sub(*began)).as_secs_f64(),
        _ => 0.0,
    }
}

/// The faults that were at work during a step, or had just ended; else the latest before it.
fn blamed(faults: &[Injected], began: Duration, ended: Duration) -> Vec<usize> {
    let after = Duration::from_secs(3);
    let at_work: Vec<usize> =
        (0..faults.len()).filter(|at| faults[*at].at <= ended && faults[*at].until + after >= began).collect();
    if at_work.is_empty() { faults.iter().rposition(|fault| fault.at <= ended).into_iter().collect() } else { at_work }
}

/// The rows by kind.
pub(crate) fn by_kind(rows: &[Row]) -> BTreeMap<&'static str, ByKind> {
    let mut kinds: BTreeMap<&'static str, ByKind> = BTreeMap::new();
    for row in rows {
        let kind = kinds.entry(row.kind).or_default();
        kind.faults += 1;
        kind.reformed += u64::from(row.reformed);
        kind.lost_seconds += row.lost_seconds;
    }
    for (name, kind) in &mut kinds {
        let times = rows.iter().filter(|row| row.kind == *name).filter_map(|row| row.recovery_seconds);
        (kind.recovery_median_seconds, kind.recovery_p99_seconds) = quantiles(times.collect());
    }
    kinds
}

/// Median and 99th percentile (nearest rank).
pub(crate) fn quantiles(mut times: Vec<f64>) -> (Option<f64>, Option<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).copied()
    };
    (at(0.5), at(0.99))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Fed, Resume};

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fed(timeline: &mut Timeline, generation: u64, step: u64, at: u64) {
        let line = Fed { task: String::new(), step, term: 1, generation, rank: 0, lanes: Vec::new() };
        timeline.add(&Line::Fed(line), ms(at));
    }

    fn resume(timeline: &mut Timeline, generation: u64, step: u64, at: u64) {
        let line = Resume { task: String::new(), step, term: 1, generation, source: String::new() };
        timeline.add(&Line::Resume(line), ms(at));
    }

    fn fault(at: u64, until: u64) -> Injected {
        Injected { kind: Kind::Kill, detail: String::new(), at: ms(at), until: ms(until) }
    }

    /// A step each 100 ms.
    fn calm() -> Timeline {
        let mut timeline = Timeline::default();
        (1..20).for_each(|step| fed(&mut timeline, 1, step, step * 100));
        timeline
    }

    #[test]
    fn recovery_ends_with_the_first_step_of_the_next_generation() {
        let mut timeline = Timeline::default();
        (1..=5).for_each(|step| fed(&mut timeline, 1, step, step * 100));
        resume(&mut timeline, 2, 4, 900);
        fed(&mut timeline, 2, 5, 910);
        fed(&mut timeline, 2, 6, 1010);
        fed(&mut timeline, 2, 7, 1110);
        let rows = rows(&timeline, &calm(), &[fault(520, 520)], ms(100));
        assert!(rows[0].reformed);
        assert!((rows[0].recovery_seconds.unwrap() - 0.49).abs() < 1e-9, "{rows:?}");
        // Step 5 took from 500 to 1010 instead of 100 ms.
        assert!((rows[0].lost_seconds - 0.41).abs() < 1e-9, "{rows:?}");
    }

    #[test]
    fn without_a_new_generation_it_ends_with_the_next_step_and_overlapping_faults_share() {
        let mut timeline = calm();
        timeline.begun.clear();
        (1..=5).for_each(|step| fed(&mut timeline, 1, step, step * 100));
        (6..=8).for_each(|step| fed(&mut timeline, 1, step, step * 100 + 400));
        let rows = rows(&timeline, &calm(), &[fault(510, 800), fault(520, 900)], ms(100));
        assert!(!rows[0].reformed && !rows[1].reformed);
        assert!((rows[0].recovery_seconds.unwrap() - 0.49).abs() < 1e-9);
        assert!((rows[0].lost_seconds - 0.2).abs() < 1e-9 && (rows[1].lost_seconds - 0.2).abs() < 1e-9, "{rows:?}");
        assert_eq!(by_kind(&rows)["kill-9"].faults, 2);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        assert_eq!(quantiles(vec![]), (None, None));
        assert_eq!(quantiles((1..=100).map(f64::from).collect()), (Some(50.0), Some(99.0)));
        assert_eq!(quantiles(vec![3.0, 1.0]), (Some(1.0), Some(3.0)));
    }
}
