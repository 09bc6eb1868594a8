//! Lanes to ranks. A lane is a deterministic stream of samples; a rank trains a contiguous run of lanes, so that results
//! can be summed in lane order whatever the number of ranks.

/// The lanes of each rank: contiguous, in order, and no two ranks differ by more than one lane. `world` is at least 1;
/// with more ranks than lanes the last ranks get none.
///
/// ```
/// assert_eq!(pleach_sched::lanes::assign(5, 2), vec![vec![0, 1, 2], vec![3, 4]]);
/// ```
#[must_use]
pub fn assign(lanes: u32, world: u32) -> Vec<Vec<u32>> {
    let world = world.max(1);
    let (share, more) = (lanes / world, lanes % world);
    let mut next = 0;
    (0..world)
        .map(|rank| {
            let first = next;
            next += share + u32::from(rank < more);
            (first..next).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::assign;

    proptest! {
        #[test]
        fn every_lane_has_one_rank_and_loads_are_balanced(lanes in 1u32..200, world in 1u32..50) {
            let map = assign(lanes, world);
            prop_assert_eq!(map.len(), world as usize);
            prop_assert_eq!(map.concat(), (0..lanes).collect::<Vec<_>>());
            let sizes: Vec<_> = map.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
