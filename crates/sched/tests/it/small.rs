//! The whole of a small world: two workers, one job of two tasks and three steps, one worker dies at any point, or the
//! coordinator does, and whatever is under way arrives in any order. Every state that can be reached is visited once, and
//! every rule is looked at in each.
//!
//! The clock stands still while anything else can happen, so that the order of events alone makes histories differ.

mod ledger;
mod worker;
mod world;

use std::collections::HashSet;
use std::sync::OnceLock;

use pleach_sched::JobKey;
use world::{Action, World};

const WORKERS: usize = 2;
const TASKS: [&str; 2] = ["a", "b"];
const LANES: u32 = 3;

/// Steps of each task: three together, or with `PLEACH_WHOLE_SCOPE` three of each, which takes ten minutes instead of one.
fn steps(task: usize) -> u64 {
    static EACH: OnceLock<[u64; TASKS.len()]> = OnceLock::new();
    EACH.get_or_init(|| if std::env::var_os("PLEACH_WHOLE_SCOPE").is_some() { [3, 3] } else { [2, 1] })[task]
}

fn job() -> JobKey {
    JobKey::new("default", "j")
}

/// What may go wrong, each so many times.
#[derive(Clone, Copy, Debug, Hash)]
struct Scope {
    crashes: u8,
    restarts: u8,
    /// Calls that arrive twice.
    copies: u8,
}

#[derive(Debug, Default)]
struct Seen {
    states: HashSet<u64>,
    transitions: u64,
    ends: u64,
    deepest: usize,
}

/// Visits every state, depth first; the actions that lead to one that breaks a rule.
fn explore(scope: Scope) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let first = World::new(scope);
    seen.states.insert(first.fingerprint());
    let mut path = vec![(None, first.actions(), first)];
    while let Some((_, actions, world)) = path.last_mut() {
        let Some(action) = actions.pop() else {
            path.pop();
            continue;
        };
        let mut next = world.clone();
        seen.transitions += 1;
        if let Err(why) = next.act(action) {
            let taken = path.iter().filter_map(|(taken, ..)| *taken).chain([action]);
            return Err(told(scope, taken, &why));
        }
        if !seen.states.insert(next.fingerprint()) {
            continue;
        }
        seen.deepest = seen.deepest.max(path.len());
        if next.ended().is_some() {
            seen.ends += 1;
        } else {
            path.push((Some(action), next.actions(), next));
        }
    }
    Ok(seen)
}

/// A history that breaks a rule, in words.
fn told(scope: Scope, actions: impl Iterator<Item = Action>, why: &str) -> String {
    let mut world = World::new(scope);
    let mut lines = Vec::new();
    for action in actions {
        lines.push(world.describe(action));
        if world.act(action).is_err() {
            break;
        }
    }
    format!("{why}\n{}\n{why}", lines.join("\n"))
}

#[expect(clippy::print_stdout, reason = "with --nocapture it says how large the world is")]
fn explored(scope: Scope) -> Seen {
    let seen = explore(scope).unwrap_or_else(|why| panic!("{why}"));
    println!(
        "{scope:?}: {} states, {} transitions, {} ends, {} deep",
        seen.states.len(),
        seen.transitions,
        seen.ends,
        seen.deepest
    );
    seen
}

#[test]
fn every_history_without_faults_ends_well() {
    let seen = explored(Scope { crashes: 0, restarts: 0, copies: 0 });
    assert!(seen.states.len() > 1_000 && seen.ends > 0, "the world shrank: {}", seen.states.len());
}

#[test]
fn every_history_with_one_death_keeps_every_invariant() {
    let seen = explored(Scope { crashes: 1, restarts: 0, copies: 0 });
    assert!(seen.states.len() > 50_000 && seen.ends > 0, "the world shrank: {}", seen.states.len());
}

#[test]
fn every_history_with_one_change_of_coordinators_keeps_every_invariant() {
    let seen = explored(Scope { crashes: 0, restarts: 1, copies: 0 });
    assert!(seen.states.len() > 50_000 && seen.ends > 0, "the world shrank: {}", seen.states.len());
}
