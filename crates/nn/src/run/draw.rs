//! New tensors from injected randomness.

use pleach_base::rng::Key;
use tch::{Device, Tensor};

use crate::backbone::Init;

/// A new float32 tensor on `device`; `None` for [`Init::Base`].
#[must_use]
pub fn draw(init: Init, key: Key, shape: &[usize], device: Device) -> Option<Tensor> {
    let values = init.draw(key, shape.iter().product())?;
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    Some(Tensor::from_slice(&values).reshape(shape).to_device(device))
}
