//! Expert parallelism: every rank computes some of the experts, for the rows of all ranks.
//!
//! Rows are sorted by expert, so that what a rank is given is one piece of them. Pieces are filled up to the largest, since
//! all must have one size. What comes back lies as what was sent. Every rank holds all experts' parameters: what is split
//! is the work, and the gradients of an expert come to be on one rank, whose sum over ranks is the same as ever.

use std::ops::Range;

use pleach_nn::Peers;
use tch::Tensor;

use crate::adapter::{Board, Crossing};

/// Rows of experts: inputs `[m, width]` sorted by expert, rows of each expert, an id for each row, and whether gradients
/// are wanted, which all ranks say alike.
pub(crate) struct Batch {
    pub(crate) inputs: Tensor,
    pub(crate) counts: Vec<i64>,
    pub(crate) ids: Vec<u64>,
    pub(crate) learns: bool,
}

/// The experts that a rank computes.
fn share(experts: usize, rank: usize, world: usize) -> Range<usize> {
    rank * experts / world..(rank + 1) * experts / world
}

/// The results of `run` for all rows `[m, out]`, each computed by the rank of its expert. `run` may be given no rows. A
/// collective call.
pub(crate) fn results(peers: &dyn Peers, board: &Board, batch: &Batch, run: impl FnOnce(&Batch) -> Tensor) -> Tensor {
    let (rank, world, experts) = (peers.rank(), peers.world(), batch.counts.len());
    let all = peers.numbers(&batch.counts);
    let rows = |from: usize, to: usize| all[from][share(experts, to, world)].iter().sum::<i64>();
    let pairs = (0..world).flat_map(|from| (0..world).map(move |to| (from, to)));
    let piece = pairs.map(|(from, to)| rows(from, to)).max().unwrap_or(0).max(1);
    let mine: Vec<i64> = (0..world).map(|to| rows(rank, to)).collect();
    let learns = batch.learns;

    let sent = pieces(&batch.inputs, &mine, piece);
    let ids: Vec<i64> = batch.ids.iter().map(|id| id.cast_signed()).collect();
    let ids = pieces(&Tensor::from_slice(&ids).to_device(sent.device()).unsqueeze(1), &mine, piece);
    let received = peers.swap(&sent.detach()).set_requires_grad(learns);
    let ids = Vec::<i64>::try_from(peers.swap(&ids).flatten(0, -1)).unwrap_or_default();

    // Where the rows of each of my experts lie, rank by rank.
    let (mut places, mut counts) = (Vec::new(), vec![0; experts]);
    for expert in share(experts, rank, world) {
        for (from, theirs) in all.iter().enumerate() {
            let before: i64 = theirs[share(experts, rank, world).start..expert].iter().sum();
            let start = from as i64 * piece + before;
            places.extend(start..start + theirs[expert]);
            counts[expert] += theirs[expert];
        }
    }
    let index = Tensor::from_slice(&places).to_device(received.device());
    let ids = places.iter().map(|place| ids[*place as usize].cast_unsigned()).collect();
    let made = run(&Batch { inputs: received.index_select(0, &index), counts, ids, learns });
    let width = made.size()[1];
    let made = Tensor::zeros([world as i64 * piece, width], (made.kind(), made.device())).index_copy(0, &index, &made);
    let returned = peers.swap(&made.detach()).set_requires_grad(learns);
    let parts: Vec<_> =
        mine.iter().enumerate().map(|(to, count)| returned.narrow(0, to as i64 * piece, *count)).collect();
    let results = Tensor::cat(&parts, 0);
    if learns {
        board.cross(Crossing { sent, received, made, returned });
    }
    results
}

/// `[m, width]` cut into pieces of these numbers of rows, each filled up to `piece`.
fn pieces(rows: &Tensor, counts: &[i64], piece: i64) -> Tensor {
    let width = rows.size()[1];
    let mut parts = Vec::new();
    let mut next = 0;
    for count in counts {
        parts.push(rows.narrow(0, next, *count));
        parts.push(Tensor::zeros([piece - count, width], (rows.kind(), rows.device())));
        next += count;
    }
    Tensor::cat(&parts, 0)
}
