//! A gang of one: every collective is the identity. No threads, no sockets.

use std::sync::Arc;

use tch::{Device, Tensor};

use crate::ffi::Failure;
use crate::group::{Group, Link, Transport};
use crate::{Call, Collective};

/// The group of one rank on `device`.
#[must_use]
pub fn local(device: Device) -> Box<dyn Collective> {
    Box::new(Group::new(Alone { device }, false))
}

struct Alone {
    device: Device,
}

/// Nothing is connected, nothing is ever pending.
struct NoLink;

impl Link for NoLink {
    fn sever(&self) {}

    fn lost(&self) -> Vec<usize> {
        Vec::new()
    }
}

impl Transport for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn device(&self) -> Device {
        self.device
    }

    fn run(
        &self,
        call: Call,
        input: &Tensor,
        output: &Tensor,
        _watch: &mut dyn FnMut() -> bool,
    ) -> Result<(), Failure> {
        match call {
            Call::AllReduce(_) | Call::Broadcast(_) | Call::Barrier => {}
            Call::AllGather | Call::ReduceScatter(_) | Call::AllToAll => {
                output.shallow_clone().copy_(&input.view_as(output));
            }
        }
        Ok(())
    }

    fn link(&self) -> Arc<dyn Link> {
        Arc::new(NoLink)
    }
}

#[cfg(test)]
mod tests {
    use pleach_base::code;

    use super::*;

    #[test]
    fn an_aborted_group_refuses_every_call() {
        let group = local(Device::Cpu);
        group.barrier().unwrap();
        let abort = group.abort_handle();
        abort.abort();
        abort.abort();
        assert!(abort.is_aborted());
        assert_eq!(group.barrier().unwrap_err().code(), code::COMM_ABORTED);
        assert_eq!(group.verify_plan(&[], 1).unwrap_err().code(), code::COMM_ABORTED);
    }
}
