//! One forward pass over the frozen model: of one adapter, or of several, each on its own rows.

use pleach_methods::Adapter;
use pleach_nn::{Backbone, Forward, Group, HookSet, Inputs, Layout, Output, Peers, Scoring, SiteHook, SiteId};

use super::task::Task;

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

/// The next sequences of a pass, with the adapter that acts on them and the step of its training.
#[derive(Clone, Copy)]
pub(super) struct Rider<'a> {
    pub(super) adapter: &'a Adapter,
    sequences: usize,
    step: u64,
}

impl<'a> Rider<'a> {
    pub(super) fn new(task: &'a Task, sequences: usize) -> Self {
        Self { adapter: &task.setup.adapter, sequences, step: task.step }
    }
}

impl HookSet for Rider<'_> {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.adapter.at(site)
    }

    fn step(&self) -> Option<u64> {
        Some(self.step)
    }

    fn scoring(&self) -> Option<&dyn Scoring> {
        self.adapter.scoring()
    }
}

fn groups<'a>(riders: &'a [Rider<'a>]) -> Vec<Group<'a>> {
    let ends = riders.iter().scan(0, |end, rider| {
        *end += rider.sequences;
        Some(*end)
    });
    riders.iter().zip(ends).map(|(rider, end)| Group { rows: end - rider.sequences..end, hooks: rider }).collect()
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
    let groups = [Group { rows: 0..input.layout.sequences(), hooks }];
    through(model, &context(model, &groups, input, mode, peers), input)
}

/// [`forward`] with several adapters, each on its own rows.
pub(super) fn forward_of(model: &dyn Backbone, riders: &[Rider<'_>], input: &PassInput, mode: Mode) -> Output {
    through(model, &context(model, &groups(riders), input, mode, None), input)
}

fn through(model: &dyn Backbone, cx: &Forward<'_>, input: &PassInput) -> Output {
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
}

/// Calls `run` with the pass of `riders`, who share the rows of `input`.
pub(super) fn with_context<T>(
    model: &dyn Backbone,
    riders: &[Rider<'_>],
    input: &PassInput,
    mode: Mode,
    peers: Option<&dyn Peers>,
    run: impl FnOnce(&Forward<'_>) -> T,
) -> T {
    run(&context(model, &groups(riders), input, mode, peers))
}

fn context<'a>(
    model: &'a dyn Backbone,
    groups: &'a [Group<'a>],
    input: &'a PassInput,
    mode: Mode,
    peers: Option<&'a dyn Peers>,
) -> Forward<'a> {
    Forward {
        sites: model.config().sites(),
        layout: &input.layout,
        second: input.second.as_ref(),
        groups,
        train: mode.train,
        step: mode.step,
        pass: mode.pass,
        peers,
    }
}
