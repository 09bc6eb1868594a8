//! What MOS keeps of a class, and how its head is trained on that alone.
//!
//! A class is the mean and the spread of its features: the covariance (unbiased, with `1e-4` on the diagonal), or its
//! diagonal. The head then learns by cross-entropy from normal samples of all classes, by SGD with momentum whose rate
//! falls along half a cosine, one step per class and epoch.

use tch::{Kind, Tensor};

use super::options::Spread;

/// What is added to a covariance's diagonal.
const RIDGE: f64 = 1e-4;

/// Sums over the features of one class, from which shards are added up.
#[derive(Debug)]
pub struct Moments {
    /// How many.
    pub count: f64,
    /// `[d]`, float64.
    pub sum: Tensor,
    /// `[d, d]`, float64: products of all pairs.
    pub products: Tensor,
}

impl Moments {
    /// Of `features` `[n, d]`.
    #[must_use]
    pub fn of(features: &Tensor) -> Self {
        let features = features.detach().to_kind(Kind::Double);
        Self {
            count: features.size()[0] as f64,
            sum: features.sum_dim_intlist(0, false, None::<Kind>),
            products: features.tr().matmul(&features),
        }
    }

    /// The mean `[d]`.
    pub(crate) fn mean(&self) -> Tensor {
        &self.sum / self.count.max(1.0)
    }

    /// The unbiased covariance with the ridge `[d, d]`. A single sample has none: the ridge alone.
    pub(crate) fn covariance(&self) -> Tensor {
        let mean = self.mean();
        let ridge = Tensor::eye(self.sum.size()[0], (Kind::Double, self.sum.device())) * RIDGE;
        if self.count < 2.0 {
            return ridge;
        }
        let centred = &self.products - mean.unsqueeze(1).matmul(&mean.unsqueeze(0)) * self.count;
        centred / (self.count - 1.0) + ridge
    }

    /// What is kept of the spread: `[d, d]` or `[d]`.
    pub(crate) fn spread(&self, kind: Spread) -> Tensor {
        match kind {
            Spread::Covariance => self.covariance(),
            Spread::Variance => self.covariance().diagonal(0, 0, 1).contiguous(),
        }
    }
}

/// What standard normal numbers are multiplied with to have a spread: `[d, d]` or `[d]`.
pub(crate) fn root(spread: &Tensor) -> Tensor {
    if spread.dim() == 2 { spread.linalg_cholesky(false) } else { spread.sqrt() }
}

/// `mean + root eps` for `eps` `[n, d]`.
pub(crate) fn sample(mean: &Tensor, root: &Tensor, eps: &Tensor) -> Tensor {
    let spread = if root.dim() == 2 { eps.matmul(&root.tr()) } else { eps * root };
    spread + mean
}

/// How the head is aligned.
pub(crate) struct Alignment {
    /// Passes.
    pub(crate) epochs: u64,
    /// Rate of the first pass.
    pub(crate) lr: f64,
    /// SGD's.
    pub(crate) momentum: f64,
    /// SGD's, on weight and bias.
    pub(crate) weight_decay: f64,
}

/// Half a cosine from 1 to 0 over whole epochs.
pub(crate) fn cosine_factor(epoch: u64, epochs: u64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / epochs.max(1) as f64).cos())
}

/// A head in training: weight `[all classes, d]` and bias.
pub(crate) struct Head {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Alignment {
    /// Trains the head, in place, on what `draw` gives for an epoch: samples `[n, d]` and their classes, in the order in
    /// which they are cut into as many batches as there are classes. Classes from `classes` on are cut off. Gives the
    /// losses `[epochs, classes]` before each update.
    pub(crate) fn run(&self, head: &Head, classes: i64, draw: &mut dyn FnMut(u64) -> (Tensor, Tensor)) -> Tensor {
        let leaves = [&head.weight, &head.bias].map(|leaf| leaf.detach().copy());
        let mut buffers = leaves.each_ref().map(Tensor::zeros_like);
        let mut losses = Vec::new();
        for epoch in 0..self.epochs {
            let lr = self.lr * cosine_factor(epoch, self.epochs);
            let (samples, labels) = draw(epoch);
            let rows = samples.size()[0] / classes.max(1);
            for step in 0..classes {
                let (x, y) = (samples.narrow(0, step * rows, rows), labels.narrow(0, step * rows, rows));
                losses.push(self.step(&leaves, &mut buffers, (&x, &y), classes, lr));
            }
        }
        tch::no_grad(|| {
            head.weight.shallow_clone().copy_(&leaves[0]);
            head.bias.shallow_clone().copy_(&leaves[1]);
        });
        Tensor::from_slice(&losses).reshape([self.epochs as i64, classes])
    }

    fn step(
        &self,
        leaves: &[Tensor; 2],
        buffers: &mut [Tensor; 2],
        rows: (&Tensor, &Tensor),
        seen: i64,
        lr: f64,
    ) -> f64 {
        let (x, y) = rows;
        let [weight, bias] = leaves.each_ref().map(|leaf| leaf.detach().set_requires_grad(true));
        let logits = x.linear(&weight, Some(&bias)).narrow(1, 0, seen);
        let loss = logits.cross_entropy_loss(y, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0);
        loss.backward();
        tch::no_grad(|| {
            for ((leaf, tracked), buffer) in leaves.iter().zip([weight, bias]).zip(buffers) {
                let direction = tracked.grad() + leaf * self.weight_decay;
                let next = &*buffer * self.momentum + direction;
                buffer.copy_(&next);
                leaf.shallow_clone().copy_(&(leaf - next * lr));
            }
        });
        loss.double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Tensor {
        let values: Vec<f64> = (0..24).map(|i| f64::from(i * i % 17) / 3.0 - 1.0).collect();
        Tensor::from_slice(&values).reshape([8, 3])
    }

    #[test]
    fn a_covariance_from_shards_is_that_of_all_rows() {
        let all = features();
        let mut sum = Moments::of(&all.narrow(0, 0, 2));
        for shard in 1..4 {
            let own = Moments::of(&all.narrow(0, 2 * shard, 2));
            sum =
                Moments { count: sum.count + own.count, sum: sum.sum + own.sum, products: sum.products + own.products };
        }
        let whole = Moments::of(&all);
        assert!((sum.covariance() - whole.covariance()).abs().max().double_value(&[]) < 1e-9);
        let torch =
            all.tr().cov(1, None::<&Tensor>, None::<&Tensor>) + Tensor::eye(3, (Kind::Double, all.device())) * 1e-4;
        assert!((whole.covariance() - torch).abs().max().double_value(&[]) < 1e-9);
    }

    /// One row has no covariance, and no variance either: samples stay near it, and nothing is not a number.
    #[test]
    fn a_class_of_one_row_has_the_least_spread() {
        for rows in [0, 1] {
            let moments = Moments::of(&features().narrow(0, 2, rows));
            for (kind, dims) in [(Spread::Covariance, 2), (Spread::Variance, 1)] {
                let spread = moments.spread(kind);
                assert_eq!(spread.dim(), dims);
                let diagonal = if dims == 2 { spread.diagonal(0, 0, 1) } else { spread.shallow_clone() };
                assert!((diagonal - RIDGE).abs().max().double_value(&[]) < 1e-15, "{rows} rows, {kind:?}");
                assert!((spread.sum(Kind::Double).double_value(&[]) - 3.0 * RIDGE).abs() < 1e-15, "nothing beside it");
                assert!((root(&spread).sum(Kind::Double).double_value(&[]) - 3.0 * RIDGE.sqrt()).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn samples_have_the_root_of_the_spread() {
        let moments = Moments::of(&features());
        let covariance = moments.spread(Spread::Covariance);
        let factor = root(&covariance);
        assert!((factor.matmul(&factor.tr()) - &covariance).abs().max().double_value(&[]) < 1e-9);
        let unit = Tensor::eye(3, (Kind::Double, tch::Device::Cpu));
        let drawn = sample(&moments.mean(), &factor, &unit) - moments.mean();
        assert!((drawn - factor.tr()).abs().max().double_value(&[]) < 1e-12);
        let variance = moments.spread(Spread::Variance);
        assert!((root(&variance).square() - covariance.diagonal(0, 0, 1)).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn alignment_leaves_classes_not_yet_seen_but_for_their_decay() {
        let head = Head {
            weight: Tensor::ones([3, 2], (Kind::Double, tch::Device::Cpu)),
            bias: Tensor::zeros([3], (Kind::Double, tch::Device::Cpu)),
        };
        let alignment = Alignment { epochs: 2, lr: 0.1, momentum: 0.9, weight_decay: 0.0 };
        let (x, y) = (Tensor::from_slice(&[1.0f64, 0.0, 0.0, 1.0]).reshape([2, 2]), Tensor::from_slice(&[0i64, 1]));
        let losses = alignment.run(&head, 2, &mut |_| (x.shallow_clone(), y.shallow_clone()));
        assert_eq!(losses.size(), [2, 2]);
        assert!((losses.double_value(&[0, 0]) - 2.0f64.ln()).abs() < 1e-12);
        assert!(head.weight.get(2).equal(&Tensor::ones([2], (Kind::Double, tch::Device::Cpu))));
        assert!(head.weight.get(0).double_value(&[0]) > 1.0);
    }
}
