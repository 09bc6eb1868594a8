//! What the hooks of one adapter tell the trainer, and each other, in the course of a pass.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pleach_nn::Peers;
use tch::{Kind, Tensor};

/// The board of one adapter. A second adapter over the same memory has a board of its own.
#[derive(Debug, Default)]
pub struct Board(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    sums: BTreeMap<usize, Tensor>,
    scores: Option<Scores>,
    crossings: Vec<Crossing>,
}

/// Rows that went to other ranks and results that came back. No graph crosses: the gradient of what came back must be
/// carried over by hand.
#[derive(Debug)]
pub struct Crossing {
    /// What was sent, with the graph behind it.
    pub sent: Tensor,
    /// What came, a leaf.
    pub received: Tensor,
    /// What was made of it, with its graph.
    pub made: Tensor,
    /// What came back, a leaf.
    pub returned: Tensor,
}

impl Crossing {
    /// Carries the gradient of what came back to those who made it, and theirs to what was sent: `total` is what is
    /// differentiated, and what is given is that and what was sent times its gradient. All ranks do this for the same
    /// crossings in the same order, the last of them first.
    #[must_use]
    pub fn carry_back(&self, peers: &dyn Peers, total: Option<Tensor>) -> Option<Tensor> {
        let zeros = |leaf: &Tensor| leaf.detach().zeros_like();
        let wanted = total.as_ref().filter(|total| total.requires_grad());
        let found = wanted.and_then(|total| Tensor::run_backward(&[total], &[&self.returned], true, false).pop());
        let gradient = found.filter(Tensor::defined).unwrap_or_else(|| zeros(&self.returned));
        let theirs = peers.swap(&gradient);
        if self.made.requires_grad() {
            (&self.made * theirs).sum(None::<Kind>).backward();
        }
        let gradient = self.received.grad();
        let gradient = peers.swap(&if gradient.defined() { gradient } else { zeros(&self.received) });
        let own = self.sent.requires_grad().then(|| (&self.sent * gradient).sum(None::<Kind>));
        match (total, own) {
            (Some(total), Some(own)) => Some(total + own),
            (total, own) => total.or(own),
        }
    }
}

/// Scores of a scoring pass, and in their place a leaf where their graph must not be walked more than once.
#[derive(Debug)]
struct Scores {
    made: Tensor,
    leaf: Option<Tensor>,
}

impl Board {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        // A panic elsewhere ends the pass that these are of.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `sums` `[width]`, with their graph, to row `row` of the sums ([`crate::AdapterConfig::sums`]).
    pub fn add(&self, row: usize, sums: Tensor) {
        let mut notes = self.notes();
        let all = match notes.sums.remove(&row) {
            Some(before) => before + sums,
            None => sums,
        };
        notes.sums.insert(row, all);
    }

    /// What was added since the last call, `[rows, width]`, and from now on nothing; `None` when nothing was.
    #[must_use]
    pub fn take_sums(&self, [rows, width]: [usize; 2]) -> Option<Tensor> {
        let sums = std::mem::take(&mut self.notes().sums);
        let any = sums.values().next()?;
        let none = Tensor::zeros([width as i64], (any.kind(), any.device()));
        let row = |row: usize| sums.get(&row).map_or_else(|| none.shallow_clone(), Tensor::shallow_clone);
        Some(Tensor::stack(&(0..rows).map(row).collect::<Vec<_>>(), 0))
    }

    /// Notes a crossing of this pass.
    pub fn cross(&self, crossing: Crossing) {
        self.notes().crossings.push(crossing);
    }

    /// The crossings since the last call, in order.
    #[must_use]
    pub fn take_crossings(&self) -> Vec<Crossing> {
        std::mem::take(&mut self.notes().crossings)
    }

    /// Puts up the scores that the hooks of the next pass act by.
    pub fn put_scores(&self, made: Tensor) {
        self.notes().scores = Some(Scores { made, leaf: None });
    }

    /// The scores.
    #[must_use]
    pub fn scores(&self) -> Option<Tensor> {
        let notes = self.notes();
        let scores = notes.scores.as_ref()?;
        Some(scores.leaf.as_ref().unwrap_or(&scores.made).shallow_clone())
    }

    /// From now on hooks see the scores as a leaf: for a backward pass in several parts.
    pub fn cut_scores(&self) {
        if let Some(scores) = &mut self.notes().scores {
            scores.leaf = Some(scores.made.detach().set_requires_grad(scores.made.requires_grad()));
        }
    }

    /// Carries what the leaf was given into what the scores were made from.
    pub fn carry_back(&self) {
        let scores = self.notes().scores.take();
        let Some(Scores { made, leaf: Some(leaf) }) = scores else { return };
        let gradient = leaf.grad();
        if made.requires_grad() && gradient.defined() {
            (made * gradient).sum(None::<Kind>).backward();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_up_until_they_are_taken() {
        let board = Board::default();
        assert!(board.take_sums([2, 1]).is_none());
        for value in [1.0f32, 2.0] {
            board.add(1, Tensor::from_slice(&[value]));
        }
        let taken = Vec::<f32>::try_from(board.take_sums([2, 1]).unwrap().flatten(0, -1)).unwrap();
        assert_eq!(taken, [0.0, 3.0]);
        assert!(board.take_sums([2, 1]).is_none());
    }

    #[test]
    fn scores_that_are_cut_get_their_gradient_at_the_end() {
        let (board, root) = (Board::default(), Tensor::from_slice(&[2.0f32]).set_requires_grad(true));
        board.put_scores(&root * &root);
        board.cut_scores();
        // Two parts, each with a graph of its own.
        for factor in [1.0, 10.0] {
            (board.scores().unwrap() * factor).sum(Kind::Float).backward();
        }
        assert!(!root.grad().defined());
        board.carry_back();
        assert_eq!(root.grad().double_value(&[0]), 44.0);
    }
}
