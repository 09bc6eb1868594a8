//! What the ranks tell each other around a step, besides the gradient. Every function is a collective call.

use pleach_base::{Result, code};
use pleach_comm::{Collective, ReduceOp};
use tch::{Kind, Tensor};

/// Most sample ids that a rank names when something is not finite.
const NAMED_IDS: usize = 16;

/// Whether the group still stands. Local work asks this between its pieces, so that an abort need not wait for the next
/// exchange.
///
/// # Errors
/// `COMM_ABORTED` after an abort.
pub(crate) fn alive(group: &dyn Collective) -> Result<()> {
    if group.abort_handle().is_aborted() { Err(code::COMM_ABORTED.error("the gang was given up")) } else { Ok(()) }
}

/// Element-wise sums over ranks, in double precision.
///
/// # Errors
/// Those of [`Collective`].
pub(crate) fn sums(group: &dyn Collective, values: &[f64]) -> Result<Vec<f64>> {
    reduce(group, values, ReduceOp::Sum)
}

/// Element-wise maxima over ranks.
///
/// # Errors
/// Those of [`Collective`].
pub(crate) fn maxima(group: &dyn Collective, values: &[f64]) -> Result<Vec<f64>> {
    reduce(group, values, ReduceOp::Max)
}

fn reduce(group: &dyn Collective, values: &[f64], op: ReduceOp) -> Result<Vec<f64>> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let mut tensor = Tensor::from_slice(values).to_device(group.device());
    group.all_reduce(&mut tensor, op)?;
    read_f64(&tensor)
}

/// Rows `[k, d]` of each rank, in rank order: `[n, d]`. `counts` are the rows of every rank, which all ranks know.
///
/// # Errors
/// Those of [`Collective`].
pub(crate) fn gather_rows(group: &dyn Collective, rows: &Tensor, counts: &[usize]) -> Result<Tensor> {
    let most = counts.iter().copied().max().unwrap_or(0) as i64;
    let width = rows.size()[1];
    let padded = Tensor::zeros([most, width], (rows.kind(), rows.device()));
    padded.narrow(0, 0, rows.size()[0]).copy_(&rows.detach());
    let all = group.all_gather(&padded)?;
    let real: Vec<_> = all.iter().zip(counts).map(|(rows, count)| rows.narrow(0, 0, *count as i64)).collect();
    Ok(Tensor::cat(&real, 0))
}

/// Sample ids of every rank that has some, at most 16 a rank, in rank order.
///
/// # Errors
/// Those of [`Collective`].
pub(crate) fn gather_ids(group: &dyn Collective, ids: &[u64]) -> Result<Vec<u64>> {
    let mut mine = [-1i64; NAMED_IDS];
    for (slot, id) in mine.iter_mut().zip(ids) {
        *slot = *id as i64;
    }
    let all = group.all_gather(&Tensor::from_slice(&mine).to_device(group.device()))?;
    let mut found = Vec::new();
    for ids in &all {
        found.extend(read_i64(ids)?.into_iter().filter(|id| *id >= 0).map(|id| id as u64));
    }
    Ok(found)
}

/// What each rank says at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Steps done.
    pub(crate) step: u64,
    /// sha256 of the trainable parameters.
    pub(crate) digest: [u8; 32],
    /// Asks all ranks to stop here.
    pub(crate) drain: bool,
}

/// Compares step and digest of all ranks; true when any of them asks to stop.
///
/// # Errors
/// `DIGEST_MISMATCH` on every rank, with the ranks that differ from rank 0; those of [`Collective`].
pub(crate) fn commit(group: &dyn Collective, task: &str, mine: Commit) -> Result<bool> {
    let words = |bytes: &[u8]| i64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    let mut row = vec![mine.step as i64, i64::from(mine.drain)];
    row.extend(mine.digest.chunks(8).map(words));
    let mut drain = false;
    let mut rows = Vec::with_capacity(group.world());
    for other in group.all_gather(&Tensor::from_slice(&row).to_device(group.device()))? {
        let other = read_i64(&other)?;
        drain |= other[1] != 0;
        rows.push((other[0], other[2..].to_vec()));
    }
    let differ: Vec<_> = (1..rows.len()).filter(|rank| rows[*rank] != rows[0]).collect();
    if differ.is_empty() {
        return Ok(drain);
    }
    let steps: Vec<_> = rows.iter().map(|(step, _)| *step).collect();
    Err(code::DIGEST_MISMATCH
        .error(format!("task {task}: ranks {differ:?} hold other parameters than rank 0 (steps by rank: {steps:?})"))
        .hint("every rank must run the same build on the same kind of machine; the job goes on from its newest checkpoint"))
}

fn read_i64(tensor: &Tensor) -> Result<Vec<i64>> {
    Vec::<i64>::try_from(&tensor.to_kind(Kind::Int64))
        .map_err(|error| code::INTERNAL.error("cannot read exchanged numbers").caused_by(error))
}

fn read_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    Vec::<f64>::try_from(&tensor.to_kind(Kind::Double))
        .map_err(|error| code::INTERNAL.error("cannot read exchanged numbers").caused_by(error))
}
