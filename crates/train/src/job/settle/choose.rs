//! Which state a task goes on from. A pure function of what the ranks hold and what is recorded: every rank computes it
//! from the same table, so all choose the same.

use std::cmp::Reverse;

use pleach_base::Fence;

use crate::record::Record;

/// A state that a rank holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who.
    pub(crate) rank: usize,
    /// Where it keeps it.
    pub(crate) slot: usize,
    /// Steps done.
    pub(crate) step: u64,
    /// The generation that made it, or settled on it.
    pub(crate) fence: Fence,
    /// sha256 of the parameters.
    pub(crate) digest: [u8; 32],
    /// All ranks of that generation agreed on it.
    pub(crate) agreed: bool,
    /// What the job file wants after the step was done.
    pub(crate) rounded_off: bool,
}

impl Claim {
    /// Whether this is the state of `other`, whoever made it.
    pub(crate) fn is_state_of(&self, other: &Self) -> bool {
        (self.step, self.digest) == (other.step, other.digest)
    }
}

/// Whether a state may be gone on from when `records` (oldest first) are the newest that are kept.
///
/// Up to the newest record the record decides: a state that it does not name, or no longer names, is of a history that did
/// not come to pass. Beyond it a state must be agreed, and not by a generation that a recorded one has followed.
pub(crate) fn is_valid(claim: &Claim, records: &[Record]) -> bool {
    let Some(head) = records.last() else { return claim.agreed };
    if claim.step > head.step {
        return claim.agreed && claim.fence >= head.fence;
    }
    let digest = hex::encode(claim.digest);
    records.iter().any(|record| record.step == claim.step && record.digest == digest)
}

/// The state to go on from: of the valid ones the newest, then that of the latest generation, then that of the lowest rank.
pub(crate) fn choose<'a>(claims: &'a [Claim], records: &[Record]) -> Option<&'a Claim> {
    let valid = claims.iter().filter(|claim| is_valid(claim, records));
    valid.max_by_key(|claim| (claim.step, claim.fence, Reverse(claim.rank), Reverse(claim.slot)))
}

/// The newest recorded step.
pub(crate) fn head_step(records: &[Record]) -> u64 {
    records.last().map_or(0, |record| record.step)
}

/// Whether the store may hold something newer than the chosen state: it is asked then.
pub(crate) fn store_may_have_more(chosen: Option<&Claim>, records: &[Record]) -> bool {
    chosen.is_none_or(|chosen| chosen.step < head_step(records))
}

#[cfg(test)]
mod tests;
