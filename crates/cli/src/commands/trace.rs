//! A profile as a Chrome trace: a process a rank, a bar a step, below it its stages. chrome://tracing and Perfetto read it.

use pleach_proto::v1::{GetProfileResponse, RankTimes, StepTimes};
use serde_json::{Value, json};

use super::profile::STAGES;

/// The trace; times are microseconds since the first step of any rank began.
pub(super) fn chrome(profile: &GetProfileResponse) -> Value {
    let begun = profile.ranks.iter().flat_map(|rank| &rank.steps).map(|step| step.begun_unix_us);
    let origin = begun.min().unwrap_or_default();
    let events: Vec<Value> = profile.ranks.iter().flat_map(|rank| of_rank(rank, origin)).collect();
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

fn of_rank(rank: &RankTimes, origin: u64) -> Vec<Value> {
    let name = json!({"name": format!("rank {} ({})", rank.rank, rank.worker)});
    let mut events = vec![json!({"ph": "M", "name": "process_name", "pid": rank.rank, "tid": 0, "args": name})];
    for step in &rank.steps {
        of_step(step, rank.rank, step.begun_unix_us.saturating_sub(origin), &mut events);
    }
    events
}

fn of_step(step: &StepTimes, rank: u32, begun: u64, events: &mut Vec<Value>) {
    let mut event = |ph: &str, name: &str, ts: u64, category: &str| {
        events.push(json!({"ph": ph, "name": name, "cat": category, "pid": rank, "tid": 0, "ts": ts}));
    };
    let whole = format!("{} step {}", step.tasks.join(" + "), step.step);
    event("B", &whole, begun, "step");
    let mut at = begun;
    for time in &step.stages {
        let name = STAGES.iter().find(|(stage, _)| *stage == time.stage()).map_or("other", |(_, name)| name);
        event("B", name, at, "stage");
        at += time.micros;
        event("E", name, at, "stage");
    }
    event("E", &whole, at, "step");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::profile::tests::sample;

    #[test]
    fn every_bar_that_begins_ends_in_order_and_steps_do_not_overlap() {
        let trace: Value = serde_json::from_str(&chrome(&sample()).to_string()).expect("JSON");
        let mut open: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let (mut last, mut named, mut steps) = (BTreeMap::new(), Vec::new(), 0);
        for event in trace["traceEvents"].as_array().expect("events") {
            let (rank, name) = (event["pid"].as_u64().expect("a rank"), event["name"].as_str().expect("a name"));
            if event["ph"] == "M" {
                named.push(event["args"]["name"].as_str().expect("a name").to_owned());
                continue;
            }
            let at = event["ts"].as_u64().expect("a time");
            assert!(last.insert(rank, at).is_none_or(|before| before <= at), "{event} goes back");
            let open = open.entry(rank).or_default();
            match event["ph"].as_str() {
                Some("B") => {
                    assert_eq!(event["cat"] == "step", open.is_empty(), "{event}");
                    open.push(name.to_owned());
                }
                Some("E") => {
                    assert_eq!(open.pop().as_deref(), Some(name));
                    steps += u32::from(open.is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(open.values().all(Vec::is_empty), "{open:?}");
        assert_eq!((named, steps), (vec!["rank 0 (w0)".to_owned(), "rank 1 (w1)".to_owned()], 4));
        assert_eq!(last, BTreeMap::from([(0, 200_100), (1, 200_000)]), "microseconds from the first step's begin");
    }

    #[test]
    fn nothing_told_is_an_empty_trace() {
        assert_eq!(chrome(&GetProfileResponse::default())["traceEvents"], json!([]));
    }
}
