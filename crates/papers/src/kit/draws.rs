//! Drawn tensors and orders: each a function of its key.

use pleach_base::rng::Key;
use tch::{Device, Tensor};

/// Standard normal numbers.
pub fn normal(key: Key, shape: &[i64], device: Device) -> Tensor {
    let mut rng = key.rng();
    filled(shape, device, || rng.normal())
}

/// Uniform numbers in `[0, 1)`.
pub fn uniform(key: Key, shape: &[i64], device: Device) -> Tensor {
    let mut rng = key.rng();
    filled(shape, device, || rng.uniform())
}

fn filled(shape: &[i64], device: Device, mut next: impl FnMut() -> f32) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| next()).collect();
    Tensor::from_slice(&values).reshape(shape).to_device(device)
}

/// The numbers below `count` in a drawn order.
#[must_use]
pub fn order(key: Key, count: usize) -> Vec<i64> {
    let mut all: Vec<i64> = (0..count as i64).collect();
    let mut rng = key.rng();
    for last in (1..count).rev() {
        all.swap(last, rng.below(last as u64 + 1) as usize);
    }
    all
}
