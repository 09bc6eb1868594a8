//! Groups over NCCL, one CUDA device a rank: c10d's NCCL backend.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pleach_base::{Result, SystemClock};
use tch::{Device, Kind, Tensor};

use crate::ffi::{Backend, Failure, FailureKind};
use crate::forming;
use crate::gloo::{arrive, connect, setup_error};
use crate::group::{Group, Link, Transport};
use crate::{Call, Collective, GroupOptions};

/// Joins a group of ranks with one CUDA device each, this one with device `device`. Returns when every rank has joined.
/// NCCL picks its own interfaces (`NCCL_SOCKET_IFNAME`); the bind option is not used.
///
/// # Errors
/// `COMM_SETUP` when the store or a rank does not answer, or the device cannot be used.
pub fn nccl(options: &GroupOptions, device: usize) -> Result<Box<dyn Collective>> {
    forming::run(options, move |options| form(options, device))
}

fn form(options: &GroupOptions, device: usize) -> Result<Box<dyn Collective>> {
    let store = connect(options)?;
    let (rank, world) = (options.rank, options.world);
    let setup = |failure: Failure| setup_error(options, &failure);
    store.set(&format!("listen/{rank}"), "nccl").map_err(setup)?;
    arrive(&store, options)?;
    // NCCL builds its rings in the first call, which takes seconds on many devices.
    options.forming.enter("connecting the ranks", options.setup_timeout.saturating_mul(10));
    let backend = Arc::new(Backend::nccl(&store, (rank, world), device, options.timeout).map_err(setup)?);
    // Communicators are made by the first call: make it now, so that what fails is the setup.
    let first = Tensor::zeros([1], (Kind::Float, Device::Cuda(device)));
    backend.run(Call::AllReduce(crate::ReduceOp::Sum), &first, &first, || false).map_err(setup)?;
    let link = Arc::new(Communicator(Mutex::new(Some(Arc::clone(&backend)))));
    Ok(Box::new(Group::new(Nccl { rank, world, device, timeout: options.timeout, link, backend }, options.checked)))
}

/// What an abort handle holds of a group: nothing once the group is gone.
struct Communicator(Mutex<Option<Arc<Backend>>>);

impl Link for Communicator {
    fn sever(&self) {
        let backend = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(failure)) = backend.map(|backend| backend.abort()) {
            tracing::warn!(reason = failure.message, "NCCL did not abort");
        }
    }

    /// NCCL does not say which rank is gone.
    fn lost(&self) -> Vec<usize> {
        Vec::new()
    }
}

struct Nccl {
    rank: usize,
    world: usize,
    device: usize,
    timeout: Duration,
    link: Arc<Communicator>,
    backend: Arc<Backend>,
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.link.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Transport for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn device(&self) -> Device {
        Device::Cuda(self.device)
    }

    fn run(&self, call: Call, input: &Tensor, output: &Tensor, watch: &mut dyn FnMut() -> bool) -> Result<(), Failure> {
        // Nothing below keeps the time: c10d's watchdog would end the process, so it is switched off.
        let clock = SystemClock::shared();
        let mut late = false;
        let outcome = self.backend.run(call, input, output, || {
            // Aborting the communicator ends the call; kernels that run use the tensors until then.
            watch();
            if clock.elapsed() > self.timeout && !late {
                late = true;
                self.link.sever();
            }
            false
        });
        if late {
            let message = format!("no result within {:?}", self.timeout);
            return Err(Failure { kind: FailureKind::Timeout, message });
        }
        outcome
    }

    fn link(&self) -> Arc<dyn Link> {
        Arc::<Communicator>::clone(&self.link)
    }
}
