//! Activation checkpointing: the forward pass keeps the hidden states between blocks alone, and the backward pass runs
//! each block again, with a graph, when its gradient is due. One block's graph lives at a time.

use pleach_base::Result;
use pleach_nn::{Backbone, Forward, Output, Peers, State};
use tch::{Kind, Tensor};

use super::pass::{Mode, PassInput, Rider, with_context};
use super::peers::Linked;

/// Runs `input` forward and the gradient of `scalar` backward into the parameters of the adapters that share its rows.
/// `scalar` sees the output once and gives what is differentiated, or nothing. `beside` gives what the hooks left to be
/// differentiated since it was last asked. With `peers` all ranks call this together.
///
/// The draws of a pass depend on step and pass alone, so that the second run of a block is the first one again.
///
/// # Errors
/// Those of `scalar`.
pub(super) fn backward(
    model: &dyn Backbone,
    riders: &[Rider<'_>],
    input: &PassInput,
    mode: Mode,
    scalar: &mut dyn FnMut(&Output) -> Result<Option<Tensor>>,
    beside: &mut dyn FnMut() -> Option<Tensor>,
    peers: Option<&Linked<'_>>,
) -> Result<()> {
    with_context(model, riders, input, mode, peers.map(|peers| peers as &dyn Peers), |cx| {
        model.score(cx, &input.inputs);
        // Every block walks the graph behind the scores by itself, as far as this leaf.
        riders.iter().for_each(|rider| rider.adapter.board().cut_scores());
        let blocks = model.config().info().num_blocks;
        let first = cx.first_active_block(blocks);
        let mut borders = borders(model, cx, input, first, blocks);
        // What was left without a graph.
        drop(beside());
        // Above the last border: the end of the model and the loss.
        let mut above = pop(&mut borders, first < blocks);
        let output = model.head(cx, &model.finish(cx, shallow(&above)));
        let terms = [scalar(&output)?, beside()];
        drop(output);
        differentiate(riders, peers, terms);
        for index in (first..blocks).rev() {
            let gradients = gradients(&above);
            // Below the first block that acts nobody waits for a gradient.
            let state = pop(&mut borders, index > first || first == 0);
            let below = model.block(index, cx, shallow(&state));
            differentiate(riders, peers, pulled(&below, &gradients).chain([beside()]));
            above = state;
        }
        if first == 0 {
            let embedded = model.embed(cx, &input.inputs);
            differentiate(riders, peers, pulled(&embedded, &gradients(&above)).chain([beside()]));
        }
        riders.iter().for_each(|rider| rider.adapter.board().carry_back());
        Ok(())
    })
}

/// Backward from the sum of what there is, by way of other ranks where rows crossed to them.
fn differentiate(riders: &[Rider<'_>], peers: Option<&Linked<'_>>, terms: impl IntoIterator<Item = Option<Tensor>>) {
    let terms = terms.into_iter().flatten().filter(Tensor::requires_grad);
    let mut total = terms.reduce(|sum, term| sum + term);
    if let Some(peers) = peers {
        let crossings: Vec<_> = riders.iter().flat_map(|rider| rider.adapter.board().take_crossings()).collect();
        for crossing in crossings.iter().rev() {
            total = crossing.carry_back(peers, total);
        }
    }
    if let Some(total) = total.filter(Tensor::requires_grad) {
        total.backward();
    }
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

/// The gradients of a block's outputs times the outputs.
fn pulled<'s>(outputs: &'s State, gradients: &'s [Tensor]) -> impl Iterator<Item = Option<Tensor>> + 's {
    let outputs = std::iter::once(&outputs.hidden).chain(&outputs.carry);
    let pairs = outputs.zip(gradients).filter(|(output, gradient)| output.requires_grad() && gradient.defined());
    pairs.map(|(output, gradient)| Some((output * gradient).sum(Kind::Float)))
}
