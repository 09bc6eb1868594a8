//! Invertible maps between halves of a vector, behind the embeddings; their inverses before the output head (MAD-X,
//! Pfeiffer et al. 2020).
//!
//! NICE (Dinh et al. 2014): `y1 = x1 + F(x2)`, `y2 = x2 + G(y1)`. GLOW (Kingma and Dhariwal 2018):
//! `(s, t) = S2(x2)`, `y1 = e(s) x1 + t`, `(s, t) = S1(y1)`, `y2 = e(s) x2 + t`, with `e(s) = exp(0.636 c atan(s / c))`,
//! `c = 5`. `F`, `G`, `S1`, `S2` are two affine maps with an activation between.
//!
//! AdapterHub's GLOW block cuts batches of sequences along the tokens and cannot run; its tensors are read and written
//! here, and run along the channels, as its paper means it.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, HeadKind, Init, Role, Site};

use super::options::{Bn, Coupling};
use super::plan::{Owner, Tensors};
use crate::adapter::common::refuse;
use crate::plan::Plan;

const NICE: [[&str; 4]; 2] =
    [["F.0.weight", "F.0.bias", "F.2.weight", "F.2.bias"], ["G.0.weight", "G.0.bias", "G.2.weight", "G.2.bias"]];
const GLOW: [[&str; 4]; 2] = [
    ["s1.0.weight", "s1.0.bias", "s1.2.weight", "s1.2.bias"],
    ["s2.0.weight", "s2.0.bias", "s2.2.weight", "s2.2.bias"],
];

/// The site behind the embeddings and, where the output is over the vocabulary, that of the head.
///
/// # Errors
/// `METHOD_CONFIG` when the model has no single place behind its embeddings.
pub(super) fn sites(model: &dyn BackboneConfig) -> Result<(&Site, Option<&Site>)> {
    let mut first = model.sites().with_role(Role::BlockIn).filter(|site| site.block == Some(0));
    let (front, second) = (first.next(), first.next());
    let (Some(front), None) = (front, second) else {
        return Err(code::METHOD_CONFIG
            .error(format!("inv_adapter: {} has no single place behind its embeddings", model.info().class))
            .hint("leave inv_adapter out"));
    };
    let words = matches!(model.info().head, HeadKind::CausalLm | HeadKind::MaskedLm | HeadKind::Seq2SeqLm);
    Ok((front, words.then(|| model.sites().with_role(Role::Head).next()).flatten()))
}

/// Adds the tensors and sites.
pub(super) fn plan(bn: &Bn, kind: Coupling, model: &dyn BackboneConfig, plan: &mut Plan) -> Result<()> {
    let (front, head) = sites(model)?;
    let hidden = front.dims.output;
    if head.is_some_and(|head| head.dims.input != hidden) {
        return Err(refuse("inv_adapter", "hidden states change their width before the output head"));
    }
    let (first, second) = (hidden / 2, hidden - hidden / 2);
    let (names, sizes) = match kind {
        Coupling::Nice => (NICE, [(second, first), (first, second)]),
        Coupling::Glow => (GLOW, [(first, 2 * second), (second, 2 * first)]),
    };
    let mut to = Tensors { list: &mut plan.tensors, site: front, owner: Owner::Coupling };
    for ([w0, b0, w2, b2], (input, output)) in names.into_iter().zip(sizes) {
        let inner = (input as f64 / bn.inv_adapter_reduction_factor.unwrap_or(2.0)).floor() as usize;
        if inner == 0 {
            return Err(refuse("inv_adapter_reduction_factor", &format!("leaves nothing of {input} channels")));
        }
        to.add(w0, [inner, input], Init::Normal { std: 0.02 });
        to.add(b0, [inner], Init::Zeros);
        to.add(w2, [output, inner], Init::Normal { std: 0.02 });
        to.add(b2, [output], Init::Zeros);
    }
    plan.sites.push(front.id);
    plan.sites.extend(head.map(|head| head.id));
    Ok(())
}

#[cfg(feature = "torch")]
pub(super) use imp::hooks;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::{Result, code};
    use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::{Bn, Coupling, GLOW, NICE};
    use crate::adapter::common::Activation;
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// Two affine maps with an activation between.
    struct Net {
        tensors: [Tensor; 4],
        activation: Activation,
    }

    impl Net {
        fn run(&self, x: &Tensor) -> Tensor {
            let [w0, b0, w2, b2] = &self.tensors;
            self.activation.run(&x.linear(w0, Some(b0))).linear(w2, Some(b2))
        }

        /// The result as logarithm of a scale and a shift.
        fn affine(&self, x: &Tensor) -> (Tensor, Tensor) {
            const CLAMP: f64 = 5.0;
            let both = self.run(x);
            let width = both.size().last().copied().unwrap_or_default() / 2;
            let (scale, shift) = (both.narrow(-1, 0, width), both.narrow(-1, width, width));
            (((scale / CLAMP).atan() * (0.636 * CLAMP)).exp(), shift)
        }
    }

    struct Block {
        kind: Coupling,
        nets: [Net; 2],
    }

    impl Block {
        fn forward(&self, x: &Tensor) -> Tensor {
            let (x1, x2) = halves(x);
            let [first, second] = &self.nets;
            let (y1, y2) = match self.kind {
                Coupling::Nice => {
                    let y1 = x1 + first.run(&x2);
                    let y2 = x2 + second.run(&y1);
                    (y1, y2)
                }
                Coupling::Glow => {
                    let (scale, shift) = second.affine(&x2);
                    let y1 = scale * x1 + shift;
                    let (scale, shift) = first.affine(&y1);
                    (y1, scale * x2 + shift)
                }
            };
            Tensor::cat(&[y1, y2], -1)
        }

        fn inverse(&self, y: &Tensor) -> Tensor {
            let (y1, y2) = halves(y);
            let [first, second] = &self.nets;
            let (x1, x2) = match self.kind {
                Coupling::Nice => {
                    let x2 = y2 - second.run(&y1);
                    (y1 - first.run(&x2), x2)
                }
                Coupling::Glow => {
                    let (scale, shift) = first.affine(&y1);
                    let x2 = (y2 - shift) / scale;
                    let (scale, shift) = second.affine(&x2);
                    ((y1 - shift) / scale, x2)
                }
            };
            Tensor::cat(&[x1, x2], -1)
        }
    }

    fn halves(x: &Tensor) -> (Tensor, Tensor) {
        let width = x.size().last().copied().unwrap_or_default();
        (x.narrow(-1, 0, width / 2), x.narrow(-1, width / 2, width - width / 2))
    }

    struct Front(Block);

    impl SiteHook for Front {
        fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            y.iter().map(|y| self.0.forward(&y.to_kind(Kind::Float)).to_kind(y.kind())).collect()
        }
    }

    struct Back(Block);

    impl SiteHook for Back {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let back: Vec<_> = x.iter().map(|x| self.0.inverse(&x.to_kind(Kind::Float)).to_kind(x.kind())).collect();
            base.run(&back)
        }
    }

    /// No weight of the model can hold these.
    macro_rules! unmergeable {
        ($($hook:ty),*) => {$(impl SiteMethod for $hook {
            fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
                None
            }
        })*};
    }
    unmergeable! { Front, Back }

    /// Hooks at the two sites of the plan.
    pub(in super::super) fn hooks(bn: &Bn, kind: Coupling, parts: &Parts<'_>, to: &mut Hooks) -> Result<()> {
        let of = |role| parts.plan.sites.iter().copied().find(|site| parts.site(*site).role == role);
        let missing = || code::INTERNAL.error("no site behind the embeddings is planned");
        let front = of(Role::BlockIn).ok_or_else(missing)?;
        let activation = Activation::parse("non_linearity", &bn.non_linearity)?;
        let net = |names: [&str; 4]| -> Result<Net> {
            let [a, b, c, d] = names.map(|name| parts.part(front, name).map(Tensor::shallow_clone));
            Ok(Net { tensors: [a?, b?, c?, d?], activation })
        };
        let block = || -> Result<Block> {
            let [first, second] = match kind {
                Coupling::Nice => NICE,
                Coupling::Glow => GLOW,
            };
            Ok(Block { kind, nets: [net(first)?, net(second)?] })
        };
        to.insert(front, Box::new(Front(block()?)));
        if let Some(head) = of(Role::Head) {
            to.insert(head, Box::new(Back(block()?)));
        }
        Ok(())
    }
}
