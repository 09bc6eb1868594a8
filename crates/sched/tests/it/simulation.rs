//! Many seeded histories. `PLEACH_SIM_SEED` replays one, `PLEACH_SIM_HISTORIES` sets how many.

use crate::sim::{Sim, Summary};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_histories_keep_every_invariant_and_end() {
    if let Some(seed) = number("PLEACH_SIM_SEED") {
        println!("{:?}", Sim::new(seed).run());
        return;
    }
    let histories = number("PLEACH_SIM_HISTORIES").unwrap_or(2_000);
    let mut total = Summary::default();
    for seed in 0..histories {
        let one = Sim::new(seed).run();
        total.succeeded += one.succeeded;
        total.cancelled += one.cancelled;
        total.spent += one.spent;
        total.generations += one.generations;
    }
    println!("{histories} histories: {total:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(total.succeeded > histories && total.cancelled > histories / 50 && total.spent > histories / 100);
    assert!(5 * total.generations > 6 * total.succeeded, "too quiet: {total:?}");
}
