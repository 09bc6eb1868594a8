//! A random order of `0..n` that is computed, not stored.
//!
//! An alternating Feistel network over the smallest fitting power of two is a bijection whatever its round function;
//! following it from inside `0..n` until it comes back inside (cycle walking) is a bijection of `0..n`. The domain is
//! less than twice `n` (above 256), so a look-up takes fewer than two passes on average, in constant memory.
//! Not a cipher: the order is fair, not secret.

use pleach_base::rng::{Key, philox};

const ROUNDS: u32 = 10;
/// A Feistel network over fewer bits reaches too few of the possible orders.
const LEAST_BITS: u32 = 8;

/// A bijection of `0..n`, fixed by its key; positions to rows and back, in any order, without history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    n: u64,
    /// `None`: the identity.
    key: Option<[u32; 2]>,
    left_bits: u32,
    right_bits: u32,
}

impl Permutation {
    /// The random order of `0..n` that belongs to `key`.
    #[must_use]
    pub fn new(n: u64, key: Key) -> Self {
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(LEAST_BITS);
        let value = key.value();
        Self { n, key: Some([value as u32, (value >> 32) as u32]), left_bits: bits / 2, right_bits: bits - bits / 2 }
    }

    /// `0..n` in order.
    #[must_use]
    pub fn identity(n: u64) -> Self {
        Self { key: None, ..Self::new(n, Key::seed(0)) }
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.n
    }

    /// Nothing to permute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The row at a position. Both are below `n`; a position outside gives itself.
    #[must_use]
    pub fn row(&self, position: u64) -> u64 {
        self.walk(position, Self::forward)
    }

    /// The position of a row: the inverse of [`Permutation::row`].
    #[must_use]
    pub fn position(&self, row: u64) -> u64 {
        self.walk(row, Self::backward)
    }

    fn walk(&self, start: u64, pass: fn(&Self, [u32; 2], u64) -> u64) -> u64 {
        let Some(key) = self.key.filter(|_| start < self.n) else { return start };
        let mut at = pass(self, key, start);
        while at >= self.n {
            at = pass(self, key, at);
        }
        at
    }

    fn forward(&self, key: [u32; 2], value: u64) -> u64 {
        let (mut left, mut right) = self.split(value);
        for round in 0..ROUNDS {
            (left, right) = self.round(key, round, left, right);
        }
        (left << self.right_bits) | right
    }

    fn backward(&self, key: [u32; 2], value: u64) -> u64 {
        let (mut left, mut right) = self.split(value);
        for round in (0..ROUNDS).rev() {
            (left, right) = self.round(key, round, left, right);
        }
        (left << self.right_bits) | right
    }

    fn split(&self, value: u64) -> (u64, u64) {
        (value >> self.right_bits, value & ones(self.right_bits))
    }

    /// Even rounds change the left half by the right one, odd rounds the other way: each is its own inverse.
    fn round(&self, key: [u32; 2], round: u32, left: u64, right: u64) -> (u64, u64) {
        if round.is_multiple_of(2) {
            (left ^ (noise(key, round, right) & ones(self.left_bits)), right)
        } else {
            (left, right ^ (noise(key, round, left) & ones(self.right_bits)))
        }
    }
}

fn ones(bits: u32) -> u64 {
    (1 << bits) - 1
}

fn noise(key: [u32; 2], round: u32, half: u64) -> u64 {
    let drawn = philox([half as u32, (half >> 32) as u32, round, 0], key);
    u64::from(drawn[0]) | (u64::from(drawn[1]) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_row_comes_once(n in 0u64..3_000, seed in any::<u64>()) {
            let order = Permutation::new(n, Key::seed(seed));
            let rows: BTreeSet<u64> = (0..n).map(|position| order.row(position)).collect();
            prop_assert_eq!(rows, (0..n).collect::<BTreeSet<_>>());
        }

        #[test]
        fn position_undoes_row_at_any_size(n in 1u64..u64::MAX / 2, at in any::<u64>(), seed in any::<u64>()) {
            let order = Permutation::new(n, Key::seed(seed));
            let row = order.row(at % n);
            prop_assert!(row < n);
            prop_assert_eq!(order.position(row), at % n);
        }

        #[test]
        fn identity_keeps_the_order(n in 1u64..1_000_000, at in any::<u64>()) {
            prop_assert_eq!(Permutation::identity(n).row(at % n), at % n);
            prop_assert_eq!(Permutation::identity(n).position(at % n), at % n);
        }
    }

    /// Looking up the millionth row costs as much as the first: a handful of passes, counted rather than timed.
    #[test]
    fn seek_in_ten_million_rows_takes_a_few_passes() {
        let n = 10_000_000;
        let order = Permutation::new(n, Key::seed(3));
        let key = order.key.unwrap();
        let mut passes = 0u32;
        for position in (0..n).step_by(9_973) {
            let mut at = position;
            loop {
                at = order.forward(key, at);
                passes += 1;
                if at < n {
                    break;
                }
            }
            assert_eq!(order.position(at), position);
            assert_eq!(order.row(position), at);
        }
        let look_ups = n.div_ceil(9_973) as u32;
        assert!(passes < 2 * look_ups, "{passes} passes for {look_ups} look-ups");
    }

    /// All 120 orders of five rows, each about as often as the others (expected 100, standard deviation 10).
    #[test]
    fn orders_of_a_small_set_are_equally_likely() {
        let mut seen = std::collections::BTreeMap::<Vec<u64>, u32>::new();
        for seed in 0..12_000 {
            let order = Permutation::new(5, Key::seed(1).with(seed));
            *seen.entry((0..5).map(|position| order.row(position)).collect()).or_default() += 1;
        }
        assert_eq!(seen.len(), 120);
        assert!(seen.values().all(|count| (50..=150).contains(count)), "{seen:?}");
    }

    #[test]
    fn the_key_decides_the_order() {
        let order = |seed| {
            let permutation = Permutation::new(100, Key::seed(seed));
            (0..100).map(|position| permutation.row(position)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..100).collect::<Vec<_>>());
    }
}
