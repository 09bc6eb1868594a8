//! In-batch contrastive loss over the whole global batch, query to passage (InfoNCE).
//!
//! For query i of N: `-log softmax_j(cos(q_i, p_j) / temperature)[i]`, averaged over queries. It is one-sided: passages
//! are not asked for their query. Negatives are all other passages of the *global* batch, so the ranks exchange
//! embeddings in lane order, every rank computes the same full loss over them, and takes the gradient with respect to
//! its own rows. The sum of the parameter gradients over ranks is then the gradient of a single process; no factor of
//! the world size appears anywhere.

use tch::{Kind, Tensor};

use super::Term;

/// Name of the term; it counts queries.
pub const TERM: &str = "contrastive";

/// Unit-length rows of `[n, d]`, in float32.
pub fn normalised(embeddings: &Tensor) -> Tensor {
    let embeddings = embeddings.to_kind(Kind::Float);
    let length = embeddings.square().sum_dim_intlist(-1, true, Kind::Float).clamp_min(1e-24).sqrt();
    embeddings / length
}

/// The loss over gathered `queries` and `passages`, both `[n, d]` in the same order; passage i belongs to query i.
pub fn terms(queries: &Tensor, passages: &Tensor, temperature: f64) -> Vec<Term> {
    let similarity = normalised(queries).matmul(&normalised(passages).tr()) / temperature; // [n, n]
    let own = Tensor::arange(queries.size()[0], (Kind::Int64, queries.device()));
    vec![Term { name: TERM, sum: super::cross_entropy_sum(&similarity, &own), coefficient: 1.0 }]
}

/// The loss of scaled similarities `logits` `[n, n]` of images and texts, row i belonging to column `own[i]`: the mean of
/// both directions, image to text and text to image, as CLIP has it.
pub fn both_ways(logits: &Tensor, own: &Tensor) -> Vec<Term> {
    let sum = super::cross_entropy_sum(logits, own) + super::cross_entropy_sum(&logits.tr(), own);
    vec![Term { name: TERM, sum: sum * 0.5, coefficient: 1.0 }]
}

/// Gradients of the mean loss with respect to `queries` and `passages` (`[n, d]`, already gathered), and the sum of
/// the loss over queries. The inputs' own graphs are not touched.
pub fn cotangents(queries: &Tensor, passages: &Tensor, temperature: f64) -> (Tensor, Tensor, f64) {
    let leaf = |t: &Tensor| t.detach().to_kind(Kind::Float).set_requires_grad(true);
    let (queries, passages) = (leaf(queries), leaf(passages));
    let terms = terms(&queries, &passages, temperature);
    let sum = &terms[0].sum;
    let mean = sum / (queries.size()[0].max(1) as f64);
    let grads = Tensor::run_backward(&[mean], &[&queries, &passages], false, false);
    (grads[0].shallow_clone(), grads[1].shallow_clone(), sum.double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_loss_is_the_textbook_one() {
        let queries = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 2.0]).reshape([2, 2]);
        let passages = Tensor::from_slice(&[3.0f32, 0.0, 1.0, 1.0]).reshape([2, 2]);
        let (c, s) = (1.0f64, std::f64::consts::FRAC_1_SQRT_2);
        let row = |own: f64, other: f64| -(own / 0.5).exp().ln() + ((own / 0.5).exp() + (other / 0.5).exp()).ln();
        let expected = row(c, s) + row(s, 0.0);
        let (_, _, sum) = cotangents(&queries, &passages, 0.5);
        assert!((sum - expected).abs() < 1e-5, "{sum} instead of {expected}");
    }

    /// Cached cotangents in pieces give the parameter gradient of one graph over everything.
    #[test]
    fn two_passes_give_the_gradient_of_one() {
        tch::set_num_threads(1);
        let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).sin().reshape([6, 4]);
        let z = Tensor::arange(24, (Kind::Float, Device::Cpu)).cos().reshape([6, 4]);
        let weight = || Tensor::arange(12, (Kind::Float, Device::Cpu)).sin().reshape([4, 3]).set_requires_grad(true);
        let whole = weight();
        let loss = &terms(&x.matmul(&whole), &z.matmul(&whole), 0.05)[0].sum / 6.0;
        loss.backward();
        let cut = weight();
        let (queries, passages) = tch::no_grad(|| (x.matmul(&cut), z.matmul(&cut)));
        let (dq, dp, _) = cotangents(&queries, &passages, 0.05);
        for (at, rows) in [(0, 1), (1, 3), (4, 2)] {
            let part = |input: &Tensor, grad: &Tensor| {
                (input.narrow(0, at, rows).matmul(&cut) * grad.narrow(0, at, rows)).sum(Kind::Float).backward();
            };
            part(&x, &dq);
            part(&z, &dp);
        }
        let difference = (whole.grad() - cut.grad()).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "largest difference {difference}");
    }
}
