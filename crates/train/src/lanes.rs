//! Which lanes of a step a rank computes: contiguous, balanced ranges in lane order.

use std::ops::Range;

/// Lanes of `rank` among `world` ranks. The first `lanes % world` ranks hold one more; with more ranks than lanes the
/// last ranks hold none.
#[must_use]
pub fn of_rank(lanes: u32, rank: usize, world: usize) -> Range<u32> {
    let (rank, world) = (rank as u32, world.max(1) as u32);
    let (share, more) = (lanes / world, lanes % world);
    let start = rank * share + rank.min(more);
    start..start + share + u32::from(rank < more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_lane_has_one_rank_and_shares_differ_by_one(lanes in 1u32..200, world in 1usize..40) {
            let ranges: Vec<_> = (0..world).map(|rank| of_rank(lanes, rank, world)).collect();
            let in_order: Vec<u32> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(in_order, (0..lanes).collect::<Vec<_>>());
            let sizes: Vec<_> = ranges.iter().map(ExactSizeIterator::len).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }
}
