//! The one JSON document, and whether the promises were kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::args::Args;
use crate::arm::Arm;
use crate::history::Shape;
use crate::measure::{self, by_kind, quantiles};
use crate::watch::{self, judge};

/// What a run was made of, as the report tells it.
pub(crate) struct Surroundings {
    /// Why there are no namespaces, if so.
    pub(crate) namespaces: Result<(), String>,
    pub(crate) disks: bool,
    /// Kinds of faults that this machine does not allow.
    pub(crate) not_possible: Vec<&'static str>,
}

/// Records against the other arm, and against the feed logs.
struct Digests {
    compared: u64,
    differ: u64,
    samples_differ: u64,
}

fn digests(calm: &Arm, faulty: &Arm) -> Digests {
    let mut found = Digests { compared: 0, differ: 0, samples_differ: 0 };
    for (step, records) in &faulty.heard.records {
        let Some(record) = records.iter().map(|seen| &seen.record).max_by_key(|record| watch::fence(record)) else {
            continue;
        };
        let fed = faulty.account.digests.get(step);
        found.samples_differ += u64::from(fed.is_some_and(|fed| *fed != record.sample_digest));
        if let Some(other) = calm.heard.records.get(step).and_then(|records| records.last()) {
            found.compared += 1;
            found.differ += u64::from(other.record.digest != record.digest);
        }
    }
    found
}

/// The document, and the promises that were broken.
pub(crate) fn write(
    args: &Args,
    around: &Surroundings,
    shape: Shape,
    calm: &Arm,
    faulty: &Arm,
) -> (Value, Vec<String>) {
    let rows = measure::rows(&faulty.timeline, &calm.timeline, &faulty.faults, faulty.start);
    let (median, p99) = quantiles(rows.iter().filter_map(|row| row.recovery_seconds).collect());
    let reformed = quantiles(rows.iter().filter(|row| row.reformed).filter_map(|row| row.recovery_seconds).collect());
    let seen: Vec<_> = faulty.heard.records.values().flatten().map(|seen| seen.at).collect();
    let failover = quantiles(measure::unrecorded(&faulty.faults, &seen));
    let speed = |arm: &Arm| shape.samples() as f64 / arm.seconds.max(1e-3);
    let kept = speed(faulty) / speed(calm);
    let (verdict, digests) = (judge(&faulty.heard), digests(calm, faulty));
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    rows.iter().for_each(|row| *by_name.entry(row.kind).or_default() += 1);
    let equal =
        !calm.findings.adapter_sha256.is_empty() && calm.findings.adapter_sha256 == faulty.findings.adapter_sha256;
    let mut document = json!({
        "format_version": 1,
        "seed": args.seed, "minutes": args.minutes, "workers": args.workers,
        "environment": {
            "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "namespaces": around.namespaces.is_ok(), "why_no_namespaces": around.namespaces.as_ref().err(),
            "etcd": args.etcd, "store": format!("{:?}", args.store).to_lowercase(), "small_disks": around.disks,
            "not_possible_here": around.not_possible,
        },
        "faults": rows.len(), "faults_by_kind": by_name, "kinds": by_name.len(),
        "steps": faulty.account.steps, "samples": shape.samples(), "generations": faulty.account.generations,
        "samples_lost": faulty.account.samples_lost, "samples_repeated": faulty.account.samples_repeated,
        "commits_out_of_order": verdict.out_of_order + verdict.made_twice,
        "digest_mismatches": digests.differ + digests.samples_differ,
        "torn_manifests": faulty.findings.torn,
        "final_adapter_equal": equal,
        "final_adapter_sha256": {"without_faults": calm.findings.adapter_sha256, "with_faults": faulty.findings.adapter_sha256},
        "throughput_kept": kept,
        "recovery_seconds": {"median": median, "p99": p99, "median_reformed": reformed.0, "p99_reformed": reformed.1},
        "leader_lost_until_next_record_seconds": {"median": failover.0, "p99": failover.1},
        "by_kind": by_kind(&rows),
        "arms": {"without_faults": arm(calm, shape), "with_faults": arm(faulty, shape)},
        "accounts": {
            "pleach_audit": faulty.audit, "feed_logs": faulty.account, "records": verdict, "reader": faulty.findings,
            "records_compared_with_the_other_arm": digests.compared,
            "records_that_differ_from_it": digests.differ,
            "records_that_differ_from_the_feed_logs": digests.samples_differ,
        },
        "programs_that_ended_by_themselves": faulty.told,
        "planned_but_not_possible_then": faulty.skipped,
        "timeline": rows,
    });
    let broken = broken(args, shape, calm, faulty, &document);
    document["promises_broken"] = json!(broken);
    (document, broken)
}

fn arm(arm: &Arm, shape: Shape) -> Value {
    json!({
        "state": arm.state, "seconds": arm.seconds, "samples_per_second": shape.samples() as f64 / arm.seconds.max(1e-3),
        "step_ms": 1000.0 * arm.seconds / shape.steps.max(1) as f64, "generations": arm.account.generations,
    })
}

fn broken(args: &Args, shape: Shape, calm: &Arm, faulty: &Arm, document: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, arm) in [("without faults", calm), ("with faults", faulty)] {
        let mut check = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!("{what}, in the arm {name}"));
            }
        };
        check(arm.succeeded, &format!("the job did not succeed ({})", arm.state));
        check(arm.account.holds(shape), &format!("the account of samples is wrong: {:?}", summary(arm)));
        check(arm.findings.torn == 0, "the reader saw a torn step");
        check(arm.findings.log_broken == 0, "the log of the store is broken");
        check(arm.audit["holds"] == true, "`pleach audit` does not hold");
        check(arm.findings.newest_step == shape.steps, "the last step is not durable");
    }
    for (key, what) in [
        ("commits_out_of_order", "steps were recorded out of order"),
        ("digest_mismatches", "records differ from the other arm or from the feed logs"),
    ] {
        if document[key] != 0 {
            broken.push(format!("{what}: {}", document[key]));
        }
    }
    if document["final_adapter_equal"] != true {
        broken.push("the adapters of the two arms differ".to_owned());
    }
    if document["throughput_kept"].as_f64().unwrap_or_default() < args.least_throughput {
        broken.push(format!("throughput kept is {}, below {}", document["throughput_kept"], args.least_throughput));
    }
    broken
}

fn summary(arm: &Arm) -> Value {
    serde_json::to_value(&arm.account).unwrap_or_default()
}
