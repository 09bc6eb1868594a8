//! Counter-based randomness: every draw is a pure function of its [`Key`] and its index, so that it does not depend
//! on who shares the batch, on the number of ranks, or on what was drawn before.
//!
//! The generator is Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: *Parallel Random Numbers: As Easy as 1, 2, 3*, 2011).

/// Where a draw belongs. Two draws with different keys are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The root of a job.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// The key below this one for a number: a step, a pass, a sample id.
    #[must_use]
    pub fn with(self, part: u64) -> Self {
        Self(mix(self.0.rotate_left(23) ^ mix(part.wrapping_add(0x6a09_e667_f3bc_c909))))
    }

    /// The key below this one for a name: a task, a site, a stream.
    #[must_use]
    pub fn named(self, part: &str) -> Self {
        let hash = part
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        self.with(hash ^ (part.len() as u64).rotate_left(32))
    }

    /// The generator of this key, at its first draw.
    #[must_use]
    pub fn rng(self) -> CounterRng {
        CounterRng { key: [self.0 as u32, (self.0 >> 32) as u32], block: 0, buffer: [0; 4], used: 4 }
    }

    /// The key as a number.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Finaliser of SplitMix64: a bijection that spreads every bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of draws of one [`Key`].
#[derive(Clone, Debug)]
pub struct CounterRng {
    key: [u32; 2],
    block: u128,
    buffer: [u32; 4],
    used: usize,
}

impl CounterRng {
    /// Jumps to the draw with this index (32-bit draws), in constant time.
    pub fn seek(&mut self, index: u64) {
        self.block = u128::from(index / 4);
        self.refill();
        self.used = (index % 4) as usize;
    }

    fn refill(&mut self) {
        let counter =
            [self.block as u32, (self.block >> 32) as u32, (self.block >> 64) as u32, (self.block >> 96) as u32];
        self.buffer = philox(counter, self.key);
        self.block = self.block.wrapping_add(1);
        self.used = 0;
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.refill();
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in `[0, 1)`, 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in `[low, high)`.
    pub fn uniform_in(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal (Box-Muller, one value a pair of draws).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * f64::from(1.0 - self.uniform()).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        (radius * angle.cos()) as f32
    }

    /// Uniform in `0..bound` without bias; `bound` is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        let zone = u64::MAX - (u64::MAX - bound + 1) % bound;
        loop {
            let draw = self.next_u64();
            if draw <= zone {
                return draw % bound;
            }
        }
    }
}

/// One block of Philox 4x32 with ten rounds.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their library.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seek_is_the_same_as_drawing() {
        let key = Key::seed(7).named("dropout").with(3);
        let mut drawn = key.rng();
        let all: Vec<_> = (0..23).map(|_| drawn.next_u32()).collect();
        for (index, expected) in all.iter().enumerate() {
            let mut sought = key.rng();
            sought.seek(index as u64);
            assert_eq!(sought.next_u32(), *expected, "draw {index}");
        }
    }

    #[test]
    fn keys_differ_and_moments_are_right() {
        assert_ne!(Key::seed(1).named("ab").named("c"), Key::seed(1).named("a").named("bc"));
        let mut rng = Key::seed(1).rng();
        let n = 20_000;
        let draws: Vec<_> = (0..n).map(|_| f64::from(rng.normal())).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
        assert!((0..1000).all(|_| rng.below(7) < 7));
    }
}
