//! The draws that PyTorch's CPU generator makes from a seed.
//!
//! Some of PEFT's methods save a seed in place of tensors (VeRA's and RandLoRA's projections, FourierFT's frequencies).
//! Such files open only where the same draws are made, so these follow `torch.Generator` bit for bit. Nothing else may
//! draw from here: everything that is ours comes from [`pleach_base::rng::Key`].
//!
//! Matsumoto, Nishimura, *Mersenne Twister: A 623-dimensionally equidistributed uniform pseudo-random number generator*,
//! 1998 (MT19937).

use std::collections::BTreeMap;

const N: usize = 624;
const M: usize = 397;

/// From this many elements on `torch.randperm` draws otherwise, in time and memory of all of them.
pub(crate) const PERMUTATION_END: u64 = u32::MAX as u64 / 20;

/// `torch.Generator(device="cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub(crate) struct Mersenne {
    state: [u32; N],
    used: usize,
}

impl Mersenne {
    /// Only the low 32 bits of the seed count, as in PyTorch.
    pub(crate) fn seed(seed: i64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, used: N }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (bits >> 1) ^ odd;
        }
        self.used = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == N {
            self.refill();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Leaves out the next draws.
    pub(crate) fn skip(&mut self, count: u64) {
        for _ in 0..count {
            self.next_u32();
        }
    }

    /// `torch.empty(count).uniform_(low, high)` in float32, with PyTorch's fused product and sum.
    pub(crate) fn uniform(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        let draw = |bits: u32| ((bits & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)).mul_add(high - low, low);
        (0..count).map(|_| draw(self.next_u32())).collect()
    }

    /// `torch.empty(count, dtype=torch.bfloat16).uniform_(low, high)`: eight bits a draw, bounds and values rounded.
    pub(crate) fn uniform_bf16(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        let (low, high) = (bf16(low), bf16(high));
        let width = bf16(high - low);
        let draw = |bits: u32| bf16((bits & 0xff) as f32 * (1.0 / 256.0) * width + low);
        (0..count).map(|_| draw(self.next_u32())).collect()
    }

    /// The first `count` entries of `torch.randperm(size)`, in time and memory of `count`. `size` is below
    /// [`PERMUTATION_END`].
    pub(crate) fn permutation(&mut self, size: u64, count: usize) -> Vec<u64> {
        debug_assert!(size < PERMUTATION_END);
        // What places hold that no longer hold their own number.
        let mut moved: BTreeMap<u64, u64> = BTreeMap::new();
        let mut first = Vec::with_capacity(count);
        for i in 0..size.min(count as u64) {
            let other = if i + 1 < size { i + u64::from(self.next_u32()) % (size - i) } else { i };
            let own = moved.remove(&i).unwrap_or(i);
            first.push(if other == i { own } else { moved.insert(other, own).unwrap_or(other) });
        }
        first
    }
}

/// Rounds to the nearest bfloat16, ties to even.
fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests;
