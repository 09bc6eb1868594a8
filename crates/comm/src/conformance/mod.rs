//! What every implementation of [`Collective`] must do, as library code. [`run`] calls the checks on a group that is
//! well; [`drive`] turns a process into a rank that a test commands through pipes, to kill, stop and delay it.
//! Nothing here starts processes: that is the test's business, and differs between implementations.

mod drive;
mod mismatch;
mod sums;
mod values;

use crate::Collective;

pub use drive::{Form, drive};

/// One property. All ranks of a group run the same checks in the same order.
pub struct Check {
    /// Says what holds.
    pub name: &'static str,
    /// The smallest group in which it can be tested.
    pub min_world: usize,
    /// The text says what was found instead.
    pub run: fn(&dyn Collective) -> Result<(), String>,
}

/// All checks; none of them ends the group.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    values::CHECKS.iter().chain(mismatch::CHECKS).chain(sums::CHECKS)
}

/// Runs every check that fits the group; gives their number.
///
/// # Errors
/// The name of the first check that does not hold, and why.
pub fn run(group: &dyn Collective) -> Result<usize, String> {
    let mut done = 0;
    for check in checks().filter(|check| check.min_world <= group.world()) {
        (check.run)(group).map_err(|why| format!("{}: rank {}: {why}", check.name, group.rank()))?;
        done += 1;
    }
    Ok(done)
}

/// Turns a failed expectation into a text.
fn expect(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Turns an error of the group into a text.
fn ok<T>(result: pleach_base::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:?}"))
}

/// A number as libtorch wants it.
fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
