//! Groups share one run and do not see each other; hooks that change the operation run alone.

use pleach_nn::{BaseOp, Forward, Group, NoHooks, OpWeights, Precision, Replaced, SiteCx, SiteHook};
use tch::Tensor;

use crate::support::{Additive, Hooks, Prefix, Sharpen, assert_near, batch, distance, model, real, run, tiny};

fn leaf(shape: &[i64], shift: f64) -> Tensor {
    let values = Tensor::arange(shape.iter().product::<i64>(), tch::kind::FLOAT_CPU) + shift;
    (values.sin() * 0.1).reshape(shape).set_requires_grad(true)
}

#[test]
fn a_groups_gradients_are_those_it_has_alone() {
    let (model, both) = (model("llama-lora", None, Precision::Fp32), batch(&[6, 4, 6]));
    let at = |path: &str| model.config.sites().by_path(path).unwrap().id;
    let (first, second, third) = (leaf(&[64, 64], 0.0), leaf(&[64, 176], 1.0), leaf(&[2, 2, 16], 2.0));
    let a = Hooks::default()
        .with(at("model.layers.0.self_attn.q_proj"), Additive(first.shallow_clone()))
        .with(at("model.layers.1.self_attn@kv"), Prefix { key: third.shallow_clone(), value: third.shallow_clone() });
    let b = Hooks::default().with(at("model.layers.0.mlp.up_proj"), Additive(second.shallow_clone()));
    for batch in [&both.padded, &both.packed] {
        let groups = [Group { rows: 0..2, hooks: &a }, Group { rows: 2..3, hooks: &b }];
        let loss = real(&batch.0, &run(&model, batch, &groups)).sin().sum(tch::Kind::Float);
        let together = Tensor::run_backward(&[loss], &[&first, &second, &third], false, false);

        let part = |rows: std::ops::Range<usize>| {
            let ids = batch.0.narrow(batch.1.get("input_ids").unwrap(), rows.clone());
            (batch.0.rows(rows), pleach_nn::Inputs::ids(ids))
        };
        let alone = |rows: std::ops::Range<usize>, hooks: &Hooks, leaves: &[&Tensor]| {
            let part = part(rows.clone());
            let groups = [Group { rows: 0..rows.len(), hooks }];
            let loss = real(&part.0, &run(&model, &part, &groups)).sin().sum(tch::Kind::Float);
            Tensor::run_backward(&[loss], leaves, false, false)
        };
        let alone_a = alone(0..2, &a, &[&first, &third]);
        let alone_b = alone(2..3, &b, &[&second]);
        for (found, expected) in together.iter().zip([&alone_a[0], &alone_b[0], &alone_a[1]]) {
            assert!(expected.abs().max().double_value(&[]) > 1e-3);
            assert_near(found, expected, 1e-5);
        }
    }
}

#[test]
fn rows_without_a_group_run_the_bare_model() {
    let (model, batch) = (model("bert-lora", None, Precision::Fp32), batch(&[6, 4, 6]));
    let site = model.config.sites().by_path("bert.encoder.layer.0.output.dense").unwrap().id;
    let hooks = Hooks::default().with(site, Additive(leaf(&[128, 64], 0.0).detach()));
    let groups = [Group { rows: 1..2, hooks: &hooks }];
    let (found, bare) = (run(&model, &batch.padded, &groups), run(&model, &batch.padded, &[]));
    assert_near(&found.get(0), &bare.get(0), 1e-6);
    assert_near(&found.get(2), &bare.get(2), 1e-6);
    assert!(distance(&found.get(1), &bare.get(1)) > 1e-3);
}

#[test]
fn open_attention_is_the_fused_one_when_its_hook_does_nothing() {
    for name in ["llama-lora", "bert-lora"] {
        let (model, batch) = (model(name, None, Precision::Fp32), batch(&[6, 4, 6]));
        let scores = model.config.sites().with_role(pleach_nn::Role::AttnScores);
        let hooks = scores.fold(Hooks::default(), |hooks, site| hooks.with(site.id, Sharpen(1.0)));
        let groups = [Group { rows: 0..2, hooks: &hooks }];
        for batch in [&batch.padded, &batch.packed] {
            let (found, bare) = (run(&model, batch, &groups), run(&model, batch, &[]));
            if name.starts_with("llama") {
                assert_near(&real(&batch.0, &found), &real(&batch.0, &bare), 1e-5);
            } else {
                assert_near(&found, &bare, 1e-5);
            }
        }
    }
}

/// Compares attention behind virtual tokens with the definition, row by row and head by head.
#[derive(Clone, Copy)]
struct Definition {
    front: i64,
    causal: bool,
    /// How many tokens a token sees, virtual ones among them.
    window: i64,
    scale: f64,
    cap: Option<f64>,
}

impl SiteHook for Definition {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let heads = cx.site.dims.heads.unwrap();
        let virtual_tokens =
            leaf(&[x[1].size()[0], self.front, heads.kv as i64, heads.dim as i64], 1.0).detach() * 20.0;
        let front = |own: &Tensor| Tensor::cat(&[&virtual_tokens, own], 1);
        let (q, k, v) = (x[0].shallow_clone(), front(&x[1]), front(&x[2]));
        let found = base.run(&[q.shallow_clone(), k.shallow_clone(), v.shallow_clone()]);
        for (row, length) in cx.layout.lengths().iter().enumerate() {
            for token in 0..*length {
                let end = self.front + if self.causal { token as i64 + 1 } else { *length as i64 };
                let seen = end.min(self.window);
                for head in 0..heads.query {
                    let of = |t: &Tensor, head: usize| t.get(row as i64).select(1, head as i64); // [w, d]
                    let shared = head / (heads.query / heads.kv);
                    let keys = of(&k, shared).narrow(0, end - seen, seen);
                    let mut scores = keys.mv(&of(&q, head).get(token as i64)) * self.scale;
                    if let Some(cap) = self.cap {
                        scores = (scores / cap).tanh() * cap;
                    }
                    let values = of(&v, shared).narrow(0, end - seen, seen);
                    let expected = values.tr().mv(&scores.softmax(-1, tch::Kind::Float));
                    assert_near(&of(&found[0], head).get(token as i64), &expected, 1e-5);
                }
            }
        }
        found
    }
}

#[test]
fn attention_behind_virtual_tokens_is_its_definition() {
    let plain = |causal, dim: f64| Definition { front: 0, causal, window: 99, scale: 1.0 / dim.sqrt(), cap: None };
    let llama = plain(true, 16.0);
    let bert = plain(false, 16.0);
    let mistral = Definition { window: 5, ..plain(true, 8.0) };
    let gemma2 = Definition { window: 5, scale: 1.0 / 20f64.sqrt(), cap: Some(2.0), ..plain(true, 12.0) };
    let recorded = |name| model(name, None, Precision::Fp32);
    for (model, path, definition) in [
        (recorded("llama-lora"), "model.layers.0.self_attn@kv", llama),
        (recorded("bert-lora"), "bert.encoder.layer.0.attention.self@kv", bert),
        (tiny("mistral", None), "model.layers.0.self_attn@kv", mistral),
        (tiny("gemma2", None), "model.layers.0.self_attn@kv", gemma2),
    ] {
        let batch = batch(&[6, 4]);
        let site = model.config.sites().by_path(path).unwrap().id;
        for front in [0, 3] {
            let hooks = Hooks::default().with(site, Definition { front, ..definition });
            let groups = [Group { rows: 0..2, hooks: &hooks }];
            assert!(run(&model, &batch.padded, &groups).isfinite().all().int64_value(&[]) == 1);
        }
    }
}

#[test]
fn replaced_weights_are_run_in_place_of_the_frozen_ones() {
    let (model, batch) = (model("llama-lora", None, Precision::Fp32), batch(&[6, 4]));
    let site = model.config.sites().by_path("model.layers.1.self_attn.v_proj").unwrap();
    let own = model.backbone.weights(site.id).unwrap().shallow_clone();
    let delta = leaf(&[32, 64], 3.0).detach();
    let mut replaced = Replaced::default();
    replaced.insert(site.id, OpWeights { weight: &own.weight + &delta, bias: None });
    let added = Hooks::default().with(site.id, Additive(delta.tr()));
    let with = |hooks: &dyn pleach_nn::HookSet| run(&model, &batch.padded, &[Group { rows: 0..2, hooks }]);
    assert_near(&with(&replaced), &with(&added), 1e-5);
    assert!(distance(&with(&replaced), &with(&NoHooks)) > 1e-3);
}

#[test]
fn the_first_active_block_is_where_gradients_begin() {
    let (model, batch) = (model("llama-lora", None, Precision::Fp32), batch(&[6, 4]));
    let first = |path: &str| {
        let site = model.config.sites().by_path(path).unwrap().id;
        let hooks = Hooks::default().with(site, Additive(Tensor::zeros([1], tch::kind::FLOAT_CPU)));
        let groups = [Group { rows: 0..1, hooks: &hooks }];
        Forward::eval(model.config.sites(), &batch.padded.0, &groups).first_active_block(2)
    };
    assert_eq!(first("model.embed_tokens"), 0);
    assert_eq!(first("model.layers.0.self_attn.q_proj"), 0);
    assert_eq!(first("model.layers.1@in"), 1);
    assert_eq!(first("model.norm"), 2);
    assert_eq!(first("lm_head"), 2);
}

/// Runs the site for its own rows alone, as it is.
struct Alone;

impl SiteHook for Alone {
    fn shares_base(&self) -> bool {
        false
    }
}

#[test]
fn the_sum_behind_a_part_runs_for_some_rows_with_their_own_norm() {
    let (model, batch) = (model("bert-lora", None, Precision::Fp32), batch(&[6, 4, 6]));
    let at = |path: &str| model.config.sites().by_path(path).unwrap().id;
    let norm = at("bert.encoder.layer.0.output.LayerNorm");
    let shifted = || Hooks::default().with(norm, Additive(leaf(&[64, 64], 0.0).detach()));
    let (shared, alone) = (shifted(), shifted().with(at("bert.encoder.layer.0.output@sublayer"), Alone));
    for batch in [&batch.padded, &batch.packed] {
        let with = |hooks: &Hooks| run(&model, batch, &[Group { rows: 1..2, hooks }]);
        let (found, bare) = (with(&alone), run(&model, batch, &[]));
        assert_near(&found, &with(&shared), 1e-6);
        assert_near(&found.get(0), &bare.get(0), 1e-6);
        assert!(distance(&found.get(1), &bare.get(1)) > 1e-3, "the norm's hook is seen");
    }
}

/// Runs the site with its weights times and plus something.
struct Turned(f64, f64);

impl SiteHook for Turned {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let own = base.weights().unwrap();
        base.run_with(&OpWeights { weight: &own.weight * self.0 + self.1, bias: None }, &x)
    }
}

/// Two hooks, one behind the other.
struct Chain(Turned, Turned);

impl SiteHook for Chain {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        base.through(cx, &[&self.0, &self.1], x)
    }
}

#[test]
fn a_chain_hands_its_weights_on() {
    let (model, batch) = (model("llama-lora", None, Precision::Fp32), batch(&[6, 4, 6]));
    let site = model.config.sites().by_path("model.layers.0.mlp.up_proj").unwrap().id;
    let with = |hooks: Hooks| run(&model, &batch.padded, &[Group { rows: 1..3, hooks: &hooks }]);
    let chain = with(Hooks::default().with(site, Chain(Turned(2.0, 0.0), Turned(1.0, 0.01))));
    assert_near(&chain, &with(Hooks::default().with(site, Turned(2.0, 0.01))), 1e-5);
    assert!(distance(&chain, &with(Hooks::default().with(site, Turned(2.0, 0.02)))) > 1e-3, "the order counts");
}
