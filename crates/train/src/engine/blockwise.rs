//! Activation checkpointing: the forward pass keeps the hidden states between blocks alone, and the backward pass runs
//! each block again, with a graph, when its gradient is due. One block's graph lives at a time.

use pleach_base::Result;
use pleach_nn::{Backbone, Forward, HookSet, Output, State};
use tch::{Kind, Tensor};

use super::pass::{Mode, PassInput, with_context};

/// Runs `input` forward and the gradient of `scalar` backward into the adapter's parameters. `scalar` sees the output once
/// and gives what is differentiated, or nothing.
///
/// The draws of a pass depend on step and pass alone, so that the second run of a block is the first one again.
///
/// # Errors
/// Those of `scalar`.
pub(super) fn backward(
    model: &dyn Backbone,
    hooks: &dyn HookSet,
    input: &PassInput,
    mode: Mode,
    scalar: &mut dyn FnMut(&Output) -> Result<Option<Tensor>>,
) -> Result<()> {
    with_context(model, hooks, input, mode, |cx| {
        let blocks = model.config().info().num_blocks;
        let first = cx.first_active_block(blocks);
        let mut borders = borders(model, cx, input, first, blocks);
        // Above the last border: the end of the model and the loss.
        let mut above = pop(&mut borders, first < blocks);
        let output = model.head(cx, &model.finish(cx, shallow(&above)));
        if let Some(total) = scalar(&output)?.filter(Tensor::requires_grad) {
            drop(output);
            total.backward();
        }
        for index in (first..blocks).rev() {
            let gradients = gradients(&above);
            // Below the first block that acts nobody waits for a gradient.
            let state = pop(&mut borders, index > first || first == 0);
            let below = model.block(index, cx, shallow(&state));
            push_down(&below, &gradients);
            above = state;
        }
        if first == 0 {
            push_down(&model.embed(cx, &input.inputs), &gradients(&above));
        }
        Ok(())
    })
}

/// The states before every block from `first` on, and behind the last, without graphs.
fn borders(model: &dyn Backbone, cx: &Forward<'_>, input: &PassInput, first: usize, blocks: usize) -> Vec<State> {
    tch::no_grad(|| {
        let start = (0..first).fold(model.embed(cx, &input.inputs), |state, index| model.block(index, cx, state));
        let mut borders = vec![start];
        for index in first..blocks {
            let next = model.block(index, cx, shallow(&borders[borders.len() - 1]));
            borders.push(next);
        }
        borders
    })
}

/// The last border as leaves.
fn pop(borders: &mut Vec<State>, grad: bool) -> State {
    borders.pop().map(|state| state.cut(grad)).unwrap_or_else(|| State {
        hidden: Tensor::new(),
        carry: Vec::new(),
        tables: Vec::new(),
    })
}

fn shallow(state: &State) -> State {
    let copy = |list: &[Tensor]| list.iter().map(Tensor::shallow_clone).collect();
    State { hidden: state.hidden.shallow_clone(), carry: copy(&state.carry), tables: copy(&state.tables) }
}

/// What a state's leaves were given; undefined tensors where nothing came.
fn gradients(state: &State) -> Vec<Tensor> {
    std::iter::once(&state.hidden).chain(&state.carry).map(Tensor::grad).collect()
}

/// Carries the gradients of a block's outputs into the block.
fn push_down(outputs: &State, gradients: &[Tensor]) {
    let outputs = std::iter::once(&outputs.hidden).chain(&outputs.carry);
    let pairs = outputs.zip(gradients).filter(|(output, gradient)| output.requires_grad() && gradient.defined());
    let terms: Vec<_> = pairs.map(|(output, gradient)| (output * gradient).sum(Kind::Float)).collect();
    if let Some(total) = terms.into_iter().reduce(|sum, term| sum + term) {
        total.backward();
    }
}
