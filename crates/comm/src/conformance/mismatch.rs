//! Calls that differ between ranks are refused on all of them, change nothing, and leave the group usable.

use pleach_base::{Result as BaseResult, code};
use tch::{Kind, Tensor};

use super::{Check, expect, ok, to_i64};
use crate::{Call, Collective, ReduceOp, Signature};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "different shapes are refused", min_world: 2, run: shapes },
    Check { name: "different kinds are refused", min_world: 2, run: kinds },
    Check { name: "different reductions are refused", min_world: 2, run: reductions },
    Check { name: "different roots are refused", min_world: 2, run: roots },
    Check { name: "different operations are refused", min_world: 2, run: operations },
    Check { name: "impossible calls are refused", min_world: 1, run: impossible },
    Check { name: "a plan that all ranks share is followed", min_world: 1, run: plan },
    Check { name: "plans that differ are refused", min_world: 2, run: plans },
];

/// Whether this rank plays the odd one out: the last.
fn odd(group: &dyn Collective) -> bool {
    group.rank() + 1 == group.world()
}

fn ones(group: &dyn Collective, shape: &[i64], kind: Kind) -> Tensor {
    Tensor::ones(shape, (kind, group.device()))
}

/// The call was refused with a message that names what both sides did, and the group still works.
fn refused<T>(group: &dyn Collective, result: BaseResult<T>, says: &[&str]) -> Result<(), String> {
    let Err(error) = result else { return Err("was not refused".to_owned()) };
    expect(error.code() == code::COMM_MISMATCH, || format!("refused with {error:?}"))?;
    for text in says {
        expect(error.message().contains(text), || format!("{text:?} is not in {:?}", error.message()))?;
    }
    let mut one = ones(group, &[3], Kind::Float);
    ok(group.all_reduce(&mut one, ReduceOp::Sum))?;
    let world = ones(group, &[3], Kind::Float) * to_i64(group.world());
    expect(one.equal(&world), || format!("the next call gave {one}"))
}

fn shapes(group: &dyn Collective) -> Result<(), String> {
    for (usual, other) in [(&[4i64, 2][..], &[2i64, 4][..]), (&[1000], &[1001]), (&[8], &[0])] {
        let shape = if odd(group) { other } else { usual };
        let mut tensor = ones(group, shape, Kind::Float);
        let says = [format!("{usual:?}"), format!("{other:?}")];
        refused(group, group.all_reduce(&mut tensor, ReduceOp::Sum), &[&says[0], &says[1]])?;
        expect(tensor.equal(&ones(group, shape, Kind::Float)), || "a refused call changed its tensor".to_owned())?;
        refused(group, group.broadcast(&mut tensor, 0), &[])?;
        refused(group, group.all_gather(&tensor), &[])?;
    }
    Ok(())
}

fn kinds(group: &dyn Collective) -> Result<(), String> {
    let mut tensor = ones(group, &[8], if odd(group) { Kind::Double } else { Kind::Int64 });
    refused(group, group.all_reduce(&mut tensor, ReduceOp::Sum), &["i64", "f64"])
}

fn reductions(group: &dyn Collective) -> Result<(), String> {
    let op = if odd(group) { ReduceOp::Max } else { ReduceOp::Sum };
    let mut tensor = ones(group, &[8], Kind::Float);
    refused(group, group.all_reduce(&mut tensor, op), &["sum", "max"])?;
    let rows = ones(group, &[to_i64(group.world())], Kind::Float);
    refused(group, group.reduce_scatter(&rows, op), &[])
}

fn roots(group: &dyn Collective) -> Result<(), String> {
    let mut tensor = ones(group, &[8], Kind::Float);
    let result = group.broadcast(&mut tensor, usize::from(odd(group)));
    refused(group, result, &["broadcast from 0", "broadcast from 1"])
}

fn operations(group: &dyn Collective) -> Result<(), String> {
    let mut tensor = ones(group, &[8], Kind::Float);
    let result =
        if odd(group) { group.broadcast(&mut tensor, 0) } else { group.all_reduce(&mut tensor, ReduceOp::Sum) };
    refused(group, result, &["broadcast", "all_reduce"])?;
    let result = if odd(group) { group.barrier() } else { group.all_gather(&tensor).map(drop) };
    refused(group, result, &["barrier", "all_gather"])
}

fn impossible(group: &dyn Collective) -> Result<(), String> {
    let world = group.world();
    let mut tensor = ones(group, &[to_i64(world) + 1], Kind::Float);
    refused(group, group.broadcast(&mut tensor, world), &["ranks"])?;
    if world > 1 {
        refused(group, group.all_to_all(&tensor), &["multiple"])?;
        refused(group, group.reduce_scatter(&tensor, ReduceOp::Sum), &["multiple"])?;
    }
    refused(group, group.all_gather(&ones(group, &[], Kind::ComplexFloat)), &["kind"])
}

fn plan(group: &dyn Collective) -> Result<(), String> {
    let calls = [
        Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[16]),
        Signature::new(Call::AllGather, Kind::Int64, &[2]),
        Signature::barrier(),
    ];
    ok(group.verify_plan(&calls, 3))?;
    for _ in 0..3 {
        let mut tensor = ones(group, &[16], Kind::Float);
        ok(group.all_reduce(&mut tensor, ReduceOp::Sum))?;
        let expected = ones(group, &[16], Kind::Float) * to_i64(group.world());
        expect(tensor.equal(&expected), || format!("a planned call gave {tensor}"))?;
        ok(group.all_gather(&ones(group, &[2], Kind::Int64)))?;
        ok(group.barrier())?;
    }
    // The plan is used up: anything may follow.
    ok(group.broadcast(&mut ones(group, &[3], Kind::BFloat16), 0))
}

fn plans(group: &dyn Collective) -> Result<(), String> {
    let one = Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[16]);
    let two = Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[17]);
    let last = if odd(group) { two } else { one.clone() };
    refused(group, group.verify_plan(&[one.clone(), last], 1), &["plan"])?;
    refused(group, group.verify_plan(&[one], 1 + usize::from(odd(group))), &["plan"])
}
