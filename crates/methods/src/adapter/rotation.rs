//! What OFT and BOFT share: blocks of rotations, and turning the inputs of a linear map by them.
//!
//! `y = W (x Q) + b`, with `x` a row and `Q` orthogonal, so that the merged weight is `W Q^T`.

#[cfg(feature = "torch")]
pub(super) use imp::{Rotation, Turned, cayley, dropped, turn_blocks};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::rng::Key;
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use crate::adapter::SiteMethod;
    use crate::adapter::common::{dense, with_weight};

    /// A rotation of a site's inputs.
    pub(crate) trait Rotation: Send {
        /// `x` `[.., in]`, float32, turned. Given a key, with the noise of a training step.
        fn turn(&self, x: &Tensor, noise: Option<Key>) -> Tensor;

        /// What each output is multiplied with before the bias, `[out]`, if anything.
        fn scale(&self) -> Option<Tensor> {
            None
        }

        /// Key of the noise.
        fn key(&self) -> Key;
    }

    /// The hook of a [`Rotation`].
    pub(crate) struct Turned<R>(pub(crate) R);

    impl<R: Rotation> SiteHook for Turned<R> {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let noise = cx.train.then(|| self.0.key().with(cx.step).with(u64::from(cx.pass)));
            let turned = self.0.turn(&x[0].to_kind(Kind::Float), noise).to_kind(x[0].kind());
            let y = base.run(&[turned]);
            let Some(scale) = self.0.scale() else { return y };
            let bias = base.weights().and_then(|weights| weights.bias.as_ref());
            let scaled = |y: &Tensor| match bias {
                Some(bias) => ((y - bias) * &scale + bias).to_kind(y.kind()),
                None => (y * &scale).to_kind(y.kind()),
            };
            y.iter().map(scaled).collect()
        }
    }

    impl<R: Rotation> SiteMethod for Turned<R> {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let inputs = (site.dims.input as i64, (Kind::Float, base.weight.device()));
            let rotation = self.0.turn(&Tensor::eye(inputs.0, inputs.1), None); // [in, in]
            let weight = dense(site, base).matmul(&rotation.tr());
            let weight = match self.0.scale() {
                Some(scale) => weight * scale.unsqueeze(1),
                None => weight,
            };
            Some(with_weight(site, base, &weight))
        }
    }

    /// The rotations `(I - S) (I + S)^-1` of skew matrices `[.., k, k]`.
    pub(crate) fn cayley(skew: &Tensor) -> Tensor {
        let one = Tensor::eye(skew.size()[skew.dim() - 1], (Kind::Float, skew.device()));
        Tensor::linalg_solve(&(&one + skew), &(&one - skew), false)
    }

    /// `x` `[.., blocks * k]` with each block multiplied by its matrix of `[blocks, k, k]`.
    pub(crate) fn turn_blocks(x: &Tensor, matrices: &Tensor) -> Tensor {
        let k = matrices.size()[1];
        let parts = x.reshape([-1, matrices.size()[0], k]).transpose(0, 1); // [blocks, rows, k]
        parts.bmm(matrices).transpose(0, 1).reshape(x.size())
    }

    /// `matrices` `[blocks, k, k]` with a share `p` of them, drawn by `key`, in place of the identity. The share is
    /// rounded down, and a single block stays.
    pub(crate) fn dropped(matrices: Tensor, p: f64, key: Key) -> Tensor {
        let (blocks, k) = (matrices.size()[0], matrices.size()[1]);
        let count = (p * blocks as f64) as usize;
        if blocks == 1 || count == 0 {
            return matrices;
        }
        let mut rng = key.rng();
        let mut order: Vec<(f32, i64)> = (0..blocks).map(|block| (rng.uniform(), block)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let chosen: Vec<i64> = order.iter().take(count).map(|(_, block)| *block).collect();
        let device = matrices.device();
        let one = Tensor::eye(k, (Kind::Float, device)).unsqueeze(0).repeat([count as i64, 1, 1]);
        matrices.index_copy(0, &Tensor::from_slice(&chosen).to_device(device), &one)
    }
}
