//! Maps made of Kronecker products: `H = sum_i kron(rule_i, W_i)`, `y = x H + b` (Zhang et al. 2021; Mahabadi et al.
//! 2021), with `rule_i` `[n, n]` and `W_i` `[in / n, out / n]`, either perhaps a product of two thin factors, either
//! perhaps shared by all blocks.

use pleach_base::Result;
use pleach_nn::Init;

use super::options::{Bn, RuleInit};
use super::plan::{Owner, Tensors};
use crate::adapter::common::refuse;
use crate::plan::Keep;

/// One end of a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Down,
    Up,
}

impl End {
    /// The part of this end: `names` are those of the first and of the second map.
    pub(super) fn pick(self, names: [&'static str; 2]) -> &'static str {
        match self {
            Self::Down => names[0],
            Self::Up => names[1],
        }
    }
}

pub(super) const BIAS: [&str; 2] = ["adapter_down.b", "adapter_up.b"];
pub(super) const RULE: [&str; 2] = ["adapter_down.phm_rule", "adapter_up.phm_rule"];
pub(super) const RULE_LEFT: [&str; 2] = ["adapter_down.phm_rule_left", "adapter_up.phm_rule_left"];
pub(super) const RULE_RIGHT: [&str; 2] = ["adapter_down.phm_rule_right", "adapter_up.phm_rule_right"];
pub(super) const W: [&str; 2] = ["adapter_down.W", "adapter_up.W"];
pub(super) const W_LEFT: [&str; 2] = ["adapter_down.W_left", "adapter_up.W_left"];
pub(super) const W_RIGHT: [&str; 2] = ["adapter_down.W_right", "adapter_up.W_right"];
pub(super) const SHARED_RULE: [&str; 3] = ["phm_rule", "phm_rule_left", "phm_rule_right"];
pub(super) const SHARED_W: [&str; 2] = ["W_down", "W_up"];
pub(super) const SHARED_W_LEFT: [&str; 2] = ["W_down_left", "W_up_left"];
pub(super) const SHARED_W_RIGHT: [&str; 2] = ["W_down_right", "W_up_right"];

/// Normal with the standard deviation of Glorot's rule for a matrix `[rows, columns]`.
fn glorot(rows: usize, columns: usize) -> Init {
    Init::Normal { std: (2.0 / (rows + columns) as f32).sqrt() }
}

/// The tensors of one map.
pub(super) fn plan(bn: &Bn, end: End, input: usize, output: usize, to: &mut Tensors<'_>) -> Result<()> {
    let n = bn.phm_dim;
    if !(input.is_multiple_of(n) && output.is_multiple_of(n)) {
        return Err(refuse("phm_dim", &format!("{n} divides not both {input} and {output}, the widths of a map")));
    }
    if !bn.shared_phm_rule {
        rules(bn, [end.pick(RULE), end.pick(RULE_LEFT), end.pick(RULE_RIGHT)], 0.01, 0.01, to);
    }
    if !bn.shared_w_phm {
        larges(bn, [end.pick(W), end.pick(W_LEFT), end.pick(W_RIGHT)], input / n, output / n, to);
    }
    if bn.phm_bias {
        to.add(end.pick(BIAS), [output], Init::Zeros);
    }
    Ok(())
}

/// The tensors that all maps of an adapter share.
pub(super) fn plan_shared(bn: &Bn, hidden: usize, width: usize, to: &mut Tensors<'_>) {
    to.owner = Owner::All;
    if bn.shared_phm_rule {
        rules(bn, SHARED_RULE, bn.phm_init_range as f32, 1.0, to);
    }
    if bn.shared_w_phm {
        let (wide, narrow) = (hidden / bn.phm_dim, width / bn.phm_dim);
        for (end, input, output) in [(End::Down, wide, narrow), (End::Up, narrow, wide)] {
            larges(bn, [end.pick(SHARED_W), end.pick(SHARED_W_LEFT), end.pick(SHARED_W_RIGHT)], input, output, to);
        }
    }
}

fn rules(bn: &Bn, names: [&'static str; 3], std: f32, bound: f32, to: &mut Tensors<'_>) {
    let n = bn.phm_dim;
    let init = match bn.phm_c_init {
        RuleInit::Normal => Init::Normal { std },
        RuleInit::Uniform => Init::Uniform { bound },
    };
    let keep = if bn.learn_phm { Keep::Trained } else { Keep::Saved };
    let [whole, left, right] = names;
    if bn.factorized_phm_rule {
        to.add_kept(left, [n, n, 1], init, keep);
        to.add_kept(right, [n, 1, n], init, keep);
    } else {
        to.add_kept(whole, [n, n, n], init, keep);
    }
}

fn larges(bn: &Bn, names: [&'static str; 3], input: usize, output: usize, to: &mut Tensors<'_>) {
    let (n, r) = (bn.phm_dim, bn.phm_rank);
    let [whole, left, right] = names;
    if bn.factorized_phm_w {
        to.add(left, [n, input, r], glorot(input, r));
        to.add(right, [n, r, output], glorot(r, output));
    } else {
        to.add(whole, [n, input, output], glorot(input, output));
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::{Factor, Products};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_nn::SiteId;
    use tch::Tensor;

    use super::*;
    use crate::adapter::Parts;

    /// A tensor, perhaps as two thin factors.
    #[derive(Debug)]
    pub(crate) enum Factor {
        Whole(Tensor),
        Two(Tensor, Tensor),
    }

    impl Factor {
        fn of(parts: &Parts<'_>, site: SiteId, two: bool, names: [&str; 3]) -> Result<Self> {
            let get = |name| parts.part(site, name).map(Tensor::shallow_clone);
            Ok(if two { Self::Two(get(names[1])?, get(names[2])?) } else { Self::Whole(get(names[0])?) })
        }

        fn value(&self) -> Tensor {
            match self {
                Self::Whole(whole) => whole.shallow_clone(),
                Self::Two(left, right) => left.bmm(right),
            }
        }
    }

    /// A map of Kronecker products.
    #[derive(Debug)]
    pub(crate) struct Products {
        pub(crate) rule: Factor,
        pub(crate) large: Factor,
        pub(crate) bias: Option<Tensor>,
    }

    impl Products {
        /// `shared` is the site that the shared tensors are planned at.
        pub(in super::super) fn new(
            bn: &Bn,
            end: End,
            parts: &Parts<'_>,
            site: SiteId,
            shared: SiteId,
        ) -> Result<Self> {
            let rule = match bn.shared_phm_rule {
                true => Factor::of(parts, shared, bn.factorized_phm_rule, SHARED_RULE)?,
                false => {
                    let names = [end.pick(RULE), end.pick(RULE_LEFT), end.pick(RULE_RIGHT)];
                    Factor::of(parts, site, bn.factorized_phm_rule, names)?
                }
            };
            let large = match bn.shared_w_phm {
                true => {
                    let names = [end.pick(SHARED_W), end.pick(SHARED_W_LEFT), end.pick(SHARED_W_RIGHT)];
                    Factor::of(parts, shared, bn.factorized_phm_w, names)?
                }
                false => {
                    let names = [end.pick(W), end.pick(W_LEFT), end.pick(W_RIGHT)];
                    Factor::of(parts, site, bn.factorized_phm_w, names)?
                }
            };
            let bias = if bn.phm_bias { Some(parts.part(site, end.pick(BIAS))?.shallow_clone()) } else { None };
            Ok(Self { rule, large, bias })
        }

        /// `H` `[in, out]`.
        pub(crate) fn matrix(&self) -> Tensor {
            let (rule, large) = (self.rule.value(), self.large.value()); // [n, a, b], [n, p, q]
            let (a, b, p, q) = (rule.size()[1], rule.size()[2], large.size()[1], large.size()[2]);
            Tensor::einsum("iab,ipq->apbq", &[rule, large], None::<i64>).reshape([a * p, b * q])
        }

        /// `[.., in]` to `[.., out]`.
        pub(crate) fn run(&self, x: &Tensor) -> Tensor {
            let y = x.matmul(&self.matrix());
            match &self.bias {
                Some(bias) => y + bias,
                None => y,
            }
        }
    }
}
