//! Whom to go on without: the smallest set of ranks that explains who does not answer whom.

use std::collections::{BTreeMap, BTreeSet};

/// Up to so many ranks in doubt the answer is exact; above, the rank in most pairs goes first.
const EXACT: usize = 16;

/// The smallest set of ranks such that each pair has one of its ranks in it. Among sets of one size the one with the
/// smallest total of `cost` is taken.
///
/// ```
/// let pairs = [(0, 1), (2, 1)].into();
/// assert_eq!(pleach_sched::cover::smallest(&pairs, |_| 1), [1].into());
/// ```
#[must_use]
pub fn smallest(pairs: &BTreeSet<(usize, usize)>, cost: impl Fn(usize) -> u64) -> BTreeSet<usize> {
    let ranks: Vec<usize> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect::<BTreeSet<_>>().into_iter().collect();
    if ranks.len() > EXACT { greedy(pairs, cost) } else { exact(pairs, &ranks, cost) }
}

fn exact(pairs: &BTreeSet<(usize, usize)>, ranks: &[usize], cost: impl Fn(usize) -> u64) -> BTreeSet<usize> {
    let place: BTreeMap<_, _> = ranks.iter().enumerate().map(|(place, rank)| (*rank, place)).collect();
    let edges: Vec<u32> = pairs.iter().map(|(a, b)| (1 << place[a]) | (1 << place[b])).collect();
    let costs: Vec<u64> = ranks.iter().map(|rank| cost(*rank)).collect();
    let taken = |set: u32| (0..ranks.len()).filter(move |place| set & (1 << place) != 0);
    let covers = (0u32..1 << ranks.len()).filter(|set| edges.iter().all(|edge| edge & set != 0));
    let best = covers.min_by_key(|set| (set.count_ones(), taken(*set).map(|place| costs[place]).sum::<u64>()));
    best.map(|set| taken(set).map(|place| ranks[place]).collect()).unwrap_or_default()
}

fn greedy(pairs: &BTreeSet<(usize, usize)>, cost: impl Fn(usize) -> u64) -> BTreeSet<usize> {
    let mut left = pairs.clone();
    let mut cover = BTreeSet::new();
    loop {
        let mut degrees: BTreeMap<usize, usize> = BTreeMap::new();
        for (a, b) in &left {
            *degrees.entry(*a).or_default() += 1;
            *degrees.entry(*b).or_default() += 1;
        }
        let worst = degrees.into_iter().max_by_key(|(rank, degree)| (*degree, std::cmp::Reverse(cost(*rank))));
        let Some((rank, _)) = worst else { return cover };
        cover.insert(rank);
        left.retain(|(a, b)| *a != rank && *b != rank);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(pairs: &BTreeSet<(usize, usize)>, set: &BTreeSet<usize>) -> bool {
        pairs.iter().all(|(a, b)| set.contains(a) || set.contains(b))
    }

    #[test]
    fn ties_go_by_cost_and_many_ranks_by_degree() {
        assert_eq!(smallest(&[(0, 1)].into(), |rank| 10 - rank as u64), [1].into());
        assert_eq!(smallest(&[(0, 1)].into(), |rank| rank as u64), [0].into());
        let star = (0..40).filter(|rank| *rank != 7).map(|rank| (rank, 7)).collect();
        assert_eq!(smallest(&star, |_| 1), [7].into());
        assert_eq!(smallest(&BTreeSet::new(), |_| 1), BTreeSet::new());
    }

    proptest! {
        #[test]
        fn nothing_smaller_explains_all(pairs in prop::collection::btree_set((0usize..7, 0usize..7), 0..12)) {
            let pairs: BTreeSet<_> = pairs.into_iter().filter(|(a, b)| a != b).collect();
            let found = smallest(&pairs, |_| 1);
            prop_assert!(covers(&pairs, &found) && covers(&pairs, &greedy(&pairs, |_| 1)));
            for set in 0u32..128 {
                let set: BTreeSet<_> = (0..7).filter(|rank| set & (1 << rank) != 0).collect();
                prop_assert!(set.len() >= found.len() || !covers(&pairs, &set), "{set:?} is smaller than {found:?}");
            }
        }
    }
}
