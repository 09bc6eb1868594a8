//! What compositions need to know of adapters behind a part of a block: they join before the sum, not behind it.

use pleach_nn::{BaseOp, SiteCx};
use tch::{Kind, Tensor};

use super::run::Bottleneck;

/// One run of a site behind a part of a block, in float32.
pub struct Io<'a> {
    pub(crate) cx: &'a SiteCx<'a>,
    /// What the part gave.
    pub(crate) output: Tensor,
    /// The block's residual.
    pub(crate) residual: Tensor,
    base: &'a BaseOp<'a>,
    kind: Kind,
}

impl<'a> Io<'a> {
    pub(crate) fn new(cx: &'a SiteCx<'a>, x: &[Tensor], base: &'a BaseOp<'a>) -> Self {
        let (output, residual) = (x[0].to_kind(Kind::Float), x[1].to_kind(Kind::Float));
        Self { cx, output, residual, base, kind: x[0].kind() }
    }

    /// The sum with the block's residual and, where the block normalises after it, the normalisation.
    pub(crate) fn finish(&self, hidden: &Tensor) -> Tensor {
        let y = self.base.run(&[hidden.to_kind(self.kind), self.residual.to_kind(self.kind)]);
        y[0].to_kind(Kind::Float)
    }
}

/// What flows from adapter to adapter.
pub struct State {
    /// Hidden states.
    pub(crate) hidden: Tensor,
    /// What an adapter adds its result to.
    pub(crate) own: Tensor,
    /// The last adapter's result before anything was added.
    pub(crate) up: Option<Tensor>,
}

impl State {
    pub(crate) fn copy(&self) -> Self {
        let clone = Tensor::shallow_clone;
        Self { hidden: clone(&self.hidden), own: clone(&self.own), up: self.up.as_ref().map(clone) }
    }
}

/// An adapter, or a composition of adapters, behind a part of a block.
pub trait Sublayer {
    /// The adapter that decides what goes in.
    fn first(&self) -> &Bottleneck;

    /// The adapter that decides what goes out.
    fn last(&self) -> &Bottleneck;

    /// Runs it on the hidden states of `state`, which came out of the part or of the adapter before.
    fn alone(&self, io: &Io<'_>, state: State) -> State;

    /// Runs it on what its parent has made ready.
    fn within(&self, io: &Io<'_>, state: &State) -> State;
}

/// A whole run of the site.
pub(crate) fn around(unit: &dyn Sublayer, cx: &SiteCx<'_>, x: &[Tensor], base: &BaseOp<'_>) -> Vec<Tensor> {
    let io = Io::new(cx, x, base);
    let (hidden, own) = (io.output.shallow_clone(), io.residual.shallow_clone());
    let state = unit.alone(&io, State { hidden, own, up: None });
    vec![unit.last().after(&io, &state.hidden).to_kind(io.kind)]
}
