//! What all implementations share: signatures before calls, plans, contiguous copies, and the life of a group. A
//! [`Transport`] below moves bytes and knows nothing of this.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pleach_base::{Code, Error, Result, code};
use tch::{Device, Kind, Tensor, no_grad};

use crate::ffi::{Failure, FailureKind};
use crate::signature::{Call, Signature, plan_digest};
use crate::{Abort, Collective, ReduceOp};

/// So many looks after its connections were closed, a call that is still under way is left behind.
const PATIENCE: usize = 3;
/// How long a description in a mismatch may be; a fixed size, so that the exchange itself cannot mismatch.
const DESCRIPTION: usize = 256;

/// Moves bytes between ranks that are known to make the same call.
pub(crate) trait Transport: Send {
    fn rank(&self) -> usize;
    fn world(&self) -> usize;
    fn device(&self) -> Device;
    /// Contiguous tensors of the right shapes; in-place calls change `output`. `watch` is called now and then during a
    /// long wait; when it says true, the call is not waited for any more.
    fn run(&self, call: Call, input: &Tensor, output: &Tensor, watch: &mut dyn FnMut() -> bool) -> Result<(), Failure>;
    fn link(&self) -> Arc<dyn Link>;
}

/// The connections of a group, shared with abort handles.
pub(crate) trait Link: Send + Sync {
    /// Ends pending calls and makes later ones fail.
    fn sever(&self);
    /// Ranks whose connection is closed at their end.
    fn lost(&self) -> Vec<usize>;
}

struct Switch {
    aborted: AtomicBool,
    link: Arc<dyn Link>,
}

impl Abort for Switch {
    fn abort(&self) {
        if !self.aborted.swap(true, Ordering::SeqCst) {
            self.link.sever();
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }
}

/// An agreed list of calls and how far this rank has come.
struct OpenPlan {
    calls: Vec<Signature>,
    done: usize,
    total: usize,
}

/// A [`Collective`] over any transport.
pub(crate) struct Group<T> {
    transport: T,
    checked: bool,
    switch: Arc<Switch>,
    plan: RefCell<Option<OpenPlan>>,
    failed: Cell<Option<Code>>,
    lost: RefCell<Vec<usize>>,
}

impl<T: Transport> Group<T> {
    pub(crate) fn new(transport: T, checked: bool) -> Self {
        let switch = Arc::new(Switch { aborted: AtomicBool::new(false), link: transport.link() });
        Self {
            transport,
            checked,
            switch,
            plan: RefCell::new(None),
            failed: Cell::new(None),
            lost: RefCell::new(Vec::new()),
        }
    }

    fn alive(&self) -> Result<()> {
        if self.switch.is_aborted() {
            return Err(code::COMM_ABORTED.error("the group was aborted"));
        }
        match self.failed.get() {
            Some(code) => Err(code::COMM_ABORTED.error(format!("the group ended earlier with {}", code.id))),
            None => Ok(()),
        }
    }

    /// Marks the group as ended and lets the other ranks know by closing its connections.
    fn end(&self, code: Code) {
        self.failed.set(Some(code));
        self.sever();
    }

    /// Notes who is gone before closing connections makes everybody look gone.
    fn sever(&self) {
        if self.lost.borrow().is_empty() {
            *self.lost.borrow_mut() = self.switch.link.lost();
        }
        self.switch.link.sever();
    }

    fn attempt(&self, call: Call, input: &Tensor, output: &Tensor) -> Result<()> {
        // The transport itself sees only the connection it waits on. When another rank has left, that wait may be for
        // nothing, but it may also be about to end: a rank leaves when it is done. So look twice.
        let (mut looks, mut closed) = (0, 0);
        let mut watch = || {
            looks += usize::from(!self.switch.link.lost().is_empty());
            if looks == 4 {
                self.sever();
            }
            // Closed connections end the call at once, as a rule.
            closed += usize::from(looks >= 4 || self.switch.is_aborted());
            closed > PATIENCE
        };
        let outcome = self.transport.run(call, input, output, &mut watch);
        if self.switch.is_aborted() {
            return Err(code::COMM_ABORTED.error(format!("{call}: the group was aborted")));
        }
        outcome.map_err(|failure| self.failure(call, &failure))
    }

    fn failure(&self, call: Call, failure: &Failure) -> Error {
        let code = match failure.kind {
            FailureKind::Peer => code::COMM_PEER,
            FailureKind::Timeout => code::COMM_TIMEOUT,
            FailureKind::Other => code::INTERNAL,
        };
        self.end(code);
        let lost: Vec<String> = self.lost.borrow().iter().map(usize::to_string).collect();
        let who = if lost.is_empty() { String::new() } else { format!(" (rank {} is gone)", lost.join(", ")) };
        let (rank, world) = (self.rank(), self.world());
        code.error(format!("{call} on rank {rank} of {world}{who}: {}", failure.message))
    }

    /// Gathers `bytes`, of one fixed length on every rank.
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let device = self.transport.device();
        let mine = Tensor::from_slice(bytes).to_device(device);
        let length = i64::try_from(bytes.len() * self.world()).unwrap_or(i64::MAX);
        let all = Tensor::zeros([length], (Kind::Uint8, device));
        self.attempt(Call::AllGather, &mine, &all)?;
        let all = Vec::<u8>::try_from(all.to_device(Device::Cpu))
            .map_err(|error| code::INTERNAL.error("cannot read back an exchange").caused_by(error))?;
        Ok(all.chunks(bytes.len()).map(<[u8]>::to_vec).collect())
    }

    /// Compares a digest with all ranks; on a difference every rank learns what the others meant, and refuses.
    fn exchange(&self, digest: [u8; 32], text: impl FnOnce() -> String) -> Result<()> {
        if self.gather_bytes(&digest)?.iter().all(|other| other[..] == digest) {
            return Ok(());
        }
        let mut description = text().into_bytes();
        description.resize(DESCRIPTION, 0);
        let all: Vec<String> = self
            .gather_bytes(&description)?
            .iter()
            .enumerate()
            .map(|(rank, text)| format!("rank {rank}: {}", String::from_utf8_lossy(text).trim_end_matches('\0')))
            .collect();
        Err(code::COMM_MISMATCH.error(format!("ranks call different collectives; {}", all.join("; "))))
    }

    /// Lets a call pass when every rank is known to make it.
    fn admit(&self, signature: &Signature) -> Result<()> {
        self.alive()?;
        let planned = self.plan.borrow().is_some();
        if self.checked || !planned {
            self.exchange(signature.digest(), || signature.to_string())?;
        }
        if planned {
            self.follow_plan(signature)?;
        }
        signature.possible(self.world())
    }

    fn follow_plan(&self, signature: &Signature) -> Result<()> {
        let mut plan = self.plan.borrow_mut();
        let Some(open) = plan.as_mut() else { return Ok(()) };
        let expected = &open.calls[open.done % open.calls.len()];
        if expected != signature {
            let error = code::COMM_MISMATCH.error(format!("{signature} is not in the plan, which has {expected} here"));
            return Err(self.deviated(error));
        }
        open.done += 1;
        if open.done == open.total {
            *plan = None;
        }
        Ok(())
    }

    /// With an exchange all ranks deviate alike and the group can go on; without one, the others may be waiting.
    fn deviated(&self, error: Error) -> Error {
        if !self.checked {
            self.end(code::COMM_MISMATCH);
        }
        error
    }

    fn signature(&self, call: Call, tensor: &Tensor) -> Signature {
        Signature::of(call, tensor).stray(tensor.device(), self.transport.device())
    }

    /// A call that changes `tensor` in place.
    fn in_place(&self, call: Call, tensor: &mut Tensor) -> Result<()> {
        no_grad(|| {
            self.admit(&self.signature(call, tensor))?;
            let data = tensor.detach();
            if data.numel() == 0 {
                return Ok(());
            }
            if data.is_contiguous() {
                return self.attempt(call, &data, &data);
            }
            let copy = data.contiguous();
            self.attempt(call, &copy, &copy)?;
            tensor.detach().copy_(&copy);
            Ok(())
        })
    }

    /// A call with a result of its own of shape `shape`.
    fn out_of_place(&self, call: Call, tensor: &Tensor, shape: impl FnOnce(Vec<i64>) -> Vec<i64>) -> Result<Tensor> {
        no_grad(|| {
            self.admit(&self.signature(call, tensor))?;
            let data = tensor.detach().contiguous();
            let result = Tensor::zeros(shape(data.size()), (data.kind(), data.device()));
            if data.numel() > 0 {
                self.attempt(call, &data, &result)?;
            }
            Ok(result)
        })
    }

    fn world_i64(&self) -> i64 {
        i64::try_from(self.world()).unwrap_or(i64::MAX)
    }
}

impl<T: Transport> Collective for Group<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn world(&self) -> usize {
        self.transport.world()
    }

    fn device(&self) -> Device {
        self.transport.device()
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<()> {
        self.in_place(Call::AllReduce(op), tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let world = self.world_i64();
        let all = self.out_of_place(Call::AllGather, tensor, |mut shape| {
            shape.insert(0, world);
            shape
        })?; // [world, ...]
        Ok((0..world).map(|rank| all.select(0, rank)).collect())
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        self.in_place(Call::Broadcast(root), tensor)
    }

    fn reduce_scatter(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let world = self.world_i64();
        self.out_of_place(Call::ReduceScatter(op), tensor, |mut shape| {
            shape[0] /= world;
            shape
        })
    }

    fn all_to_all(&self, tensor: &Tensor) -> Result<Tensor> {
        self.out_of_place(Call::AllToAll, tensor, |shape| shape)
    }

    fn barrier(&self) -> Result<()> {
        self.admit(&Signature::barrier())?;
        let nothing = Tensor::zeros([0], (Kind::Uint8, self.device()));
        self.attempt(Call::Barrier, &nothing, &nothing)
    }

    fn verify_plan(&self, calls: &[Signature], rounds: usize) -> Result<()> {
        self.alive()?;
        let open = self.plan.borrow().is_some();
        let unfinished = || code::COMM_MISMATCH.error("a new plan begins before the last one is done");
        if open && !self.checked {
            return Err(self.deviated(unfinished()));
        }
        let (digest, text) = plan_digest(calls, rounds);
        self.exchange(digest, || text)?;
        if open {
            return Err(unfinished());
        }
        for call in calls {
            call.possible(self.world())?;
        }
        let total = calls.len() * rounds;
        *self.plan.borrow_mut() = (total > 0).then(|| OpenPlan { calls: calls.to_vec(), done: 0, total });
        Ok(())
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::<Switch>::clone(&self.switch)
    }

    fn lost(&self) -> Vec<usize> {
        self.lost.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A call that nothing ends, as Gloo's when a connection closes at the wrong moment.
    struct Stuck {
        lost: Vec<usize>,
    }

    impl Link for Stuck {
        fn sever(&self) {}

        fn lost(&self) -> Vec<usize> {
            self.lost.clone()
        }
    }

    impl Transport for Stuck {
        fn rank(&self) -> usize {
            0
        }

        fn world(&self) -> usize {
            2
        }

        fn device(&self) -> Device {
            Device::Cpu
        }

        fn run(&self, _: Call, _: &Tensor, _: &Tensor, watch: &mut dyn FnMut() -> bool) -> Result<(), Failure> {
            for _ in 0..10_000 {
                std::thread::sleep(Duration::from_millis(1));
                if watch() {
                    return Err(Failure { kind: FailureKind::Peer, message: "left behind".to_owned() });
                }
            }
            Ok(())
        }

        fn link(&self) -> Arc<dyn Link> {
            Arc::new(Self { lost: self.lost.clone() })
        }
    }

    #[test]
    fn a_call_that_closed_connections_do_not_end_is_left_behind() {
        let group = Group::new(Stuck { lost: vec![1] }, false);
        assert_eq!(group.barrier().unwrap_err().code(), code::COMM_PEER);
        assert_eq!(group.lost(), [1]);
        let group = Group::new(Stuck { lost: Vec::new() }, false);
        let abort = group.abort_handle();
        let aborter = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            abort.abort();
        });
        assert_eq!(group.barrier().unwrap_err().code(), code::COMM_ABORTED);
        aborter.join().unwrap();
    }
}
