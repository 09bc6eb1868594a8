//! Bytes from one rank to all.

use pleach_base::{Result, code};
use pleach_comm::Collective;
use tch::{Device, Kind, Tensor};

/// The bytes of rank `root` on every rank. Other ranks pass anything. A collective call.
///
/// # Errors
/// Those of [`Collective`].
pub(super) fn bytes(group: &dyn Collective, root: usize, mine: Vec<u8>) -> Result<Vec<u8>> {
    if group.world() == 1 {
        return Ok(mine);
    }
    let mut length = Tensor::from_slice(&[mine.len() as i64]).to_device(group.device());
    group.broadcast(&mut length, root)?;
    let length = length.int64_value(&[0]);
    if length == 0 {
        return Ok(Vec::new());
    }
    let mut tensor = match group.rank() == root {
        true => Tensor::from_slice(&mine).to_device(group.device()),
        false => Tensor::zeros([length], (Kind::Uint8, group.device())),
    };
    group.broadcast(&mut tensor, root)?;
    Vec::<u8>::try_from(tensor.to_device(Device::Cpu))
        .map_err(|error| code::INTERNAL.error("cannot read broadcast bytes").caused_by(error))
}
