//! Results of all calls in all kinds. Values are small integers, exact in every kind.

use tch::{Device, Kind, Tensor, no_grad};

use super::{Check, expect, ok, to_i64};
use crate::{Collective, ReduceOp};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "all_reduce gives every rank the reduction", min_world: 1, run: all_reduce },
    Check { name: "all_reduce works on views and leaves", min_world: 1, run: views },
    Check { name: "all_reduce gives every rank the same bits", min_world: 1, run: same_bits },
    Check { name: "all_gather keeps rank order", min_world: 1, run: all_gather },
    Check { name: "broadcast copies the root", min_world: 1, run: broadcast },
    Check { name: "reduce_scatter gives each rank its rows", min_world: 1, run: reduce_scatter },
    Check { name: "all_to_all exchanges the pieces", min_world: 1, run: all_to_all },
    Check { name: "empty tensors are carried", min_world: 1, run: empty },
    Check { name: "barrier returns", min_world: 1, run: |group| ok(group.barrier()) },
];

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16];
const OPS: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];

/// What rank `rank` holds: differs in every rank and element.
fn held(rank: usize, shape: &[i64], kind: Kind, device: Device) -> Tensor {
    let elements: i64 = shape.iter().product();
    let ramp = Tensor::arange(elements, (Kind::Int64, Device::Cpu));
    // The sign alternates with the rank, so that neither the first nor the last rank always wins a maximum.
    let values = (ramp * (1 - 2 * to_i64(rank % 2)) + to_i64(rank)).remainder(29);
    values.reshape(shape).to_kind(kind).to_device(device)
}

/// The reduction over all ranks, made locally from what each of them holds.
fn reduced(group: &dyn Collective, shape: &[i64], kind: Kind, op: ReduceOp) -> Tensor {
    let all: Vec<Tensor> = (0..group.world()).map(|rank| held(rank, shape, Kind::Double, group.device())).collect();
    let stack = Tensor::stack(&all, 0);
    let result = match op {
        ReduceOp::Sum => stack.sum_dim_intlist(&[0i64][..], false, Kind::Double),
        ReduceOp::Max => stack.amax(&[0i64][..], false),
        ReduceOp::Min => stack.amin(&[0i64][..], false),
    };
    result.to_kind(kind)
}

fn same(found: &Tensor, expected: &Tensor, what: &str) -> Result<(), String> {
    let equal = found.size() == expected.size() && found.kind() == expected.kind() && found.equal(expected);
    expect(equal, || {
        let (kind, size) = (found.kind(), found.size());
        format!("{what} of {kind:?} {size:?}: found {found}, expected {expected}")
    })
}

fn mine(group: &dyn Collective, shape: &[i64], kind: Kind) -> Tensor {
    held(group.rank(), shape, kind, group.device())
}

fn all_reduce(group: &dyn Collective) -> Result<(), String> {
    for kind in KINDS {
        for op in OPS {
            for shape in [&[][..], &[1][..], &[3, 5][..], &[1000][..]] {
                let mut tensor = mine(group, shape, kind);
                ok(group.all_reduce(&mut tensor, op))?;
                same(&tensor, &reduced(group, shape, kind, op), &op.to_string())?;
            }
        }
    }
    Ok(())
}

fn views(group: &dyn Collective) -> Result<(), String> {
    let base = mine(group, &[4, 6], Kind::Float);
    let mut view = base.transpose(0, 1);
    ok(group.all_reduce(&mut view, ReduceOp::Sum))?;
    same(&base, &reduced(group, &[4, 6], Kind::Float, ReduceOp::Sum), "the tensor behind a transposed view")?;
    let mut rows = base.narrow(0, 1, 2);
    ok(group.broadcast(&mut rows, 0))?;
    let mut leaf = mine(group, &[4], Kind::Float).set_requires_grad(true);
    ok(group.all_reduce(&mut leaf, ReduceOp::Sum))?;
    expect(leaf.requires_grad() && leaf.is_leaf(), || "a leaf is no leaf any more".to_owned())?;
    same(&leaf.detach(), &reduced(group, &[4], Kind::Float, ReduceOp::Sum), "a leaf")
}

fn same_bits(group: &dyn Collective) -> Result<(), String> {
    // Thirds round differently in every order of summation; all ranks must still agree.
    let mut tensor = no_grad(|| mine(group, &[100_003], Kind::Float) / (3.0 + group.rank() as f64));
    ok(group.all_reduce(&mut tensor, ReduceOp::Sum))?;
    let all = ok(group.all_gather(&tensor))?;
    expect(all.iter().all(|other| other.equal(&tensor)), || "ranks hold different bits".to_owned())
}

fn all_gather(group: &dyn Collective) -> Result<(), String> {
    for kind in KINDS {
        for shape in [&[][..], &[7][..], &[2, 3][..]] {
            let all = ok(group.all_gather(&mine(group, shape, kind)))?;
            expect(all.len() == group.world(), || format!("{} tensors", all.len()))?;
            for (rank, tensor) in all.iter().enumerate() {
                same(tensor, &held(rank, shape, kind, group.device()), &format!("tensor of rank {rank}"))?;
            }
        }
    }
    Ok(())
}

fn broadcast(group: &dyn Collective) -> Result<(), String> {
    for kind in KINDS {
        for root in 0..group.world() {
            let mut tensor = mine(group, &[5, 2], kind);
            ok(group.broadcast(&mut tensor, root))?;
            same(&tensor, &held(root, &[5, 2], kind, group.device()), &format!("copy of rank {root}"))?;
        }
    }
    Ok(())
}

fn reduce_scatter(group: &dyn Collective) -> Result<(), String> {
    let world = to_i64(group.world());
    for kind in KINDS {
        for op in OPS {
            let shape = [world * 3, 2];
            let rows = ok(group.reduce_scatter(&mine(group, &shape, kind), op))?;
            let expected = reduced(group, &shape, kind, op).narrow(0, 3 * to_i64(group.rank()), 3);
            same(&rows, &expected, &op.to_string())?;
        }
    }
    Ok(())
}

fn all_to_all(group: &dyn Collective) -> Result<(), String> {
    let (world, rank) = (group.world(), to_i64(group.rank()));
    for kind in KINDS {
        let shape = [2 * to_i64(world), 3];
        let received = ok(group.all_to_all(&mine(group, &shape, kind)))?;
        let pieces: Vec<Tensor> =
            (0..world).map(|from| held(from, &shape, kind, group.device()).narrow(0, 2 * rank, 2)).collect();
        same(&received, &Tensor::cat(&pieces, 0), "pieces")?;
    }
    Ok(())
}

fn empty(group: &dyn Collective) -> Result<(), String> {
    let mut nothing = mine(group, &[0, 4], Kind::Float);
    ok(group.all_reduce(&mut nothing, ReduceOp::Sum))?;
    ok(group.broadcast(&mut nothing, 0))?;
    let all = ok(group.all_gather(&nothing))?;
    expect(all.len() == group.world() && all.iter().all(|t| t.size() == [0, 4]), || "wrong shapes".to_owned())?;
    ok(group.all_to_all(&nothing)).map(drop)
}
