//! The course of a training: shrink, select, rewind, mask.

use tch::{Kind, Tensor};

use super::select::{Selected, most_changed};

/// A tensor of which few entries will move.
pub(crate) struct Maskable {
    /// Its difference to the frozen one: what is trained.
    pub(crate) change: Tensor,
    /// Its difference where the iteration began.
    pub(crate) start: Option<Tensor>,
    /// 1 where entries may move in sparse phases.
    pub(crate) mask: Tensor,
}

/// A tensor that is trained whole, such as a head's.
pub(crate) struct Whole {
    /// Its value: what is trained.
    pub(crate) now: Tensor,
    /// Where the iteration began.
    pub(crate) start: Tensor,
    /// Where the training began.
    pub(crate) anchor: Tensor,
}

/// All tensors of a training.
pub(crate) struct Ticket {
    pub(crate) maskable: Vec<Maskable>,
    pub(crate) whole: Vec<Whole>,
}

/// The pull towards the first values: `factor * sum |p - p0|`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    pub(crate) factor: f64,
    /// Whether tensors that are trained whole are pulled too.
    pub(crate) on_whole: bool,
}

impl Ticket {
    /// Shapes the gradients that lie on the trained tensors: adds the pull, and in a sparse phase takes away what does not
    /// belong to selected entries.
    pub(crate) fn shape_gradients(&self, pull: Pull, sparse: bool) {
        let _no_grad = tch::no_grad_guard();
        for Maskable { change, mask, .. } in &self.maskable {
            let mut grad = change.grad();
            if pull.factor != 0.0 {
                let _ = grad.g_add_(&(change.sign() * pull.factor));
            }
            if sparse {
                let _ = grad.g_mul_(mask);
            }
        }
        if pull.factor != 0.0 && pull.on_whole {
            for Whole { now, anchor, .. } in &self.whole {
                let _ = now.grad().g_add_(&((now - anchor).sign() * pull.factor));
            }
        }
    }

    /// Ends a full phase: `k` more entries may move, and everything is again what it was when the iteration began. Gives
    /// the smallest change that was selected.
    pub(crate) fn select(&self, k: u64) -> f64 {
        let _no_grad = tch::no_grad_guard();
        let changes: Vec<_> = self.maskable.iter().map(|tensor| tensor.change.detach()).collect();
        let masks: Vec<_> = self.maskable.iter().map(|tensor| tensor.mask.shallow_clone()).collect();
        let Selected { masks, threshold } = most_changed(&changes, &masks, k);
        for (tensor, mask) in self.maskable.iter().zip(&masks) {
            tensor.mask.shallow_clone().copy_(mask);
        }
        self.rewind();
        threshold
    }

    fn rewind(&self) {
        for Maskable { change, start, .. } in &self.maskable {
            let mut change = change.detach();
            match start {
                Some(start) => change.copy_(start),
                None => {
                    let _ = change.zero_();
                }
            }
        }
        for Whole { now, start, .. } in &self.whole {
            now.detach().copy_(start);
        }
    }

    /// Ends a sparse phase: another iteration begins here.
    pub(crate) fn begin_iteration(&self) {
        let _no_grad = tch::no_grad_guard();
        for Maskable { change, start, .. } in &self.maskable {
            if let Some(start) = start {
                start.shallow_clone().copy_(&change.detach());
            }
        }
        for Whole { now, start, .. } in &self.whole {
            start.shallow_clone().copy_(&now.detach());
        }
    }

    /// Whether no entry was selected yet.
    pub(crate) fn is_open(&self) -> bool {
        self.maskable.iter().all(|tensor| tensor.mask.sum(Kind::Float).double_value(&[]) == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn ticket(starts: bool) -> Ticket {
        let maskable = |change: &[f32]| Maskable {
            change: t(change).set_requires_grad(true),
            start: starts.then(|| t(change).zeros_like()),
            mask: t(change).zeros_like(),
        };
        let whole =
            Whole { now: t(&[5.0, 6.0]).set_requires_grad(true), start: t(&[1.0, 2.0]), anchor: t(&[1.0, 2.0]) };
        Ticket { maskable: vec![maskable(&[0.5, -3.0, 0.0]), maskable(&[0.1, 2.0])], whole: vec![whole] }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn after_the_selection_everything_is_where_it_began() {
        let ticket = ticket(false);
        assert!(ticket.is_open());
        assert_eq!(ticket.select(2), 2.0);
        assert!(!ticket.is_open());
        assert_eq!(values(&ticket.maskable[0].change), [0.0; 3]);
        assert_eq!(values(&ticket.maskable[1].change), [0.0; 2]);
        assert_eq!(values(&ticket.whole[0].now), [1.0, 2.0]);
        assert_eq!(values(&ticket.maskable[0].mask), [0.0, 1.0, 0.0]);
        assert_eq!(values(&ticket.maskable[1].mask), [0.0, 1.0]);
    }

    #[test]
    fn a_second_iteration_goes_on_from_the_first() {
        let ticket = ticket(true);
        let _ = ticket.select(1);
        tch::no_grad(|| ticket.maskable[0].change.detach().copy_(&t(&[0.0, 7.0, 0.0])));
        ticket.begin_iteration();
        tch::no_grad(|| ticket.maskable[0].change.detach().copy_(&t(&[0.3, 9.0, -0.4])));
        let _ = ticket.select(1);
        assert_eq!(values(&ticket.maskable[0].change), [0.0, 7.0, 0.0], "back to the end of the first iteration");
        assert_eq!(values(&ticket.maskable[0].mask), [0.0, 1.0, 1.0], "another entry, the old one stays");
    }

    #[test]
    fn gradients_are_pulled_then_masked() {
        let ticket = ticket(false);
        let sum = |tensor: &Tensor| tensor.sum(Kind::Float);
        (sum(&ticket.maskable[0].change) + sum(&ticket.maskable[1].change) + sum(&ticket.whole[0].now)).backward();
        ticket.maskable[0].mask.shallow_clone().copy_(&t(&[1.0, 0.0, 1.0]));
        ticket.shape_gradients(Pull { factor: 0.25, on_whole: true }, true);
        assert_eq!(values(&ticket.maskable[0].change.grad()), [1.25, 0.0, 1.0], "the sign of 0 is 0");
        assert_eq!(values(&ticket.whole[0].now.grad()), [1.25, 1.25]);
        ticket.shape_gradients(Pull { factor: 0.5, on_whole: false }, false);
        assert_eq!(values(&ticket.maskable[1].change.grad()), [0.5, 0.5], "masked before, pulled now");
        assert_eq!(values(&ticket.whole[0].now.grad()), [1.25, 1.25]);
    }
}
