//! One forward pass of one adapter over the frozen model.

use pleach_nn::{Backbone, Forward, Group, HookSet, Inputs, Layout, Output, Peers};

/// A batch on the device.
#[derive(Debug)]
pub struct PassInput {
    /// Token ids and what belongs to them.
    pub inputs: Inputs,
    /// How the sequences lie.
    pub layout: Layout,
    /// How they lie in the model's second stack, for models that have one.
    pub second: Option<Layout>,
}

impl PassInput {
    /// Sequences for a model with one stack.
    #[must_use]
    pub fn new(inputs: Inputs, layout: Layout) -> Self {
        Self { inputs, layout, second: None }
    }
}

/// Why the pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Dropout and other noise are on.
    pub train: bool,
    /// Optimiser steps done.
    pub step: u64,
    /// Number of the pass within the step: passes with equal numbers draw equal noise.
    pub pass: u32,
}

impl Mode {
    /// A pass for evaluation.
    pub const EVAL: Self = Self { train: false, step: 0, pass: 0 };
}

/// Runs `input` through `model` with `hooks` on all rows. Blocks before the first at which the adapter acts run without
/// a graph; the rest has one unless the caller holds a `no_grad` guard.
#[must_use]
pub fn forward(model: &dyn Backbone, hooks: &dyn HookSet, input: &PassInput, mode: Mode) -> Output {
    forward_with(model, hooks, input, mode, None)
}

/// [`forward`] in step with the other ranks.
pub(super) fn forward_with(
    model: &dyn Backbone,
    hooks: &dyn HookSet,
    input: &PassInput,
    mode: Mode,
    peers: Option<&dyn Peers>,
) -> Output {
    with_context(model, hooks, input, mode, peers, |cx| {
        model.score(cx, &input.inputs);
        let blocks = model.config().info().num_blocks;
        let first = cx.first_active_block(blocks);
        let prefix = || {
            let state = model.embed(cx, &input.inputs);
            (0..first).fold(state, |state, index| model.block(index, cx, state))
        };
        let state = if first > 0 { tch::no_grad(prefix) } else { prefix() };
        let state = (first..blocks).fold(state, |state, index| model.block(index, cx, state));
        model.head(cx, &model.finish(cx, state))
    })
}

/// Calls `run` with the pass of `hooks` on all rows of `input`.
pub(super) fn with_context<T>(
    model: &dyn Backbone,
    hooks: &dyn HookSet,
    input: &PassInput,
    mode: Mode,
    peers: Option<&dyn Peers>,
    run: impl FnOnce(&Forward<'_>) -> T,
) -> T {
    let groups = [Group { rows: 0..input.layout.sequences(), hooks }];
    let cx = Forward {
        sites: model.config().sites(),
        layout: &input.layout,
        second: input.second.as_ref(),
        groups: &groups,
        train: mode.train,
        step: mode.step,
        pass: mode.pass,
        peers,
    };
    run(&cx)
}
