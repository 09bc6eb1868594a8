//! Matrices as training sees them.

use tch::{Kind, Tensor};

use super::{Codebook, Codec, Per};

/// Added to the deviation that a matrix is divided by.
const TINY: f64 = 1e-5;

impl Codec {
    /// Mean and deviation (unbiased) of `[out, in]`: `[1, 1]` or `[out, 1]`.
    pub(crate) fn spread(&self, weight: &Tensor) -> (Tensor, Tensor) {
        match self.per {
            Per::Tensor => (weight.mean(weight.kind()).reshape([1, 1]), weight.std(true).reshape([1, 1])),
            Per::Row => {
                (weight.mean_dim([1i64].as_slice(), true, weight.kind()), weight.std_dim([1i64].as_slice(), true, true))
            }
        }
    }

    /// `W~` `[out, in]`, in the precision of `weight`. Its value is exactly what a file gives back; its gradient is that
    /// of the formula with the identity in place of `Q`'s.
    pub(crate) fn coded(&self, weight: &Tensor) -> Tensor {
        let Some(book) = self.book() else { return weight.shallow_clone() };
        let (mu, sigma) = self.spread(weight);
        let standard = (weight - &mu) / (&sigma + TINY);
        let codes = tch::no_grad(|| book.nearest(&standard));
        // Zero, with the gradient of what `Q` is passed straight through to.
        let through = (&standard - standard.detach()) * sigma.detach();
        sigma * codes + mu + through
    }

    /// `(W - mu) / (sigma + 1e-5)`.
    pub(crate) fn standardised(&self, weight: &Tensor) -> Tensor {
        let (mu, sigma) = self.spread(weight);
        (weight - mu) / (sigma + TINY)
    }
}

impl Codebook {
    /// Codes or thresholds as a tensor like `like`.
    pub(crate) fn tensor(values: &[f64], like: &Tensor) -> Tensor {
        Tensor::from_slice(values).to_kind(like.kind()).to_device(like.device())
    }

    /// The number of the cell that each standardised weight lies in; on a threshold the lower one. int64.
    pub(crate) fn index(&self, standard: &Tensor) -> Tensor {
        standard.bucketize(&Self::tensor(&self.thresholds, standard), false, false)
    }

    /// The code of each standardised weight; on a threshold the middle of the codes beside it.
    pub(crate) fn nearest(&self, standard: &Tensor) -> Tensor {
        let (codes, thresholds) = (Self::tensor(&self.codes, standard), Self::tensor(&self.thresholds, standard));
        let of = |right| codes.take(&standard.bucketize(&thresholds, false, right));
        (of(false) + of(true)) * 0.5
    }

    /// The codes of these numbers, in the precision of `like`.
    pub(crate) fn of_index(&self, index: &Tensor, like: &Tensor) -> Tensor {
        Self::tensor(&self.codes, like).take(&index.to_kind(Kind::Int64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Measure;
    use super::*;

    fn weight(rows: i64, columns: i64) -> Tensor {
        let values = Tensor::arange(rows * columns, (Kind::Double, tch::Device::Cpu)) * 1.7;
        (values.sin() * 0.03 + 0.01).reshape([rows, columns])
    }

    fn codec(bit: u32, per: Per) -> Codec {
        Codec { bit, codebook: Measure::L1Gauss, per }
    }

    #[test]
    fn a_matrix_has_as_many_values_as_codes() {
        for (bit, most) in [(1, 2), (2, 4), (4, 16)] {
            let coded = codec(bit, Per::Tensor).coded(&weight(9, 11).to_kind(Kind::Float));
            let (values, _, _) = coded.flatten(0, -1).internal_unique2(true, false, false);
            assert!(values.numel() <= most, "{bit}: {}", values.numel());
        }
        let same = weight(3, 4);
        assert!(codec(32, Per::Tensor).coded(&same).equal(&same));
    }

    /// `mean(W~) = mu + 0.6745 sigma (n+ - n-) / n`.
    #[test]
    fn the_mean_of_one_bit() {
        let w = weight(7, 9);
        let codec = codec(1, Per::Tensor);
        let (mu, sigma) = codec.spread(&w);
        let up = w.gt_tensor(&mu).sum(Kind::Double).double_value(&[]);
        let balance = (2.0 * up - 63.0) / 63.0;
        let code = codec.book().unwrap().codes[1];
        let expected = mu.double_value(&[0, 0]) + code * sigma.double_value(&[0, 0]) * balance;
        assert!((codec.coded(&w).mean(Kind::Double).double_value(&[]) - expected).abs() < 1e-12);
    }

    /// Finite differences of `sum(C W~)` with the codes' residuals held: `W^ + (Q - W^)` with the bracket constant.
    #[test]
    fn gradients_are_those_with_the_residual_frozen() {
        for per in [Per::Tensor, Per::Row] {
            let codec = codec(2, per);
            let w = weight(3, 5).set_requires_grad(true);
            let cotangent = (Tensor::arange(15, (Kind::Double, tch::Device::Cpu)) * 0.9).cos().reshape([3, 5]);
            (codec.coded(&w) * &cotangent).sum(Kind::Double).backward();
            let grad = w.grad();
            let plain = w.detach();
            let standard = codec.standardised(&plain);
            let residual = codec.book().unwrap().nearest(&standard) - &standard;
            let value = |w: &Tensor| {
                let (mu, sigma) = codec.spread(w);
                let coded = &sigma * (codec.standardised(w) + &residual) + mu;
                (coded * &cotangent).sum(Kind::Double).double_value(&[])
            };
            for at in 0..15 {
                let step = Tensor::zeros([15], (Kind::Double, tch::Device::Cpu));
                let _ = step.get(at).fill_(1e-6);
                let step = step.reshape([3, 5]);
                let slope = (value(&(&plain + &step)) - value(&(&plain - &step))) / 2e-6;
                let found = grad.double_value(&[at / 5, at % 5]);
                assert!((found - slope).abs() < 1e-7, "{per:?} {at}: {found} instead of {slope}");
            }
        }
    }

    #[test]
    fn a_number_on_a_threshold_is_between_and_stored_as_the_lower() {
        let book = Codebook::of(1, Measure::L1Gauss).unwrap();
        let zero = Tensor::from_slice(&[-0.1, 0.0, 0.1]);
        assert_eq!(Vec::<f64>::try_from(book.nearest(&zero)).unwrap()[1], 0.0);
        assert_eq!(Vec::<i64>::try_from(book.index(&zero)).unwrap(), [0, 0, 1]);
    }
}
