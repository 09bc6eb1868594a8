//! Backward driven block by block is the ordinary one.

use pleach_nn::{Forward, Group, Precision, State};
use tch::{Kind, Tensor};

use crate::support::{Additive, Hooks, assert_near, batch, model, real};

#[test]
fn backward_by_blocks_gives_the_same_gradients() {
    let (model, batch) = (model("llama-lora", None, Precision::Fp32), batch(&[6, 4, 5]));
    let at = |path: &str| model.config.sites().by_path(path).unwrap().id;
    let new = |i: usize| Tensor::full([64, 64], 0.001 * (i + 1) as f64, tch::kind::FLOAT_CPU).set_requires_grad(true);
    let leaves = [new(0), new(1)];
    let hooks = Hooks::default()
        .with(at("model.layers.0.self_attn.q_proj"), Additive(leaves[0].shallow_clone()))
        .with(at("model.layers.1.self_attn.q_proj"), Additive(leaves[1].shallow_clone()));
    let groups = [Group { rows: 0..3, hooks: &hooks }];
    let (layout, inputs) = &batch.packed;
    let cx = Forward::eval(model.config.sites(), layout, &groups);
    let loss = |state: State| {
        let state = model.backbone.finish(&cx, state);
        real(layout, model.backbone.head(&cx, &state).tensor()).sin().sum(Kind::Float)
    };

    let mut state = model.backbone.embed(&cx, inputs);
    for index in 0..2 {
        state = model.backbone.block(index, &cx, state);
    }
    let whole = Tensor::run_backward(&[loss(state)], &leaves, false, false);

    // Forward without a graph, keeping what enters each block; then each block again, with one.
    let mut borders = Vec::new();
    let last = tch::no_grad(|| {
        let mut state = model.backbone.embed(&cx, inputs);
        for index in 0..2 {
            borders.push(state.cut(false));
            state = model.backbone.block(index, &cx, state);
        }
        state
    });
    let top = last.cut(true);
    let leaf = top.hidden.shallow_clone();
    let mut grad = Tensor::run_backward(&[loss(top)], &[&leaf], false, false).remove(0);
    let mut found = Vec::new();
    for (index, border) in borders.into_iter().enumerate().rev() {
        let enter = border.cut(true);
        let below = enter.hidden.shallow_clone();
        let out = model.backbone.block(index, &cx, enter).hidden;
        let mut grads =
            Tensor::run_backward(&[(out * &grad).sum(Kind::Float)], &[&leaves[index], &below], false, false);
        grad = grads.remove(1);
        found.insert(0, grads.remove(0));
    }
    for (found, expected) in found.iter().zip(&whole) {
        assert!(expected.abs().max().double_value(&[]) > 1e-4);
        assert_near(found, expected, 1e-6);
    }
}
