//! What the ranks tell each other around a step, besides the gradient. Every function is a collective call.

use pleach_base::{Result, code};
use pleach_comm::{Collective, ReduceOp};
use tch::{Kind, Tensor};

use crate::engine::Word;
use crate::stop::Wish;

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

/// What a rank says at the end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Steps done.
    pub(crate) step: u64,
    /// sha256 of the trainable parameters.
    pub(crate) digest: [u8; 32],
    pub(crate) word: Word,
    /// The lanes that it was fed, with the digest of their sample ids.
    pub(crate) fed: Vec<(u32, [u8; 32])>,
}

/// What all ranks then know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The strongest of all.
    pub(crate) wish: Wish,
    /// Of rank 0.
    pub(crate) recorded: u64,
    pub(crate) durable: u64,
    /// By lane.
    pub(crate) lane_digests: Vec<[u8; 32]>,
}

/// Words of a row before those of the lanes.
const HEAD: usize = 8;
/// Words of a digest, and of a lane: a digest, and before it whether the lane was fed.
const DIGEST: usize = 4;
const LANE: usize = DIGEST + 1;

/// Compares step and digest of all ranks and puts together what they were fed, in one exchange.
///
/// # Errors
/// `DIGEST_MISMATCH` on every rank, with the ranks that differ from rank 0; `LANE_MISMATCH` on every rank when a lane was
/// fed by no rank or by several; those of [`Collective`].
pub(crate) fn commit(group: &dyn Collective, task: &str, lanes: usize, said: &Said) -> Result<Agreed> {
    let row = Tensor::from_slice(&row_of(lanes, said)).to_device(group.device());
    let rows = group.all_gather(&row)?.iter().map(read_i64).collect::<Result<Vec<_>>>()?;
    let same = |row: &[i64]| (row[0], row[4..HEAD].to_vec());
    let differ: Vec<_> = (1..rows.len()).filter(|rank| same(&rows[*rank]) != same(&rows[0])).collect();
    if !differ.is_empty() {
        let steps: Vec<_> = rows.iter().map(|row| row[0]).collect();
        return Err(code::DIGEST_MISMATCH
            .error(format!(
                "task {task}: ranks {differ:?} hold other parameters than rank 0 (steps by rank: {steps:?})"
            ))
            .hint("every rank must run the same build on the same kind of machine; the job goes on from its newest checkpoint"));
    }
    Ok(Agreed {
        wish: rows.iter().map(|row| wish_of(row[1])).max().unwrap_or_default(),
        recorded: rows[0][2] as u64,
        durable: rows[0][3] as u64,
        lane_digests: lane_digests(task, lanes, &rows)?,
    })
}

fn row_of(lanes: usize, said: &Said) -> Vec<i64> {
    let Word { wish, recorded, durable } = said.word;
    let mut row = vec![said.step as i64, wish as i64, recorded as i64, durable as i64];
    row.extend(digest_words(&said.digest));
    row.resize(HEAD + lanes * LANE, 0);
    for (lane, digest) in &said.fed {
        if let Some(place) = row[HEAD..].chunks_mut(LANE).nth(*lane as usize) {
            // Twice by one rank is as wrong as by two.
            place[0] += 1;
            place[1..].copy_from_slice(&digest_words(digest));
        }
    }
    row
}

fn wish_of(word: i64) -> Wish {
    [Wish::GoOn, Wish::Yield, Wish::Drain].into_iter().find(|wish| *wish as i64 == word).unwrap_or(Wish::Drain)
}

fn lane_digests(task: &str, lanes: usize, rows: &[Vec<i64>]) -> Result<Vec<[u8; 32]>> {
    (0..lanes)
        .map(|lane| {
            let at = HEAD + lane * LANE;
            let fed: Vec<_> = rows.iter().map(|row| row[at]).collect();
            let feeders: Vec<_> = (0..rows.len()).filter(|rank| fed[*rank] != 0).collect();
            match feeders[..] {
                [rank] if fed[rank] == 1 => Ok(words_digest(&rows[rank][at + 1..at + LANE])),
                _ => Err(code::LANE_MISMATCH
                    .error(format!(
                        "task {task}: lane {lane} was fed by ranks {feeders:?}, {fed:?} times, instead of once"
                    ))
                    .hint("this is a defect of Pleach: the step does not count, please report it")),
            }
        })
        .collect()
}

/// A digest as numbers that can be exchanged.
pub(crate) fn digest_words(digest: &[u8; 32]) -> [i64; DIGEST] {
    std::array::from_fn(|word| i64::from_le_bytes(std::array::from_fn(|at| digest[word * 8 + at])))
}

/// And back.
pub(crate) fn words_digest(words: &[i64]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.chunks_mut(8).zip(words).for_each(|(into, word)| into.copy_from_slice(&word.to_le_bytes()));
    digest
}

pub(crate) fn read_i64(tensor: &Tensor) -> Result<Vec<i64>> {
    Vec::<i64>::try_from(&tensor.to_kind(Kind::Int64))
        .map_err(|error| code::INTERNAL.error("cannot read exchanged numbers").caused_by(error))
}

fn read_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    Vec::<f64>::try_from(&tensor.to_kind(Kind::Double))
        .map_err(|error| code::INTERNAL.error("cannot read exchanged numbers").caused_by(error))
}

#[cfg(test)]
mod tests;
