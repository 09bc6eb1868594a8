//! A sum over lanes whose bits do not depend on which rank holds which lane: each rank owns a slice of the result and
//! adds that slice of every lane, in lane order.

use pleach_base::{Error, Result, code};
use tch::{Kind, Tensor, no_grad};

use crate::Collective;

/// Sums one tensor per lane over all ranks, in lane order: `((lane 0 + lane 1) + lane 2) + ...`. A collective call. The
/// result, on every rank, has the same bits for any number of ranks and any distribution of lanes.
///
/// `lanes` are the lanes of this rank, in any order, possibly none; each tensor has `shape` and `kind`. Each of the
/// lanes `0..lanes_total` must be held by exactly one rank.
///
/// # Errors
/// Those of [`Collective`]; `COMM_MISMATCH` on every rank when a lane is missing, held twice or of another shape.
pub fn strict_sum(
    group: &dyn Collective,
    lanes: &[(usize, Tensor)],
    lanes_total: usize,
    shape: &[i64],
    kind: Kind,
) -> Result<Tensor> {
    no_grad(|| {
        let owners = owners(group, lanes, lanes_total, shape, kind)?;
        let world = to_i64(group.world());
        let elements: i64 = shape.iter().product();
        let slice = (elements + world - 1) / world;
        let held = (0..group.world()).map(|rank| owners.iter().filter(|owner| **owner == rank).count());
        let rows = to_i64(held.max().unwrap_or(0));

        // Row i of piece j is slice j of this rank's i-th lane, in lane order; unused rows stay zero and are not added.
        let mut sorted: Vec<&(usize, Tensor)> = lanes.iter().collect();
        sorted.sort_by_key(|(lane, _)| *lane);
        let options = (kind, group.device());
        let send = Tensor::zeros([world, rows, slice], options);
        for (row, (_, tensor)) in sorted.into_iter().enumerate() {
            let flat = Tensor::zeros([world * slice], options);
            flat.narrow(0, 0, elements).copy_(&tensor.detach().reshape([elements]));
            send.select(1, to_i64(row)).copy_(&flat.view([world, slice]));
        }
        let received = group.all_to_all(&send)?; // [rank, row, slice]
        let sum = add_in_lane_order(&received, &owners, slice);
        let slices = group.all_gather(&sum)?;
        Ok(Tensor::cat(&slices, 0).narrow(0, 0, elements).reshape(shape))
    })
}

fn add_in_lane_order(received: &Tensor, owners: &[usize], slice: i64) -> Tensor {
    let mut next = vec![0i64; owners.iter().max().map_or(0, |rank| rank + 1)];
    let mut sum: Option<Tensor> = None;
    for owner in owners {
        let term = received.select(0, to_i64(*owner)).select(0, next[*owner]);
        next[*owner] += 1;
        sum = Some(match sum {
            None => term.copy(),
            Some(before) => before + term,
        });
    }
    sum.unwrap_or_else(|| Tensor::zeros([slice], (received.kind(), received.device())))
}

/// Which rank holds each lane. Every rank sees the same table, so all refuse alike.
fn owners(
    group: &dyn Collective,
    lanes: &[(usize, Tensor)],
    lanes_total: usize,
    shape: &[i64],
    kind: Kind,
) -> Result<Vec<usize>> {
    // One more entry than lanes: the number of lanes that this rank cannot send.
    let mut mine = vec![0i64; lanes_total + 1];
    for (lane, tensor) in lanes {
        let fits = *lane < lanes_total && tensor.size() == shape && tensor.kind() == kind;
        mine[if fits { *lane } else { lanes_total }] += 1;
    }
    let table = group.all_gather(&Tensor::from_slice(&mine).to_device(group.device()))?;
    let counts = table.iter().map(Vec::<i64>::try_from).collect::<Result<Vec<_>, _>>();
    let counts = counts.map_err(|error| code::INTERNAL.error("cannot read back the lanes").caused_by(error))?;
    let refuse = |why: String| -> Error { code::COMM_MISMATCH.error(why) };
    if let Some(rank) = counts.iter().position(|count| count[lanes_total] != 0) {
        return Err(refuse(format!(
            "rank {rank} has a lane that is not of {kind:?} {shape:?} or not below {lanes_total}"
        )));
    }
    (0..lanes_total)
        .map(|lane| {
            let holders: Vec<usize> = (0..counts.len()).filter(|rank| counts[*rank][lane] != 0).collect();
            match holders[..] {
                [owner] if counts[owner][lane] == 1 => Ok(owner),
                _ => Err(refuse(format!("lane {lane} must be held once, but is held by ranks {holders:?}"))),
            }
        })
        .collect()
}

fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
