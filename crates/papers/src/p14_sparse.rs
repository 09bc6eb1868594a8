//! Page 14, composable sparse fine-tuning: the entries that change most are better than any others, and sparse differences
//! compose where dense ones get into each other's way.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig};
use pleach_nn::{Backbone, OpWeights, SiteId};
use serde_json::{Value, json};
use tch::Tensor;

use crate::kit::{Act, Data, Mlp, Recipe, Shape, StandIn, accuracy, adapter_of, digits, fit, options, order};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 14,
    title: "LT-SFT",
    paper: "Ansell, Ponti, Korhonen, Vulic, *Composable Sparse Fine-Tuning for Cross-Lingual Transfer*, 2022",
    claim: "Training the few entries that change most is better than training any others, and such differences compose where dense ones \
            interfere.",
    setup: "\
*Selection*: a perceptron (64, 256, 10), pretrained on digits, learns digits that are inverted and moved by one pixel, its head frozen. \
1 % of the 16,640 entries of the other layer may differ, chosen by their change or by chance; the third arm trains the 256 biases. All take \
as many steps.

*Composition*: an encoder (64, 256) with a decoder is pretrained to give back digits. A *language* is a fixed permutation of 24 of the 64 \
pixels; its difference is what the encoder needs to give back plain digits from permuted ones, without labels. The *task* is trained on \
labels in one language, on top of that language's difference, and is measured in another one with that one's difference in its place. \
`sparse` differences have 5 % of the entries, `dense` ones all.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "largest", what: "1 % of the entries, those that change most" },
        Arm { name: "random", what: "1 % of the entries, drawn" },
        Arm { name: "biases", what: "the biases" },
        Arm { name: "sparse", what: "composed of differences with 5 % of the entries" },
        Arm { name: "dense", what: "composed of differences with all entries" },
    ],
    measures: &[
        Measure { name: MOVED, unit: "%", digits: 2 },
        Measure { name: UNSEEN, unit: "%", digits: 2 },
        Measure { name: SEEN, unit: "%", digits: 2 },
    ],
    margins: &[
        Margin::new(
            "the entries that change most are at least 2 points better than drawn ones",
            At("largest", MOVED),
            Than::Arm(At("random", MOVED)),
            Need::AtLeast(2.0),
        ),
        Margin::new(
            "and not worse than the biases",
            At("largest", MOVED),
            Than::Arm(At("biases", MOVED)),
            Need::AtLeast(0.0),
        ),
        Margin::new(
            "composed for a language without labels, sparse differences are better than dense ones",
            At("sparse", UNSEEN),
            Than::Arm(At("dense", UNSEEN)),
            Need::AtLeast(0.5),
        ),
    ],
    run,
};

const MOVED: &str = "accuracy on inverted digits";
const UNSEEN: &str = "accuracy in the language without labels";
const SEEN: &str = "accuracy in the language with labels";

fn run(cx: &Cx) -> Result<Scores> {
    let mut scores = Scores::default();
    let all = digits::load(cx.device)?;
    select(cx, &all, &mut scores)?;
    compose(cx, &all.flat(), &mut scores)?;
    Ok(scores)
}

/// A sparse difference of all layers but the head.
fn sparse(share: f64, more: &Value) -> Result<Arc<dyn AdapterConfig>> {
    let mut described = json!({
        "method": "lt_sft", "maskable": "layers\\.0\\.fc", "ft_params_proportion": share,
        "full_ft_max_epochs_per_iteration": 1, "sparse_ft_max_epochs_per_iteration": 1
    });
    if let (Some(fields), Some(more)) = (described.as_object_mut(), more.as_object()) {
        fields.extend(more.clone());
    }
    options(&described)
}

fn select(cx: &Cx, all: &Data, scores: &mut Scores) -> Result<()> {
    let key = cx.key("selection");
    let shape = Shape { input: 64, hidden: vec![256], act: Act::Relu, bias: true, classes: Some(10) };
    let drawn = Mlp::draw(&shape, key.named("model"), cx.device);
    let whole = adapter_of(&drawn, Arc::new(StandIn::whole()), key)?;
    fit(&drawn, &whole, &Recipe::new(cx.steps(400), 64, 3e-3), &all.flat(), key.named("pretraining"))?;
    let model = drawn.trained(&whole)?;
    let changed = all.map_x(|x| (x.roll([1i64], [2i64]) * -1.0 + 1.0).flatten(1, -1));
    let (train, test) = changed.split(key.named("split"), 900);
    let recipe = Recipe::new(cx.steps(600), 64, 1e-2);
    let arms = [
        ("largest", sparse(0.01, &json!({"freeze_head": true}))?),
        ("random", sparse(0.01, &json!({"freeze_head": true, "sparse_ft_method": "Random"}))?),
        ("biases", Arc::new(StandIn::new(|_| false, |site| site.path != "classifier"))),
    ];
    for (arm, config) in arms {
        let adapter = adapter_of(&model, config, key.named("adapter"))?;
        fit(&model, &adapter, &recipe, &train, key.named("order"))?;
        scores.set(arm, MOVED, accuracy(&model, &adapter, &test)?);
    }
    Ok(())
}

/// Pixels that a language permutes.
const PERMUTED: usize = 24;

/// The image's pixels in the order of a language.
fn spoken(x: &Tensor, key: Key) -> Tensor {
    let chosen = &order(key.named("pixels"), 64)[..PERMUTED];
    let mut pixels: Vec<i64> = (0..64).collect();
    for (at, from) in chosen.iter().enumerate() {
        pixels[*from as usize] = chosen[(at + 1) % PERMUTED];
    }
    x.index_select(1, &Tensor::from_slice(&pixels).to_device(x.device()))
}

fn compose(cx: &Cx, all: &Data, scores: &mut Scores) -> Result<()> {
    let key = cx.key("composition");
    let (train, test) = all.split(key.named("split"), 1_200);
    let shape = Shape { input: 64, hidden: vec![256, 64], act: Act::Relu, bias: true, classes: None };
    let drawn = Mlp::draw(&shape, key.named("encoder"), cx.device);
    let whole = adapter_of(&drawn, Arc::new(StandIn::whole()), key)?;
    let plain = Data::new(train.x.shallow_clone(), train.x.shallow_clone());
    fit(&drawn, &whole, &Recipe::new(cx.steps(600), 64, 2e-3), &plain, key.named("pretraining"))?;
    let encoder = drawn.trained(&whole)?;
    for (arm, share) in [("sparse", 0.05), ("dense", 1.0)] {
        let sft = Composed { cx, key, encoder: &encoder, share };
        let [seen, unseen] = sft.accuracies(&train, &test)?;
        scores.set(arm, SEEN, seen);
        scores.set(arm, UNSEEN, unseen);
    }
    Ok(())
}

/// Differences with a share of the entries.
struct Composed<'a> {
    cx: &'a Cx,
    key: Key,
    encoder: &'a Mlp,
    share: f64,
}

impl Composed<'_> {
    /// The encoder's weights with a language's difference.
    fn language(&self, name: &str, train: &Data) -> Result<OpWeights> {
        let key = self.key.named(name);
        let adapter = adapter_of(self.encoder, sparse(self.share, &json!({}))?, key.named("adapter"))?;
        let data = Data::new(spoken(&train.x, key), train.x.shallow_clone());
        fit(self.encoder, &adapter, &Recipe::new(self.cx.steps(800), 64, 2e-3), &data, key.named("order"))?;
        weights(self.encoder, &adapter, self.encoder.layer(0))
    }

    /// Accuracies in the language of the labels and in the other one.
    fn accuracies(&self, train: &Data, test: &Data) -> Result<[f64; 2]> {
        let [ours, theirs] = ["source", "target"].map(|name| self.language(name, train));
        let (ours, theirs) = (ours?, theirs?);
        let shape = Shape { input: 64, hidden: vec![256], act: Act::Relu, bias: true, classes: Some(10) };
        let drawn = Mlp::draw(&shape, self.key.named("task"), self.cx.device);
        let first = drawn.layer(0);
        let base = drawn.with(BTreeMap::from([(first, ours.shallow_clone())]));
        let adapter = adapter_of(&base, sparse(self.share, &json!({}))?, self.key.named("task adapter"))?;
        let (labelled, _) = train.split(self.key.named("labelled"), 600);
        let key = self.key.named("source");
        let spoken_in = |data: &Data, key: Key| data.map_x(|x| spoken(x, key));
        fit(&base, &adapter, &Recipe::new(self.cx.steps(600), 64, 2e-3), &spoken_in(&labelled, key), key.named("labels"))?;
        let seen = accuracy(&base, &adapter, &spoken_in(test, key))?;
        // The task's difference on top of the other language's.
        let task = weights(&base, &adapter, first)?;
        let sum = |task: &Tensor, ours: &Tensor, theirs: &Tensor| task - ours + theirs;
        let bias = match (&task.bias, &ours.bias, &theirs.bias) {
            (Some(task), Some(ours), Some(theirs)) => Some(sum(task, ours, theirs)),
            _ => None,
        };
        let composed = OpWeights { weight: sum(&task.weight, &ours.weight, &theirs.weight), bias };
        let model = base.trained(&adapter)?.with(BTreeMap::from([(first, composed)]));
        let none = adapter_of(&model, Arc::new(StandIn::head()), self.key)?;
        let unseen = accuracy(&model, &none, &spoken_in(test, self.key.named("target")))?;
        Ok([seen, unseen])
    }
}

/// What an adapter makes of a site's weights.
fn weights(model: &Mlp, adapter: &Adapter, site: SiteId) -> Result<OpWeights> {
    let mut merged = adapter.merge(model.config().sites(), model)?;
    let own = || model.weights(site).map(OpWeights::shallow_clone);
    merged.remove(&site).or_else(own).ok_or_else(|| pleach_base::code::INTERNAL.error("the layer has no weights"))
}
