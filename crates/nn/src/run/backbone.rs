//! The runnable backbone, cut so that backward can be driven block by block.

use indexmap::IndexMap;
use tch::Tensor;

use super::{Forward, OpWeights};
use crate::backbone::BackboneConfig;
use crate::site::SiteId;

/// A batch as named tensors: `input_ids`, `token_type_ids` (optional). `[batch, width]` in the padded layout,
/// `[tokens]` in the packed one; int64, on the backbone's device. Lengths are the [`super::Layout`]'s.
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
    /// The other tensors through which gradients flow, such as an encoder's output in its decoder.
    pub carry: Vec<Tensor>,
    /// Tables without gradient, such as the rotation angles of the batch's positions.
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
    /// Logits over the vocabulary, `[batch, width, vocab]` or `[tokens, vocab]`.
    Tokens(Tensor),
    /// Logits over classes, `[batch, classes]`.
    Classes(Tensor),
    /// One vector a sequence, `[batch, hidden]`.
    Vectors(Tensor),
}

impl Output {
    /// The tensor, whatever it means.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Tokens(tensor) | Self::Classes(tensor) | Self::Vectors(tensor) => tensor,
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

    /// From token ids to the first block's input.
    fn embed(&self, cx: &Forward<'_>, inputs: &Inputs) -> State;

    /// Block `index`.
    fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State;

    /// What stands between the last block and the head, such as a last normalisation.
    fn finish(&self, cx: &Forward<'_>, state: State) -> State;

    /// The head.
    fn head(&self, cx: &Forward<'_>, state: &State) -> Output;

    /// All of it.
    fn forward(&self, cx: &Forward<'_>, inputs: &Inputs) -> Output {
        let mut state = self.embed(cx, inputs);
        for index in 0..self.config().info().num_blocks {
            state = self.block(index, cx, state);
        }
        let state = self.finish(cx, state);
        self.head(cx, &state)
    }
}
