//! LAE: offline copies follow the online module, and all of them vote.
//!
//! `off <- a off + (1 - a) on` after every step; a class's score is the largest probability that any module gives it.
//!
//! Gao et al., *A Unified Continual Learning Framework with General Parameter-Efficient Tuning*, ICCV 2023.

use tch::{Kind, Tensor};

use super::options::Ensemble;

/// One step of an offline tensor, in place, towards the online one: written so that equal tensors stay equal to the bit.
pub(crate) fn accumulate(offline: &Tensor, online: &Tensor, decay: f64) {
    let next = offline + (online.detach() - offline) * (1.0 - decay);
    tch::no_grad(|| offline.shallow_clone().copy_(&next));
}

/// One step of a chain of copies, oldest first: the newest follows the online tensor, each older one the one behind it.
pub(crate) fn accumulate_chain(copies: &[Tensor], online: &Tensor, decay: f64) {
    for (index, copy) in copies.iter().enumerate().rev() {
        accumulate(copy, copies.get(index + 1).unwrap_or(online), decay);
    }
}

/// The decay for steps that are `ranks` times as large, so that an epoch accumulates as much as with one rank.
pub(crate) fn rescaled(decay: f64, ranks: f64) -> f64 {
    decay.powf(ranks)
}

/// The scores `[n, classes]` of the online module's logits and those of the offline ones.
pub(crate) fn scores(online: &Tensor, offline: &[Tensor], ensemble: Ensemble) -> Tensor {
    let probabilities = |logits: &Tensor| logits.softmax(-1, None::<Kind>);
    let online = probabilities(online);
    let offline: Vec<_> = offline.iter().map(probabilities).collect();
    let largest = |mut all: Vec<Tensor>| {
        let first = all.remove(0);
        all.iter().fold(first, |most, one| most.maximum(one))
    };
    match ensemble {
        Ensemble::Online => online,
        _ if offline.is_empty() => online,
        Ensemble::Offline => largest(offline),
        Ensemble::Max => largest(std::iter::once(online).chain(offline).collect()),
        Ensemble::Mean => {
            let count = 1.0 + offline.len() as f64;
            offline.iter().fold(online, |sum, one| sum + one) / count
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_constant_module_the_copy_closes_in_geometrically() {
        let (copy, online) = (Tensor::from_slice(&[3.0f64, -1.0]), Tensor::from_slice(&[1.0f64, 1.0]));
        let start = copy.copy();
        for _ in 0..7 {
            accumulate(&copy, &online, 0.9);
        }
        let left = 0.9f64.powi(7);
        let expected = start * left + &online * (1.0 - left);
        assert!((copy - expected).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn in_a_chain_the_newest_follows_the_module_and_the_older_the_newer() {
        let copies = [Tensor::from_slice(&[0.0f64]), Tensor::from_slice(&[0.0f64])];
        let online = Tensor::from_slice(&[1.0f64]);
        accumulate_chain(&copies, &online, 0.5);
        accumulate_chain(&copies, &online, 0.5);
        let value = |index: usize| copies[index].double_value(&[0]);
        assert_eq!((value(1), value(0)), (0.75, 0.5));
    }

    #[test]
    fn equal_modules_score_like_one() {
        let logits = Tensor::from_slice(&[0.3f64, -2.0, 1.0]).unsqueeze(0);
        let one = scores(&logits, &[], Ensemble::Max);
        for ensemble in [Ensemble::Max, Ensemble::Mean, Ensemble::Online, Ensemble::Offline] {
            let both = scores(&logits, &[logits.copy()], ensemble);
            assert!((&both - &one).abs().max().double_value(&[]) < 1e-15, "{ensemble:?}");
        }
    }

    #[test]
    fn the_largest_probability_counts_not_the_mean() {
        let of = |values: [f64; 2]| Tensor::from_slice(&values).log().unsqueeze(0);
        let (online, offline) = (of([0.6, 0.4]), [of([0.1, 0.9])]);
        let value = |ensemble| scores(&online, &offline, ensemble).double_value(&[0, 0]);
        assert!((value(Ensemble::Max) - 0.6).abs() < 1e-12);
        assert!((value(Ensemble::Mean) - 0.35).abs() < 1e-12);
        assert!((value(Ensemble::Offline) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_rescaled_decay_is_that_of_as_many_steps() {
        assert!((rescaled(0.9, 3.0) - 0.729).abs() < 1e-12);
    }
}
