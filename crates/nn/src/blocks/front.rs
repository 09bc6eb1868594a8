//! The front of a stack: what turns its input into the vectors that the first block sees. Token ids become rows of a
//! table; images and spectrograms go through convolutions and get special tokens in front.

use super::{Activation, ConvSpec, EmbedSpec, NormSpec, PositionSpec};

/// A front.
#[derive(Clone, Debug)]
pub(crate) struct FrontSpec {
    /// Name of the input.
    pub(crate) input: &'static str,
    pub(crate) body: BodySpec,
    pub(crate) positions: Option<PositionSpec>,
    pub(crate) norm: Option<NormSpec>,
}

/// What it does with one sample.
#[derive(Clone, Debug)]
pub(crate) enum BodySpec {
    Tokens(EmbedSpec),
    Samples(SamplesSpec),
}

/// Convolutions over a sample, and what is put around their result.
#[derive(Clone, Debug)]
pub(crate) struct SamplesSpec {
    /// Spectrograms are `[batch, time, bins]`; the convolutions take them as images of one channel, bins first.
    pub(crate) turned: bool,
    pub(crate) convs: Vec<ConvSpec>,
    /// Behind each convolution.
    pub(crate) activation: Option<Activation>,
    /// Tensors of one vector each that stand before all others.
    pub(crate) special: Vec<String>,
    /// The tensor `[1, tokens, width]` that is added, if positions have no table of their own.
    pub(crate) added: Option<String>,
}

#[cfg(feature = "torch")]
pub(crate) use imp::Front;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{BodySpec, FrontSpec, SamplesSpec};
    use crate::blocks::Activation;
    use crate::blocks::conv::Conv;
    use crate::blocks::embedding::{Embed, Positions};
    use crate::blocks::norm::Norm;
    use crate::run::{Form, Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded front.
    #[derive(Debug)]
    pub(crate) struct Front {
        /// Name of the input.
        pub(crate) input: &'static str,
        body: Body,
        positions: Option<Positions>,
        norm: Option<Norm>,
    }

    #[derive(Debug)]
    enum Body {
        Tokens(Embed),
        Samples(Samples),
    }

    #[derive(Debug)]
    struct Samples {
        turned: bool,
        convs: Vec<Conv>,
        activation: Option<Activation>,
        special: Vec<Tensor>,
        added: Option<Tensor>,
    }

    impl Front {
        pub(crate) fn load(spec: &FrontSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let body = match &spec.body {
                BodySpec::Tokens(table) => Body::Tokens(Embed::load(*table, sites, weights)?),
                BodySpec::Samples(samples) => Body::Samples(Samples::load(samples, sites, weights)?),
            };
            let positions = spec.positions.map(|spec| Positions::load(spec, sites, weights)).transpose()?;
            let norm = spec.norm.map(|spec| Norm::load(spec, sites, weights)).transpose()?;
            Ok(Self { input: spec.input, body, positions, norm })
        }

        /// The input to `[.., width]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, input: &Tensor) -> Tensor {
            let mut hidden = match &self.body {
                Body::Tokens(table) => {
                    assert_eq!(input.size(), cx.layout.shape(), "`{}` have the layout's shape", self.input);
                    table.run(cx, input)
                }
                Body::Samples(samples) => samples.run(cx, input),
            };
            if let Some(positions) = &self.positions {
                let ids = || Tensor::zeros(cx.layout.shape(), (Kind::Int64, hidden.device()));
                let ids = if matches!(self.body, Body::Tokens(_)) { input.shallow_clone() } else { ids() };
                hidden += positions.run(cx, &ids);
            }
            match &self.norm {
                Some(norm) => norm.run(cx, &hidden),
                None => hidden,
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            match &self.body {
                Body::Tokens(table) => table.visit(see),
                Body::Samples(samples) => samples.convs.iter().for_each(|conv| conv.visit(see)),
            }
            if let Some(positions) = &self.positions {
                positions.visit(see);
            }
            if let Some(norm) = &self.norm {
                norm.visit(see);
            }
        }
    }

    impl Samples {
        fn load(spec: &SamplesSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let convs = spec.convs.iter().map(|spec| Conv::load(*spec, sites, weights)).collect::<Result<_>>()?;
            let special = spec.special.iter().map(|name| Ok(weights.get(name)?.reshape([1, 1, -1])));
            let (special, added) = (special.collect::<Result<_>>()?, spec.added.as_deref());
            let added = added.map(|name| weights.get(name)).transpose()?;
            Ok(Self { turned: spec.turned, convs, activation: spec.activation, special, added })
        }

        fn run(&self, cx: &Forward<'_>, input: &Tensor) -> Tensor {
            let mut x = if self.turned { input.transpose(1, 2).unsqueeze(1) } else { input.shallow_clone() };
            let rows = cx.layout.one_each();
            for conv in &self.convs {
                x = conv.run(&Forward { layout: &rows, ..*cx }, &x);
                if let Some(activation) = self.activation {
                    x = activation.run(&x);
                }
            }
            let x = x.flatten(2, -1).transpose(1, 2); // [n, t, d]
            let count = x.size()[0];
            let mut parts: Vec<_> = self.special.iter().map(|one| one.expand([count, 1, -1], false)).collect();
            parts.push(x);
            let mut x = Tensor::cat(&parts, 1);
            if let Some(added) = &self.added {
                x += added;
            }
            let fits = (0..cx.layout.sequences()).all(|i| cx.layout.lengths()[i] as i64 == x.size()[1]);
            assert!(fits, "samples of {} vectors have the layout of their source", x.size()[1]);
            match cx.layout.form() {
                Form::Padded { .. } => x,
                Form::Packed { .. } => x.flatten(0, 1),
            }
        }
    }
}
