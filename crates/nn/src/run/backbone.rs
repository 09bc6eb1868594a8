//! The runnable backbone, cut so that backward can be driven block by block.

use indexmap::IndexMap;
use tch::Tensor;

use super::{Forward, OpWeights, SCORING_PASS, ScoredPass};
use crate::backbone::BackboneConfig;
use crate::site::SiteId;

/// A batch as named tensors, on the backbone's device: those of [`crate::Reads`], and `token_type_ids` where the family
/// has them. Ids are int64, `[batch, width]` in the padded layout, `[tokens]` in the packed one; `decoder_input_ids` lie
/// in the second layout; without them a decoder reads `input_ids` shifted right, as for classification. Images and spectrograms are `[batch, ..]` in both forms. Lengths are the [`super::Layout`]s'.
/// `features`, float, `[.., width]` over the tokens, are what tokens of other modalities than text bring with them; hooks
/// at the token table see them as its second input.
#[derive(Debug, Default)]
pub struct Inputs(pub IndexMap<String, Tensor>);

impl Inputs {
    /// A batch of token ids.
    #[must_use]
    pub fn ids(ids: Tensor) -> Self {
        Self(IndexMap::from([("input_ids".to_owned(), ids)]))
    }

    /// Adds a named tensor.
    #[must_use]
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.0.insert(name.to_owned(), tensor);
        self
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }
}

/// What flows from block to block.
#[derive(Debug)]
pub struct State {
    /// `[batch, width, hidden]` or `[tokens, hidden]`.
    pub hidden: Tensor,
    /// The other tensors through which gradients may flow, such as an encoder's output in its decoder. Their number
    /// changes from block to block, and a block need not use all of them.
    pub carry: Vec<Tensor>,
    /// Tables without gradient, such as the rotation angles of the batch's positions or the second stack's input.
    pub tables: Vec<Tensor>,
}

impl State {
    /// The same values cut off from the graph behind them: `hidden` and `carry` are new leaves, which require a gradient
    /// when `grad` says so. What a block-wise backward pass keeps at a border.
    #[must_use]
    pub fn cut(&self, grad: bool) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(grad);
        Self {
            hidden: leaf(&self.hidden),
            carry: self.carry.iter().map(leaf).collect(),
            tables: self.tables.iter().map(Tensor::shallow_clone).collect(),
        }
    }
}

/// What a model gives.
#[derive(Debug)]
pub enum Output {
    /// Logits over the vocabulary or over classes for every token, `[batch, width, n]` or `[tokens, n]`; the decoder's
    /// tokens where there is one.
    Tokens(Tensor),
    /// Logits over classes, `[batch, classes]`.
    Classes(Tensor),
    /// One vector a sequence, `[batch, hidden]`.
    Vectors(Tensor),
    /// Two towers that are compared.
    Pair(Pair),
}

/// Texts and images of a contrastive model, vectors of length one. The loss of transformers is the mean of
/// `cross_entropy(logits_per_image, 0..batch)` and the same of its transpose.
#[derive(Debug)]
pub struct Pair {
    /// Texts, `[batch, width]`, float32.
    pub text: Tensor,
    /// Images, `[batch, width]`, float32.
    pub image: Tensor,
    /// What similarities are multiplied with, `[]`, float32.
    pub scale: Tensor,
    /// Scaled similarities, `[images, texts]`; `logits_per_text` is the transpose.
    pub logits_per_image: Tensor,
}

impl Output {
    /// The tensor, whatever it means: what transformers calls `logits`, or `logits_per_image`.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Tokens(tensor) | Self::Classes(tensor) | Self::Vectors(tensor) => tensor,
            Self::Pair(pair) => &pair.logits_per_image,
        }
    }
}

/// A frozen model that runs. No tensor of it ever requires a gradient.
pub trait Backbone: Send {
    /// What it was built from.
    fn config(&self) -> &dyn BackboneConfig;

    /// The frozen weights of a site, as stored; `None` at sites without.
    fn weights(&self, site: SiteId) -> Option<&OpWeights>;

    /// Where its tensors are.
    fn device(&self) -> tch::Device;

    /// From the inputs to the first block's input. The second stack's input waits in [`State::tables`] and is embedded
    /// by that stack's first block.
    fn embed(&self, cx: &Forward<'_>, inputs: &Inputs) -> State;

    /// Block `index`: those of the first stack, then those of the second.
    fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State;

    /// What stands between the last block and the head, such as a last normalisation.
    fn finish(&self, cx: &Forward<'_>, state: State) -> State;

    /// The head.
    fn head(&self, cx: &Forward<'_>, state: &State) -> Output;

    /// The pass that comes before `cx` where a group's hooks ask for one ([`crate::HookSet::scoring`]): all of the model
    /// but its head, without gradient.
    fn score(&self, cx: &Forward<'_>, inputs: &Inputs) {
        if cx.groups.iter().all(|group| group.hooks.scoring().is_none()) {
            return;
        }
        let hidden = tch::no_grad(|| {
            let cx = Forward { pass: SCORING_PASS, ..*cx };
            let embedded = self.embed(&cx, inputs);
            let blocks = 0..self.config().info().num_blocks;
            let last = blocks.fold(embedded, |state, index| self.block(index, &cx, state));
            self.finish(&cx, last).hidden
        });
        let Forward { layout, train, step, pass, .. } = *cx;
        for group in cx.groups {
            let Some(scoring) = group.hooks.scoring() else { continue };
            let (rows, hidden) = (layout.rows(group.rows.clone()), layout.narrow(&hidden, group.rows.clone()));
            scoring.scored(&ScoredPass { layout: &rows, train, step, pass }, &hidden);
        }
    }

    /// All of it.
    fn forward(&self, cx: &Forward<'_>, inputs: &Inputs) -> Output {
        self.score(cx, inputs);
        let mut state = self.embed(cx, inputs);
        for index in 0..self.config().info().num_blocks {
            state = self.block(index, cx, state);
        }
        let state = self.finish(cx, state);
        self.head(cx, &state)
    }
}
