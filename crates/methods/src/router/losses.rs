//! The router's own losses, made of sums over tokens, so that they are those of the global batch whatever its split.
//!
//! Balance: `E sum_e f_e P_e`, with `f_e` the slots of expert `e` per token and `P_e` its mean share (Fedus et al., *Switch
//! Transformers*, 2021; Li et al., *MixLoRA*, 2024). It is computed once over the tokens of all layers and sums over
//! slots, so that perfect balance gives the number of slots. z: the mean of `logsumexp(logits)^2` (Zoph et al., *ST-MoE*,
//! 2022). Spread: for each router the squared coefficient of variation of a sequence's shares of an expert, over sequences
//! and experts (Dou et al., *LoRAMoE*, 2024).

#[cfg(feature = "torch")]
pub(crate) use imp::{loss, spread, spread_loss, sums};

/// What the losses are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coefficients {
    pub(crate) balance: f64,
    pub(crate) z: f64,
}

/// How many sums a router with this many experts has: slots and shares of each, `logsumexp^2`, tokens.
pub(crate) fn width(experts: usize) -> usize {
    2 * experts + 2
}

/// How many more the spread is made of: sum, sum of squares, number.
pub(crate) const SPREAD: usize = 3;

#[cfg(feature = "torch")]
mod imp {
    use tch::{Kind, Tensor};

    use super::Coefficients;
    use crate::router::gating::Choice;

    /// The sums over tokens, `[width]`; each token counts as often as `weights` `[n]` says.
    pub(crate) fn sums(logits: &Tensor, choice: &Choice, weights: Option<&Tensor>) -> Tensor {
        let kind = choice.shares.kind();
        let experts = Tensor::arange(choice.shares.size()[1], (Kind::Int64, logits.device()));
        let slots = choice.experts.unsqueeze(-1).eq_tensor(&experts); // [n, k, experts]
        let slots = slots.to_kind(kind).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
        let z = logits.logsumexp([-1i64].as_slice(), true).square();
        let all = Tensor::cat(&[slots, choice.shares.shallow_clone(), z.to_kind(kind), z.ones_like().to_kind(kind)], 1);
        let all = match weights {
            Some(weights) => all * weights.to_kind(kind).unsqueeze(-1),
            None => all,
        };
        all.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)
    }

    /// The loss of these sums `[width]` over all tokens and layers.
    pub(crate) fn loss(sums: &Tensor, coefficients: Coefficients) -> Tensor {
        let experts = (sums.size()[0] - 2) / 2;
        let tokens = sums.narrow(0, 2 * experts + 1, 1).clamp_min(1.0);
        let (slots, shares) = (sums.narrow(0, 0, experts) / &tokens, sums.narrow(0, experts, experts) / &tokens);
        let balance = (slots.detach() * shares).sum(None::<Kind>) * (coefficients.balance * experts as f64);
        let z = (sums.narrow(0, 2 * experts, 1) / tokens).sum(None::<Kind>) * coefficients.z;
        balance + z
    }

    /// What the spread of one router is made of, `[SPREAD]`: `shares` `[sequences, experts]` are summed over tokens.
    pub(crate) fn spread(shares: &Tensor) -> Tensor {
        let number = Tensor::from(shares.numel() as f64).to_kind(shares.kind()).to_device(shares.device());
        Tensor::stack(&[shares.sum(None::<Kind>), shares.square().sum(None::<Kind>), number], 0)
    }

    /// The sum over routers of their spread; `sums` `[routers, .. + SPREAD]`.
    pub(crate) fn spread_loss(sums: &Tensor) -> Tensor {
        let from = sums.size()[1] - super::SPREAD as i64;
        let of = |at: i64| sums.select(1, from + at);
        let (sum, squares, number) = (of(0), of(1), of(2).clamp_min(2.0));
        let mean = &sum / &number;
        let variance = (squares - &sum * &mean) / (&number - 1.0);
        (variance / (mean.square() + 1e-10)).sum(None::<Kind>)
    }
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use tch::{Kind, Tensor};

    use super::super::gating;
    use super::*;

    #[test]
    fn perfect_balance_gives_the_number_of_slots() {
        // Token `i` prefers `i` and `i + 1`.
        let mut logits = Vec::new();
        for token in 0..4usize {
            logits.extend((0..4usize).map(|expert| match (expert + 4 - token) % 4 {
                0 => 2.0f64,
                1 => 1.0,
                _ => 0.0,
            }));
        }
        let logits = Tensor::from_slice(&logits).reshape([4, 4]);
        let sums = sums(&logits, &gating::top_k(&logits, 2), None);
        let value = |balance, z| loss(&sums, Coefficients { balance, z }).double_value(&[]);
        assert!((value(1.0, 0.0) - 2.0).abs() < 1e-12);
        let z = (2f64.exp() + 1f64.exp() + 2.0).ln().powi(2);
        assert!((value(0.0, 0.5) - 0.5 * z).abs() < 1e-12);
    }

    #[test]
    fn sums_of_parts_are_those_of_the_whole() {
        let logits = (Tensor::arange(24, (Kind::Double, tch::Device::Cpu)) * 1.3).sin().reshape([6, 4]);
        let of = |part: &Tensor| sums(part, &gating::top_k(part, 2), None);
        let parts = of(&logits.narrow(0, 0, 2)) + of(&logits.narrow(0, 2, 4));
        assert!((parts - of(&logits)).abs().max().double_value(&[]) < 1e-12);
        let weights = Tensor::from_slice(&[1i64, 1, 0, 0, 0, 0]);
        let weighted = sums(&logits, &gating::top_k(&logits, 2), Some(&weights));
        assert!((weighted - of(&logits.narrow(0, 0, 2))).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn the_spread_is_the_squared_coefficient_of_variation() {
        let shares = Tensor::from_slice(&[1.0f64, 3.0, 2.0, 6.0]).reshape([2, 2]);
        // Mean 3, variance 14 / 3.
        let found = spread_loss(&spread(&shares).unsqueeze(0)).double_value(&[]);
        assert!((found - 14.0 / 27.0).abs() < 1e-9, "{found}");
        let parts = spread(&shares.narrow(0, 0, 1)) + spread(&shares.narrow(0, 1, 1));
        assert!((parts - spread(&shares)).abs().max().double_value(&[]) < 1e-12);
    }
}
