//! What every rank holds, on every rank: one exchange for all tasks.

use pleach_base::{Fence, Generation, Result, Term};
use pleach_comm::Collective;
use tch::Tensor;

use super::Claim;
use crate::agree;
use crate::job::memory::SLOTS;

/// Words of a claim: what it is (absent, or flags), step, term, generation, digest.
const WORDS: usize = 8;
const PRESENT: i64 = 1;
const AGREED: i64 = 2;
const ROUNDED_OFF: i64 = 4;

/// The claims of all ranks, by task. Every rank gives those of its tasks, in the order that all have. A collective call.
///
/// # Errors
/// Those of [`Collective`].
pub(super) fn exchange(group: &dyn Collective, mine: &[[Option<Claim>; SLOTS]]) -> Result<Vec<Vec<Claim>>> {
    let row: Vec<i64> = mine.iter().flatten().flat_map(|claim| words(claim.as_ref())).collect();
    let rows = group.all_gather(&Tensor::from_slice(&row).to_device(group.device()))?;
    let mut tasks = vec![Vec::new(); mine.len()];
    for (rank, row) in rows.iter().enumerate() {
        for (at, words) in agree::read_i64(row)?.chunks(WORDS).enumerate() {
            tasks[at / SLOTS].extend(claim(words, rank, at % SLOTS));
        }
    }
    Ok(tasks)
}

fn words(claim: Option<&Claim>) -> [i64; WORDS] {
    let mut words = [0; WORDS];
    let Some(claim) = claim else { return words };
    words[0] = PRESENT | if claim.agreed { AGREED } else { 0 } | if claim.rounded_off { ROUNDED_OFF } else { 0 };
    words[1] = claim.step as i64;
    words[2] = claim.fence.term.0 as i64;
    words[3] = claim.fence.generation.0 as i64;
    words[4..].copy_from_slice(&agree::digest_words(&claim.digest));
    words
}

fn claim(words: &[i64], rank: usize, slot: usize) -> Option<Claim> {
    (words[0] & PRESENT != 0).then(|| Claim {
        rank,
        slot,
        step: words[1] as u64,
        fence: Fence { term: Term(words[2] as u64), generation: Generation(words[3] as u64) },
        digest: agree::words_digest(&words[4..]),
        agreed: words[0] & AGREED != 0,
        rounded_off: words[0] & ROUNDED_OFF != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_come_back_as_they_were_said() {
        let digest = std::array::from_fn(|at| 200 + at as u8);
        let fence = Fence { term: Term(3), generation: Generation(7) };
        let said = Claim { rank: 0, slot: 1, step: 9, fence, digest, agreed: true, rounded_off: false };
        let half = Claim { slot: 2, agreed: false, rounded_off: true, step: u64::from(u32::MAX) + 5, ..said };
        let group = pleach_comm::local(tch::Device::Cpu);
        let table = exchange(group.as_ref(), &[[None, Some(said), Some(half)], [None; SLOTS]]).unwrap();
        assert_eq!(table, [vec![said, half], Vec::new()]);
    }
}
