//! The ends of models of one or two stacks: those of [`super::HeadSpec`], a decoder's language model, a classifier at
//! a marked token, and the comparison of two towers.

use super::{HeadSpec, LinearSpec, MappedSpec, NormSpec};

/// An end. It sees the last stack's output unless it says otherwise.
#[derive(Clone, Debug)]
pub(crate) enum EndSpec {
    /// As in models of one stack.
    Plain(HeadSpec),
    /// Logits over the vocabulary for every token: the output times `scale`, through the map, plus the tensor `bias`.
    Language { out: LinearSpec, scale: Option<f64>, bias: Option<String> },
    /// Class logits of the marked token, through a pooler.
    Marked { mark: Mark, pooler: MappedSpec, out: LinearSpec },
    /// Class logits of the mean of all tokens but the first.
    Rest(LinearSpec),
    /// Class logits of the mean of the first two tokens, through a normalisation.
    FirstTwo { norm: NormSpec, out: LinearSpec },
    /// Similarities of the first stack's marked token and the second's first. The logarithm of what they are multiplied
    /// by is the tensor `scale`.
    Compare { mark: Mark, text: LinearSpec, image: LinearSpec, scale: String },
}

/// A token of the first stack's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The first with this number; the first of all when there is none.
    First(i64),
    /// The last with this number; the first of all when there is none.
    Last(i64),
    /// The first with the largest number.
    Largest,
}

#[cfg(feature = "torch")]
pub(crate) use imp::End;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{EndSpec, Mark};
    use crate::blocks::head::{Head, Mapped};
    use crate::blocks::linear::Linear;
    use crate::blocks::norm::Norm;
    use crate::run::{Form, Forward, Layout, OpWeights, Output, Pair, State, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded end.
    #[derive(Debug)]
    pub(crate) enum End {
        Plain(Head),
        Language { out: Linear, scale: Option<f64>, bias: Option<Tensor> },
        Marked { mark: Mark, pooler: Mapped, out: Linear },
        Rest(Linear),
        FirstTwo { norm: Norm, out: Linear },
        Compare { mark: Mark, text: Linear, image: Linear, scale: Tensor },
    }

    impl End {
        pub(crate) fn load(spec: &EndSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            Ok(match spec {
                EndSpec::Plain(head) => Self::Plain(Head::load(head, sites, weights)?),
                EndSpec::Language { out, scale, bias } => {
                    let bias = bias.as_deref().map(|name| weights.get(name)).transpose()?;
                    Self::Language { out: load(*out)?, scale: *scale, bias: bias.map(|bias| bias.flatten(0, -1)) }
                }
                EndSpec::Marked { mark, pooler, out } => {
                    Self::Marked { mark: *mark, pooler: Mapped::load(*pooler, sites, weights)?, out: load(*out)? }
                }
                EndSpec::Rest(out) => Self::Rest(load(*out)?),
                EndSpec::FirstTwo { norm, out } => {
                    Self::FirstTwo { norm: Norm::load(*norm, sites, weights)?, out: load(*out)? }
                }
                EndSpec::Compare { mark, text, image, scale } => {
                    let scale = weights.get(scale)?.to_kind(Kind::Float).exp();
                    Self::Compare { mark: *mark, text: load(*text)?, image: load(*image)?, scale }
                }
            })
        }

        /// Where in each sequence of the first input the marked token stands, `[batch]`, for ends that ask.
        pub(crate) fn marks(&self, cx: &Forward<'_>, ids: &Tensor) -> Option<Tensor> {
            let (Self::Marked { mark, .. } | Self::Compare { mark, .. }) = self else { return None };
            let flat = ids.to_kind(Kind::Int64).flatten(0, -1);
            let ids: Vec<i64> = (&flat).try_into().expect("token ids are a vector");
            let places = (0..cx.layout.sequences()).map(|i| mark.find(&ids[cx.layout.token_range(i)]) as i64);
            Some(Tensor::from_slice(&places.collect::<Vec<_>>()).to_device(flat.device()))
        }

        /// `cx` is the first stack's, `last` the last one's. `marks` is what [`End::marks`] gave.
        pub(crate) fn run(
            &self,
            cx: &Forward<'_>,
            last: &Forward<'_>,
            state: &State,
            marks: Option<&Tensor>,
        ) -> Output {
            let hidden = &state.hidden;
            // One row a sequence behind the choice of tokens.
            let rows = cx.layout.one_each();
            let single = &Forward { layout: &rows, ..*cx };
            match self {
                Self::Plain(head) => head.run(last, hidden),
                Self::Language { out, scale, bias } => {
                    let logits = match scale {
                        Some(scale) => out.run(last, &(hidden * *scale)),
                        None => out.run(last, hidden),
                    };
                    Output::Tokens(match bias {
                        Some(bias) => logits + bias,
                        None => logits,
                    })
                }
                Self::Marked { pooler, out, .. } => {
                    let pooled = pick(last.layout, hidden, marks);
                    Output::Classes(out.run(single, &pooler.run(single, &pooled)))
                }
                Self::Rest(out) => {
                    // Sequences of one length: images.
                    let all = hidden.reshape([rows.sequences() as i64, -1, *hidden.size().last().unwrap_or(&0)]);
                    let rest = all.narrow(1, 1, all.size()[1] - 1);
                    let mean = rest.mean_dim([1i64].as_slice(), false, Kind::Float).to_kind(hidden.kind());
                    Output::Classes(out.run(single, &mean))
                }
                Self::FirstTwo { norm, out } => {
                    let pooled = (last.layout.pick(hidden, |_| 0) + last.layout.pick(hidden, |_| 1)) / 2.0;
                    Output::Classes(out.run(single, &norm.run(single, &pooled)))
                }
                Self::Compare { text, image, scale, .. } => {
                    let words = pick(cx.layout, &state.carry[0], marks);
                    let text = unit(&text.run(single, &words));
                    let image = unit(&image.run(single, &last.layout.pick(hidden, |_| 0)));
                    let logits_per_image = image.matmul(&text.tr()) * scale;
                    Output::Pair(Pair { text, image, scale: scale.shallow_clone(), logits_per_image })
                }
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            match self {
                Self::Plain(head) => head.visit(see),
                Self::Language { out, .. } | Self::Rest(out) => out.visit(see),
                Self::Marked { pooler, out, .. } => {
                    pooler.visit(see);
                    out.visit(see);
                }
                Self::FirstTwo { norm, out } => {
                    norm.visit(see);
                    out.visit(see);
                }
                Self::Compare { text, image, .. } => {
                    text.visit(see);
                    image.visit(see);
                }
            }
        }
    }

    impl Mark {
        fn find(self, ids: &[i64]) -> usize {
            match self {
                Self::First(id) => ids.iter().position(|other| *other == id),
                Self::Last(id) => ids.iter().rposition(|other| *other == id),
                Self::Largest => ids.iter().max().and_then(|most| ids.iter().position(|other| other == most)),
            }
            .unwrap_or_default()
        }
    }

    /// The token at `marks` of each sequence, or its first: `[.., d]` to `[batch, d]`.
    fn pick(layout: &Layout, hidden: &Tensor, marks: Option<&Tensor>) -> Tensor {
        let Some(marks) = marks else { return layout.pick(hidden, |_| 0) };
        let starts: Vec<i64> = (0..layout.sequences()).map(|i| layout.token_range(i).start as i64).collect();
        let index = Tensor::from_slice(&starts).to_device(marks.device()) + marks;
        let flat = match layout.form() {
            Form::Padded { .. } => hidden.flatten(0, 1),
            Form::Packed { .. } => hidden.shallow_clone(),
        };
        flat.index_select(0, &index)
    }

    /// Rows of length one, float32.
    fn unit(x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        let norm = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
        x / norm
    }
}
