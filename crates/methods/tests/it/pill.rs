//! What PILL owes on a whole model: text is read as before, other tokens go their own way.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig};
use pleach_nn::families;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, distance, fresh, moved, parse};
use crate::zoo::backbone;

fn llama() -> Model {
    backbone(*families().iter().find(|family| family.name() == "llama").unwrap())
}

fn config(more: &[(&str, Value)]) -> Arc<dyn AdapterConfig> {
    let mut options = json!({"down_sample_size": 4, "visual": {"proj_in": 6, "tokens": 2}});
    more.iter().for_each(|(name, value)| options[*name] = value.clone());
    parse("pill", &options)
}

fn text(width: Option<usize>) -> Batch {
    Batch::of(&[6, 5], &[1, 2], width)
}

/// Tokens 2 and 3 of each row are an image.
fn seen(config: &Arc<dyn AdapterConfig>, width: Option<usize>) -> Batch {
    text(width).room(config.as_ref())
}

/// The values of all tensors whose name holds a word, doubled.
fn double(adapter: &Adapter, word: &str) {
    let _no_grad = tch::no_grad_guard();
    for (_, leaf) in adapter.params().iter().filter(|(name, _)| name.contains(word)) {
        let _ = leaf.shallow_clone().g_mul_scalar_(2.0);
    }
}

#[test]
fn text_alone_is_read_as_before_to_the_bit() {
    let model = llama();
    for stage in ["align", "tune"] {
        let adapter = fresh(&model, &config(&[("stage", json!(stage))]), Key::seed(1));
        for width in [Some(7), None] {
            let batch = text(width);
            assert_eq!(distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[])), 0.0);
        }
    }
}

/// A closed gate lets no value of an image through, an opened one does; what follows the image sees it by its keys.
#[test]
fn values_of_images_come_through_the_gate() {
    let model = llama();
    let config = config(&[]);
    let adapter = fresh(&model, &config, Key::seed(1));
    let batch = seen(&config, Some(7));
    let run = || model.run(&batch, &all(&batch, &adapter));
    let site = model.config.sites().by_path("model.layers.0.self_attn.v_proj").unwrap();
    let open = |by: f64| {
        let _no_grad = tch::no_grad_guard();
        for (name, leaf) in adapter.params().iter().filter(|(name, _)| name.contains("adapter_gate")) {
            assert!(name.contains("image"), "text has no gate");
            let _ = leaf.shallow_clone().fill_(by);
        }
    };
    // Values of images alone are other ones: the map of values gives something else at their places.
    let weights = model.backbone.weights(site.id).unwrap().shallow_clone();
    let closed = run();
    let other = pleach_nn::OpWeights { weight: &weights.weight * 3.0, bias: None };
    let changed = |open_gate: f64| {
        open(open_gate);
        let hooks = OtherValues { adapter: &adapter, site: site.id, weights: &other };
        let groups = [pleach_nn::Group { rows: 0..2, hooks: &hooks }];
        distance(&model.run(&batch, &groups), &run())
    };
    assert_eq!(changed(0.0), 0.0);
    assert!(changed(0.5) > 1e-5);
    open(0.5);
    assert!(distance(&closed, &run()) > 1e-5);
}

/// The adapter, with other values where tokens are images.
struct OtherValues<'a> {
    adapter: &'a Adapter,
    site: pleach_nn::SiteId,
    weights: &'a pleach_nn::OpWeights,
}

impl pleach_nn::HookSet for OtherValues<'_> {
    fn at(&self, site: pleach_nn::SiteId) -> Option<&dyn pleach_nn::SiteHook> {
        if site == self.site { Some(self) } else { self.adapter.at(site) }
    }
}

impl pleach_nn::SiteHook for OtherValues<'_> {
    fn after(&self, cx: &pleach_nn::SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        use pleach_nn::HookSet as _;
        let images = cx.layout.modality().unwrap().ne(0).unsqueeze(-1);
        let other = x[0].linear::<Tensor>(&self.weights.weight, None).where_self(&images, &y[0]);
        let inner = self.adapter.at(self.site).unwrap();
        inner.after(cx, x, vec![other])
    }
}

#[test]
fn experts_learn_from_their_own_tokens_alone() {
    let model = llama();
    let config = config(&[]);
    let adapter = moved(&model, &config, 5);
    let batch = seen(&config, None);
    let images: Vec<i64> = Vec::try_from(batch.layout.modality().unwrap()).unwrap();
    let last = model.config.info().num_blocks - 1;
    for (kind, word, other) in
        [(1, "image_adapter_ffn", "text_adapter_ffn"), (0, "text_adapter_ffn", "image_adapter_ffn")]
    {
        adapter.params().zero_grads();
        let places: Vec<i64> = (0..images.len() as i64).filter(|at| images[*at as usize] == kind).collect();
        let logits = model.run(&batch, &all(&batch, &adapter)).index_select(0, &Tensor::from_slice(&places));
        logits.square().sum(Kind::Float).backward();
        let norm = |word: &str| {
            // Below the last block tokens see each other; in it the expert is all that stands between.
            let own = |name: &str| name.contains(word) && name.contains(&format!("layers.{last}."));
            let grads = adapter.params().iter().filter(|(name, _)| own(name)).map(|(_, leaf)| leaf.grad());
            grads.map(|grad| if grad.defined() { grad.abs().max().double_value(&[]) } else { 0.0 }).fold(0.0, f64::max)
        };
        assert!(norm(word) > 0.0 && norm(other) == 0.0, "{word} {} {other} {}", norm(word), norm(other));
    }
}

#[test]
fn aligning_moves_projections_and_experts_of_images_alone() {
    let model = llama();
    let config = config(&[("stage", json!("align"))]);
    let adapter = moved(&model, &config, 5);
    let names: Vec<_> = adapter.params().iter().map(|(name, _)| name.to_owned()).collect();
    assert!(
        !names.is_empty()
            && names.iter().all(|name| name.contains("image_adapter_ffn") || name.contains("proj.weight"))
    );
    assert!(names.iter().all(|name| !name.contains("gate.weight") || name.contains("down_sampler_gate")), "{names:?}");
    let batch = seen(&config, Some(7));
    // In the last block text goes through the expert of images, which moves it.
    let before = model.run(&batch, &all(&batch, &adapter));
    double(&adapter, &format!("layers.{}.", model.config.info().num_blocks - 1));
    let after = model.run(&batch, &all(&batch, &adapter));
    let text = batch.layout.modality().unwrap().eq(0);
    let moved_text = (&after - &before)
        .abs()
        .amax([-1i64].as_slice(), false)
        .masked_select(&text.logical_and(batch.layout.real().unwrap()));
    assert!(moved_text.min().double_value(&[]) > 0.0);
    let images = text.logical_not();
    let moved_images = (&after - &before).abs().amax([-1i64].as_slice(), false).masked_select(&images);
    assert_eq!(moved_images.max().double_value(&[]), 0.0, "and images go through that of text");
}

/// Token by token it gives what it gives at once: nothing depends on what follows.
#[test]
fn decoding_sees_no_farther_than_its_token() {
    let model = llama();
    let config = config(&[]);
    let adapter = moved(&model, &config, 5);
    let batch = seen(&config, Some(6));
    let whole = model.run(&batch, &all(&batch, &adapter)).get(0);
    for n in 4..=6i64 {
        let cut = |tensor: &Tensor| tensor.narrow(0, 0, 1).narrow(1, 0, n);
        let layout = pleach_nn::Layout::padded(vec![n as usize], n as usize, vec![1], tch::Device::Cpu);
        let part = Batch {
            layout: layout.with_modality(batch.layout.modality().map(cut)),
            second: None,
            inputs: pleach_nn::Inputs(batch.inputs.0.iter().map(|(name, t)| (name.clone(), cut(t))).collect()),
            reads: batch.reads.clone(),
        };
        let found = model.run(&part, &all(&part, &adapter)).get(0).get(n - 1);
        assert!(distance(&found, &whole.get(n - 1)) < 1e-5);
    }
}
