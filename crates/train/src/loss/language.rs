//! Causal language modelling: each position predicts the next one of its own sequence.

use tch::{Kind, Tensor};

use super::{Term, cross_entropy_sum};

/// Name of the term; it counts target tokens.
pub const TERM: &str = "causal_lm";

/// The loss of `logits` against `labels`: padded `[b, t, vocabulary]` and `[b, t]`, or packed `[tokens, vocabulary]` and
/// `[tokens]`, where the first label of each sequence is [`IGNORE`](super::IGNORE).
#[must_use]
pub fn terms(logits: &Tensor, labels: &Tensor) -> Vec<Term> {
    let (predictions, targets) = shift(logits, labels);
    vec![Term { name: TERM, sum: cross_entropy_sum(&predictions, &targets), coefficient: 1.0 }]
}

/// Target tokens that are the most probable ones.
#[must_use]
pub fn correct(logits: &Tensor, labels: &Tensor) -> f64 {
    let (predictions, targets) = shift(logits, labels);
    tch::no_grad(|| predictions.argmax(-1, false).eq_tensor(&targets).sum(Kind::Int64).int64_value(&[]) as f64)
}

/// Predictions `[n, vocabulary]` and their targets `[n]`.
pub(crate) fn shift(logits: &Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    let vocabulary = logits.size()[logits.dim() - 1];
    let length = labels.size()[labels.dim() - 1];
    let predictions = logits.narrow(-2, 0, length - 1).reshape([-1, vocabulary]);
    let targets = labels.narrow(-1, 1, length - 1).reshape([-1]);
    (predictions, targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Counts, IGNORE, total};
    use tch::Device;

    /// Uneven rows, cut into micro-batches in every way, must give the loss and gradient of the whole.
    #[test]
    fn the_loss_does_not_know_how_the_batch_was_cut() {
        tch::set_num_threads(1);
        let (rows, length, vocabulary) = (4usize, 6usize, 5i64);
        let real = [6usize, 2, 4, 3];
        let labels: Vec<i64> = (0..rows)
            .flat_map(|r| (0..length).map(move |t| if t < real[r] { ((r * 3 + t) % 5) as i64 } else { IGNORE }))
            .collect();
        let weight = Tensor::arange(vocabulary * 3, (Kind::Float, Device::Cpu)).sin().reshape([3, vocabulary]);
        let weight = weight.set_requires_grad(true);
        let x = Tensor::arange((rows * length * 3) as i64, (Kind::Float, Device::Cpu)).cos();
        let x = x.reshape([rows as i64, length as i64, 3]);
        let y = Tensor::from_slice(&labels).reshape([rows as i64, length as i64]);
        let run = |cuts: &[i64]| {
            let mut weight = weight.detach().set_requires_grad(true);
            let denominators = Counts::of(TERM, real.iter().map(|n| n - 1).sum::<usize>() as f64);
            let (mut at, mut loss) = (0, 0.0);
            for cut in cuts {
                let logits = x.narrow(0, at, *cut).matmul(&weight);
                let part = total(&terms(&logits, &y.narrow(0, at, *cut)), &denominators).unwrap();
                loss += part.double_value(&[]);
                part.backward();
                at += cut;
            }
            (loss, weight.grad().copy(), weight.zero_grad())
        };
        let (whole, whole_grad, ()) = run(&[4]);
        let direct = x.matmul(&weight).narrow(1, 0, 5).reshape([-1, vocabulary]);
        let mean = direct.cross_entropy_loss::<Tensor>(
            &y.narrow(1, 1, 5).reshape([-1]),
            None,
            tch::Reduction::Mean,
            IGNORE,
            0.0,
        );
        assert!((whole - mean.double_value(&[])).abs() < 1e-6, "one piece is the plain mean over target tokens");
        for cuts in [&[1, 1, 1, 1][..], &[2, 2], &[3, 1], &[1, 3]] {
            let (loss, grad, ()) = run(cuts);
            assert!((loss - whole).abs() < 1e-6, "{cuts:?}: {loss} instead of {whole}");
            assert!((&grad - &whole_grad).abs().max().double_value(&[]) < 1e-6, "{cuts:?}");
        }
    }
}
