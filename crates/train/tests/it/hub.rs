//! A gang whose ranks are threads of one process: every call puts a tensor down and takes up those of all. A rank that
//! leaves ends the calls that still wait for it, as a closed connection does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

use pleach_base::{Code, Result, code};
use pleach_comm::{Abort, Collective, ReduceOp, Signature};
use tch::{Device, Tensor};

#[derive(Default)]
struct Table {
    /// By call: what each rank put down.
    calls: BTreeMap<u64, Vec<Option<Tensor>>>,
    gone: Vec<usize>,
}

#[derive(Default)]
struct Room {
    table: Mutex<Table>,
    changed: Condvar,
}

/// One rank.
pub(crate) struct Seat {
    room: Arc<Room>,
    rank: usize,
    world: usize,
    next: Cell<u64>,
    /// What is large arrives with one number changed.
    damages: Cell<bool>,
    ended: Cell<Option<Code>>,
}

/// A gang of `world` ranks.
pub(crate) fn seats(world: usize) -> Vec<Seat> {
    let room = Arc::new(Room::default());
    let seat = |rank| Seat {
        room: Arc::clone(&room),
        rank,
        world,
        next: Cell::new(0),
        damages: Cell::new(false),
        ended: Cell::new(None),
    };
    (0..world).map(seat).collect()
}

struct Leave(Arc<Room>, usize);

impl Abort for Leave {
    fn abort(&self) {
        let mut table = self.0.table.lock().unwrap();
        if !table.gone.contains(&self.1) {
            table.gone.push(self.1);
        }
        drop(table);
        self.0.changed.notify_all();
    }

    fn is_aborted(&self) -> bool {
        self.0.table.lock().unwrap().gone.contains(&self.1)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.abort_handle().abort();
    }
}

/// So many numbers are large.
const LARGE: usize = 1_000;

impl Seat {
    /// From now on what this rank is sent may arrive damaged.
    pub(crate) fn damages(&self) {
        self.damages.set(true);
    }

    /// The tensors of all ranks, in their order.
    fn exchange(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        if let Some(code) = self.ended.get() {
            return Err(code::COMM_ABORTED.error(format!("the group ended earlier with {}", code.id)));
        }
        let call = self.next.replace(self.next.get() + 1);
        let mut table = self.room.table.lock().unwrap();
        if table.gone.contains(&self.rank) {
            return Err(code::COMM_ABORTED.error("the group was aborted"));
        }
        let row = table.calls.entry(call).or_insert_with(|| (0..self.world).map(|_| None).collect());
        row[self.rank] = Some(tensor.detach().copy());
        self.room.changed.notify_all();
        loop {
            let row = &table.calls[&call];
            if row.iter().all(Option::is_some) {
                let all = row.iter().flatten().map(Tensor::copy).collect();
                // Who is at this call has taken up the one before.
                table.calls = table.calls.split_off(&call.saturating_sub(1));
                return Ok(all);
            }
            let code = match &table.gone[..] {
                [] => None,
                gone if gone.contains(&self.rank) => Some(code::COMM_ABORTED),
                _ => Some(code::COMM_PEER),
            };
            if let Some(code) = code {
                self.ended.set(Some(code));
                return Err(code.error(format!("rank {}: ranks {:?} are gone", self.rank, table.gone)));
            }
            table = self.room.changed.wait(table).unwrap();
        }
    }
}

fn reduced(all: &[Tensor], op: ReduceOp) -> Tensor {
    let two = |a: Tensor, b: &Tensor| match op {
        ReduceOp::Sum => a + b,
        ReduceOp::Max => a.maximum(b),
        ReduceOp::Min => a.minimum(b),
    };
    all[1..].iter().fold(all[0].copy(), two)
}

impl Collective for Seat {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.world
    }
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<()> {
        let all = self.exchange(tensor)?;
        tch::no_grad(|| tensor.copy_(&reduced(&all, op)));
        Ok(())
    }
    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        self.exchange(tensor)
    }
    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        let all = self.exchange(tensor)?;
        tch::no_grad(|| tensor.copy_(&all[root]));
        if self.damages.get() && tensor.numel() > LARGE && tensor.kind() == tch::Kind::Float {
            let _ = tensor.get(7).fill_(0.125);
        }
        Ok(())
    }
    fn reduce_scatter(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let all = self.exchange(tensor)?;
        Ok(reduced(&all, op).chunk(self.world as i64, 0).swap_remove(self.rank))
    }
    fn all_to_all(&self, tensor: &Tensor) -> Result<Tensor> {
        let all = self.exchange(tensor)?;
        let mine: Vec<_> = all.iter().map(|from| from.chunk(self.world as i64, 0).swap_remove(self.rank)).collect();
        Ok(Tensor::cat(&mine, 0))
    }
    fn barrier(&self) -> Result<()> {
        self.exchange(&Tensor::from_slice(&[0i64])).map(drop)
    }
    fn verify_plan(&self, _: &[Signature], _: usize) -> Result<()> {
        self.barrier()
    }
    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::new(Leave(Arc::clone(&self.room), self.rank))
    }
    fn lost(&self) -> Vec<usize> {
        self.room.table.lock().unwrap().gone.clone()
    }
}
