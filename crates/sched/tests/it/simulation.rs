//! Many seeded histories. `PLEACH_SIM_SEED` replays one, `PLEACH_SIM_HISTORIES` sets how many. A history that breaks a rule
//! is made smaller, and told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::sim::{Fault, Sim, Summary, draw};

/// Lines of a broken history that are shown.
const SHOWN: usize = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Makes a world of a seed, traced or not.
type Begin = fn(u64, bool) -> Sim;

/// Plays a history; the reason when a rule is broken.
fn play(seed: u64, faults: &[(Duration, Fault)], sim: &mut Sim) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| sim.run(faults))).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        format!(
            "seed {seed}: {}",
            text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
        )
    })
}

/// Leaves out faults as long as the history stays broken, and tells what is left.
fn told(seed: u64, begin: Begin) -> String {
    let mut faults = draw(seed);
    let mut at = 0;
    while at < faults.len() {
        let mut fewer = faults.clone();
        fewer.remove(at);
        if play(seed, &fewer, &mut begin(seed, false)).is_err() {
            faults = fewer;
        } else {
            at += 1;
        }
    }
    let mut sim = begin(seed, true);
    let why = play(seed, &faults, &mut sim).err().unwrap_or_else(|| "it passes when told".into());
    let lines = sim.lines();
    let tail = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    format!("{why}\n{tail}\n{} faults: {faults:?}\n{why}", faults.len())
}

fn many(seeds: impl Iterator<Item = u64>, begin: Begin) -> Summary {
    let mut total = Summary::default();
    for seed in seeds {
        let mut sim = begin(seed, false);
        if play(seed, &draw(seed), &mut sim).is_err() {
            panic!("{}", told(seed, begin));
        }
        total.add(sim.summary());
    }
    total
}

fn all(histories: u64, begin: Begin) -> Summary {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let mut total = Summary::default();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || many((0..histories).filter(|s| s % threads == n), begin)))
            .collect();
        for part in parts {
            match part.join() {
                Ok(sum) => total.add(&sum),
                Err(cause) => std::panic::resume_unwind(cause),
            }
        }
    });
    // A simulation in which nothing happens proves nothing.
    assert!(total.succeeded > histories && total.cancelled > histories / 50 && total.spent > histories / 100);
    assert!(2 * total.generations > 3 * total.succeeded, "too quiet: {total:?}");
    assert!(total.resumed.iter().all(|times| *times > histories / 20) && total.remade > 0, "{total:?}");
    total
}

#[test]
fn random_histories_keep_every_invariant_and_end() {
    if let Some(seed) = number("PLEACH_SIM_SEED") {
        println!("{}", told(seed, Sim::new));
        return;
    }
    println!("{:?}", all(number("PLEACH_SIM_HISTORIES").unwrap_or(20_000), Sim::new));
}

#[test]
fn histories_in_which_workers_are_heard_in_batches_keep_every_invariant_and_end() {
    let begin: Begin = |seed, traced| Sim::new(seed, traced).in_batches();
    if let Some(seed) = number("PLEACH_SIM_SEED") {
        println!("{}", told(seed, begin));
        return;
    }
    println!("{:?}", all(number("PLEACH_SIM_HISTORIES").unwrap_or(20_000) / 4, begin));
}
