//! What a model reads: names and shapes of its inputs, and how the layouts of a batch follow from them.
//!
//! Most models read `input_ids` and nothing else. A model with two stacks (an encoder and its decoder, or the two
//! towers of a contrastive model) sees the same sequences twice, in two layouts: [`crate::Forward::layout`] for the
//! first stack, [`crate::Forward::second`] for the second. Row `i` is the same sample in both, groups cut both.
//!
//! | family | first | second |
//! |---|---|---|
//! | t5, bart | `input_ids` | `decoder_input_ids` |
//! | whisper | `input_features` | `decoder_input_ids` |
//! | clip | `input_ids` | `pixel_values` |
//! | vit | `pixel_values` | |
//! | ast | `input_values` | |

/// What a model reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// Input of the only or first stack.
    pub first: Source,
    /// Input of the second stack.
    pub second: Option<Source>,
    /// How a decoder's input is made from labels; `None` for models without a decoder of their own.
    pub shift: Option<ShiftIds>,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Token ids, int64, `[batch, width]` or `[tokens]`: the layout is the batch's.
    Tokens {
        /// Name of the input.
        name: &'static str,
    },
    /// Images or spectrograms, float32, `[batch, shape..]` in both forms: every sample becomes `tokens` vectors, so
    /// that the layout follows from the number of samples ([`Source::layout`]).
    Fixed {
        /// Name of the input.
        name: &'static str,
        /// Shape of one sample.
        shape: Vec<usize>,
        /// Vectors that it becomes, special ones included.
        tokens: usize,
    },
}

/// The ids with which a decoder's input is made from labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShiftIds {
    /// `decoder_start_token_id`: the decoder's first input.
    pub start: u32,
    /// `pad_token_id`: stands where a label is -100.
    pub pad: u32,
}

impl Reads {
    /// A model of text with one stack.
    pub const TEXT: Self = Self { first: Source::Tokens { name: "input_ids" }, second: None, shift: None };

    /// A model with one stack that reads images or spectrograms.
    #[must_use]
    pub fn only(first: Source) -> Self {
        Self { first, second: None, shift: None }
    }

    /// An encoder over `first` with a decoder over `decoder_input_ids`.
    #[must_use]
    pub fn encoder_decoder(first: Source, shift: ShiftIds) -> Self {
        Self { first, second: Some(Source::Tokens { name: "decoder_input_ids" }), shift: Some(shift) }
    }

    /// Both inputs, or the one.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.first).chain(&self.second)
    }
}

impl Source {
    /// Name of the input in a batch.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tokens { name } | Self::Fixed { name, .. } => name,
        }
    }

    /// Vectors a sample, where that does not depend on the batch.
    #[must_use]
    pub fn fixed_tokens(&self) -> Option<usize> {
        match self {
            Self::Tokens { .. } => None,
            Self::Fixed { tokens, .. } => Some(*tokens),
        }
    }
}

#[cfg(feature = "torch")]
mod imp {
    use tch::{Device, Tensor};

    use super::{ShiftIds, Source};
    use crate::run::{Form, Layout};

    impl Source {
        /// The layout of these samples where it does not depend on the batch, padded (without padding) or packed;
        /// `None` for token ids, whose lengths only the caller knows.
        #[must_use]
        pub fn layout(&self, samples: Vec<u64>, packed: bool, device: Device) -> Option<Layout> {
            let tokens = self.fixed_tokens()?;
            let lengths = vec![tokens; samples.len()];
            Some(match packed {
                true => Layout::packed(lengths, samples, device),
                false => Layout::padded(lengths, tokens, samples, device),
            })
        }
    }

    impl ShiftIds {
        /// The decoder's input for `labels` (int64, -100 where no loss is wanted) that lie as `layout` says: every
        /// sequence begins with the start token and ends before its last label. This is `decoder_input_ids` as
        /// transformers makes it. Logits then stand against the *unshifted* labels:
        /// `loss = cross_entropy(logits, labels)`, position by position, unlike a causal language model's.
        ///
        /// The decoder is causal, so padded positions disturb nobody: a row's length in the decoder's layout may be
        /// the width or end at its last label.
        pub fn shift_right(self, labels: &Tensor, layout: &Layout) -> Tensor {
            let axis = labels.dim() as i64 - 1;
            let start = i64::from(self.start);
            let shifted = labels.roll([1i64].as_slice(), [axis].as_slice());
            let shifted = shifted.masked_fill(&shifted.eq(-100), i64::from(self.pad));
            match layout.form() {
                Form::Padded { .. } => {
                    let first = Tensor::full_like(&shifted.narrow(axis, 0, 1), start);
                    Tensor::cat(&[first, shifted.narrow(axis, 1, shifted.size()[1] - 1)], axis)
                }
                Form::Packed { offsets } => {
                    let starts: Vec<i64> = offsets[..layout.sequences()].iter().map(|at| *at as i64).collect();
                    shifted.index_fill(0, &Tensor::from_slice(&starts).to_device(shifted.device()), start)
                }
            }
        }
    }
}
