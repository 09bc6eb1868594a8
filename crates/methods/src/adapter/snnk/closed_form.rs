//! A linear readout of features by least squares: `W = (Phi^T Phi + lambda I)^-1 Phi^T T`, without any step. The two sums
//! are over rows, so that shards of the data may be summed apart, in any number.

use pleach_base::{Result, code};
use tch::{Kind, Tensor};

/// The sums over rows that the solution needs, in float64.
#[derive(Debug)]
pub struct Normal {
    /// `Phi^T Phi` `[m, m]`.
    gram: Tensor,
    /// `Phi^T T` `[m, targets]`.
    cross: Tensor,
}

impl Normal {
    /// Of features `phi` `[rows, m]` and targets `[rows, targets]`.
    #[must_use]
    pub fn of(phi: &Tensor, targets: &Tensor) -> Self {
        let (phi, targets) = (phi.to_kind(Kind::Double), targets.to_kind(Kind::Double));
        Self { gram: phi.tr().matmul(&phi), cross: phi.tr().matmul(&targets) }
    }

    /// Of sums that were made elsewhere.
    #[must_use]
    pub fn sums(gram: &Tensor, cross: &Tensor) -> Self {
        Self { gram: gram.to_kind(Kind::Double), cross: cross.to_kind(Kind::Double) }
    }

    /// With the rows of another shard.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self { gram: &self.gram + &other.gram, cross: &self.cross + &other.cross }
    }

    /// `W` `[m, targets]`, float64. Factorised here, not by the tensor library, whose bits depend on threads.
    ///
    /// # Errors
    /// `NON_FINITE` when the sums are not finite, or `ridge` is too small for features that depend on each other.
    pub fn solve(&self, ridge: f64) -> Result<Tensor> {
        let [m, targets] = [self.cross.size()[0], self.cross.size()[1]].map(|n| usize::try_from(n).unwrap_or_default());
        let values = |tensor: &Tensor| {
            let flat = tensor.to_device(tch::Device::Cpu).contiguous().flatten(0, -1);
            Vec::<f64>::try_from(flat).map_err(|error| code::INTERNAL.error("sums of features").caused_by(error))
        };
        let (mut a, mut b) = (values(&self.gram)?, values(&self.cross)?);
        (0..m).for_each(|i| a[i * m + i] += ridge);
        factorise(&mut a, m)?;
        substitute(&a, &mut b, m, targets);
        Ok(Tensor::from_slice(&b).reshape([m as i64, targets as i64]).to_device(self.cross.device()))
    }
}

/// Cholesky's factor `L` of `a` `[m, m]`, into its lower half.
fn factorise(a: &mut [f64], m: usize) -> Result<()> {
    for j in 0..m {
        for i in j..m {
            let (left, right) = (&a[i * m..i * m + j], &a[j * m..j * m + j]);
            let sum = a[i * m + j] - left.iter().zip(right).map(|(x, y)| x * y).sum::<f64>();
            if i > j {
                a[i * m + j] = sum / a[j * m + j];
                continue;
            }
            if !(sum.is_finite() && sum > 0.0) {
                return Err(code::NON_FINITE
                    .error(format!("the sums of features have no inverse: pivot {j} is {sum}"))
                    .hint("a larger `ridge`"));
            }
            a[j * m + j] = sum.sqrt();
        }
    }
    Ok(())
}

/// `b` `[m, n]` becomes `(L L^T)^-1 b`.
fn substitute(l: &[f64], b: &mut [f64], m: usize, n: usize) {
    let mut eliminate = |i: usize, known: std::ops::Range<usize>, factor: &dyn Fn(usize) -> f64| {
        for c in 0..n {
            let sum: f64 = known.clone().map(|j| factor(j) * b[j * n + c]).sum();
            b[i * n + c] = (b[i * n + c] - sum) / l[i * m + i];
        }
    };
    (0..m).for_each(|i| eliminate(i, 0..i, &|j| l[i * m + j]));
    (0..m).rev().for_each(|i| eliminate(i, i + 1..m, &|j| l[j * m + i]));
}
