//! Page 42, PILL: what a model learns to say about images goes into experts of their own, and what it knew of text stays.

use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_methods::{
    Adapter, AdapterConfig, Card, Export, HasCard, Hooks, Parts, Plan, PlannedTensor, SiteMethod, StepInfo,
};
use pleach_nn::{
    BackboneConfig, BaseOp, Forward, Group, HookSet, Inputs, Layout, NoHooks, OpWeights, Role, Site, SiteCx, SiteHook,
};
use pleach_train::loss::IGNORE;
use pleach_train::{Objective, PassInput};
use serde_json::{Map, Value, json};
use tch::{Kind, Reduction, Tensor};

use crate::kit::{Batches, Data, Recipe, StandIn, Tiny, adapter_of, fit, fit_with, llama, normal, options};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 42,
    title: "PILL",
    paper: "Zhang, Liang, Wu, Yin, *PILL: Plug Into LLM with Adapter Expert and Attention Gate*, 2023",
    claim: "An expert of their own for tokens of images, and a gate on their values, answer more questions about images than one adapter \
            for all tokens, and disturb what the model does with text no more.",
    setup: "\
A decoder of two blocks of width 48 is pretrained on text alone: eight tokens that describe a thing (a word for each of three attributes \
of four kinds, among fillers) and eight that ask for one of the attributes and answer. Then the description is an image: eight \
vectors of twelve numbers, each a drawn linear map of the attributes and noise, in place of the description. *Accuracy* is the share of right \
answers about new images; *text* is by how much the loss on new texts has risen, in thousandths. The shared adapter is the same GLU adapter \
for tokens of both kinds, without a gate, with as many parameters by a larger bottleneck. All arms see the same images for the same number of \
steps; PILL aligns during the first tenth of them, the shared adapter trains everything from the start.",
    seeds: 5,
    arms: &[
        Arm { name: PILL, what: "experts by modality, gated values" },
        Arm { name: UNGATED, what: "experts by modality, no gate" },
        Arm { name: SHARED, what: "one adapter for all tokens" },
        Arm { name: FROZEN, what: "the model of text, which sees unknown tokens" },
    ],
    measures: &[
        Measure { name: ACCURACY, unit: "%", digits: 1 },
        Measure { name: TEXT, unit: "", digits: 1 },
    ],
    margins: &[
        Margin::new(
            "PILL answers at least one point more than one shared adapter",
            At(PILL, ACCURACY),
            Than::Arm(At(SHARED, ACCURACY)),
            Need::AtLeast(1.0),
        )
        .but(
            "all arms come near the top here, and the shared adapter, which need not keep what the model knew of text, has more steps with open \
             values: PILL aligns first and then opens its gates from nothing",
        ),
        Margin::new(
            "its loss on text rises no more than the shared adapter's",
            At(PILL, TEXT),
            Than::Arm(At(SHARED, TEXT)),
            Need::AtMost(0.0),
        ),
    ],
    run,
};

const PILL: &str = "pill";
const UNGATED: &str = "pill, no gate";
const SHARED: &str = "shared adapter";
const FROZEN: &str = "frozen";
const ACCURACY: &str = "accuracy";
const TEXT: &str = "rise of the loss on text";

/// Attributes of a thing, and kinds of each.
const ATTRIBUTES: usize = 3;
const KINDS: usize = 4;
/// Tokens of a description or an image, and of a question.
const HALF: i64 = 8;
/// Numbers of one token of an image.
const WIDTH: i64 = 12;
/// Tokens: 0 begins, then words of attributes, names of attributes, fillers, and what ends a question.
const NAME: i64 = 1 + (ATTRIBUTES * KINDS) as i64;
const FILLER: i64 = NAME + ATTRIBUTES as i64;
const FILLERS: u64 = 12;
const IS: i64 = FILLER + FILLERS as i64;

const PRETRAINING: u64 = 700;
const STEPS: u64 = 600;

fn run(cx: &Cx) -> Result<Scores> {
    let key = cx.key("things");
    let before = Tiny::draw(&llama(48, 2, IS as usize + 1, 32), None, key.named("model"), cx.device)?;
    let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), key)?;
    let recipe = Recipe { warmup: cx.steps(50), ..Recipe::new(cx.steps(PRETRAINING), 64, 3e-3) };
    fit(&*before.model, &whole, &recipe, &texts(cx, key.named("texts"), 6000), key.named("pretraining"))?;
    let model = before.trained(&whole)?;
    let world = Tensor::stack(
        &(0..HALF as u64)
            .map(|n| normal(key.named("world").with(n), &[(ATTRIBUTES * KINDS) as i64, WIDTH], cx.device))
            .collect::<Vec<_>>(),
        0,
    ); // [tokens, attributes * kinds, width]
    let images = |name: &str, count| Images::draw(cx, key.named(name), &world, count);
    let (train, test) = (images("train", 4000), images("test", 500));
    let new_texts = texts(cx, key.named("new texts"), 400);
    let plain = text_loss(&model, &NoHooks, &new_texts);
    let mut scores = Scores::default();
    let mut judge = |arm, hooks: &dyn HookSet| {
        scores.set(arm, ACCURACY, test.accuracy(&model, hooks));
        scores.set(arm, TEXT, 1000.0 * (text_loss(&model, hooks, &new_texts) - plain));
    };
    judge(FROZEN, &NoHooks);
    let pill = |r: u32, gated: bool| {
        json!({"method": "pill", "down_sample_size": r, "visual": {"proj_in": WIDTH, "tokens": HALF},
               "modalities": ["text", {"name": "image", "gated": gated}], "stage": ["align", "tune"], "align_share": 0.1})
    };
    let shared = Shared(options(&json!({"method": "pill", "down_sample_size": 7, "stage": "tune",
        "visual": {"proj_in": WIDTH, "tokens": HALF}, "modalities": ["text", {"name": "image", "gated": false}]}))?);
    let arms: [(&'static str, Arc<dyn AdapterConfig>); 3] =
        [(PILL, options(&pill(4, true))?), (UNGATED, options(&pill(4, false))?), (SHARED, Arc::new(shared))];
    let mut params = Vec::new();
    for (arm, config) in arms {
        let adapter: Adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
        let recipe = Recipe { max_grad_norm: 1.0, ..Recipe::new(cx.steps(STEPS), 32, 4e-3) };
        let mut batches = Batches::new(key.named("order"), train.len(), recipe.batch);
        let next = |_| Ok(train.batch(&batches.draw()));
        fit_with(&*model.model, &adapter, &recipe, Objective::CausalLm, next)?;
        judge(arm, &adapter);
        params.push((arm, adapter.params().numel() as u64));
    }
    params.into_iter().for_each(|(arm, count)| scores.params(arm, count));
    Ok(scores)
}

/// What a thing is like, and which attribute is asked for.
struct Thing {
    kinds: [usize; ATTRIBUTES],
    asked: usize,
}

impl Thing {
    fn draw(key: Key) -> Self {
        let mut rng = key.named("thing").rng();
        let kinds = [(); ATTRIBUTES].map(|()| rng.below(KINDS as u64) as usize);
        Self { kinds, asked: rng.below(ATTRIBUTES as u64) as usize }
    }

    fn word(&self, attribute: usize) -> i64 {
        1 + (attribute * KINDS + self.kinds[attribute]) as i64
    }

    /// Its words in order of drawn places among fillers.
    fn description(&self, key: Key) -> Vec<i64> {
        let mut rng = key.named("description").rng();
        let mut tokens: Vec<i64> = (0..HALF).map(|_| FILLER + rng.below(FILLERS) as i64).collect();
        tokens[0] = 0;
        let places = crate::kit::order(key.named("places"), HALF as usize - 1);
        (0..ATTRIBUTES).for_each(|attribute| tokens[1 + places[attribute] as usize] = self.word(attribute));
        tokens
    }

    /// Fillers, the name of what is asked for, and the answer.
    fn question(&self, key: Key) -> Vec<i64> {
        let mut rng = key.named("question").rng();
        let mut tokens: Vec<i64> = (0..HALF).map(|_| FILLER + rng.below(FILLERS) as i64).collect();
        let end = HALF as usize;
        tokens[end - 3] = NAME + self.asked as i64;
        tokens[end - 2] = IS;
        tokens[end - 1] = self.word(self.asked);
        tokens
    }
}

/// Descriptions with their questions, all tokens to be predicted.
fn texts(cx: &Cx, key: Key, count: u64) -> Data {
    let row = |n| {
        let (thing, key) = (Thing::draw(key.with(n)), key.with(n));
        [thing.description(key), thing.question(key)].concat()
    };
    let ids: Vec<i64> = (0..count).flat_map(row).collect();
    let ids = Tensor::from_slice(&ids).reshape([count as i64, 2 * HALF]).to_device(cx.device);
    Data::new(ids.shallow_clone(), ids)
}

/// The mean loss on texts.
fn text_loss(model: &Tiny, hooks: &dyn HookSet, texts: &Data) -> f64 {
    let rows = texts.len();
    let width = texts.x.size()[1];
    let layout = Layout::padded(vec![width as usize; rows], width as usize, vec![0; rows], texts.x.device());
    let groups = [Group { rows: 0..rows, hooks }];
    let cx = Forward::eval(model.model.config().sites(), &layout, &groups);
    let logits = tch::no_grad(|| model.model.forward(&cx, &Inputs::ids(texts.x.shallow_clone())).tensor().shallow_clone());
    let vocabulary = logits.size()[2];
    let predicted = logits.narrow(1, 0, width - 1).reshape([-1, vocabulary]);
    let wanted = texts.y.narrow(1, 1, width - 1).reshape([-1]);
    predicted.cross_entropy_loss::<Tensor>(&wanted, None, Reduction::Mean, IGNORE, 0.0).double_value(&[])
}

/// Images with their questions.
struct Images {
    ids: Tensor,      // [n, 16]
    features: Tensor, // [n, 16, width]
    modality: Tensor, // [n, 16]
}

/// Deviation of what disturbs an image.
const NOISE: f64 = 1.0;

impl Images {
    fn draw(cx: &Cx, key: Key, world: &Tensor, count: u64) -> Self {
        let things: Vec<Thing> = (0..count).map(|n| Thing::draw(key.with(n))).collect();
        let row = |(n, thing): (u64, &Thing)| [vec![0; HALF as usize], thing.question(key.with(n))].concat();
        let ids: Vec<i64> = (0..count).zip(&things).flat_map(row).collect();
        let (n, tokens) = (count as i64, 2 * HALF);
        let ids = Tensor::from_slice(&ids).reshape([n, tokens]).to_device(cx.device);
        let one_hot = |thing: &Thing| {
            let mut code = [0f32; ATTRIBUTES * KINDS];
            (0..ATTRIBUTES).for_each(|attribute| code[thing.word(attribute) as usize - 1] = 1.0);
            code
        };
        let codes: Vec<f32> = things.iter().flat_map(one_hot).collect();
        let codes = Tensor::from_slice(&codes).reshape([1, n, -1]).to_device(cx.device);
        let seen = codes.matmul(world).transpose(0, 1); // [n, tokens of an image, width]
        let seen = seen + normal(key.named("noise"), &[n, HALF, WIDTH], cx.device) * NOISE;
        let features = Tensor::cat(&[&seen, &seen.zeros_like()], 1);
        let image = Tensor::ones([n, HALF], (Kind::Int64, cx.device));
        Self { ids, features, modality: Tensor::cat(&[&image, &image.zeros_like()], 1) }
    }

    fn len(&self) -> usize {
        self.ids.size()[0] as usize
    }

    fn input(&self, rows: &Tensor) -> PassInput {
        let of = |tensor: &Tensor| tensor.index_select(0, rows);
        let (n, width) = (rows.size()[0] as usize, 2 * HALF as usize);
        let layout = Layout::padded(vec![width; n], width, (0..n as u64).collect(), self.ids.device())
            .with_modality(Some(of(&self.modality)));
        PassInput::new(Inputs::ids(of(&self.ids)).with("features", of(&self.features)), layout)
    }

    /// Rows, and their answers as the only labels.
    fn batch(&self, rows: &[i64]) -> (PassInput, Tensor) {
        let rows = Tensor::from_slice(rows).to_device(self.ids.device());
        let ids = self.ids.index_select(0, &rows);
        let end = 2 * HALF - 1;
        let labels = Tensor::cat(&[&Tensor::full_like(&ids.narrow(1, 0, end), IGNORE), &ids.narrow(1, end, 1)], 1);
        (self.input(&rows), labels)
    }

    /// Right answers, in per cent.
    fn accuracy(&self, model: &Tiny, hooks: &dyn HookSet) -> f64 {
        let all = self.len();
        let input = self.input(&Tensor::arange(all as i64, (Kind::Int64, self.ids.device())));
        let groups = [Group { rows: 0..all, hooks }];
        let cx = Forward::eval(model.model.config().sites(), &input.layout, &groups);
        let logits = tch::no_grad(|| model.model.forward(&cx, &input.inputs).tensor().shallow_clone());
        let found = logits.select(1, 2 * HALF - 2).argmax(-1, false);
        let right = found.eq_tensor(&self.ids.select(1, 2 * HALF - 1)).to_kind(Kind::Float);
        100.0 * right.mean(Kind::Float).double_value(&[])
    }
}

/// The baseline: PILL's own adapters and projection, with one expert for all tokens.
#[derive(Debug)]
struct Shared(Arc<dyn AdapterConfig>);

impl HasCard for Shared {
    fn card(&self) -> &'static Card {
        self.0.card()
    }
}

impl AdapterConfig for Shared {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = self.0.plan(model)?;
        plan.tensors.retain(|tensor| !tensor.name.contains("image_adapter_ffn"));
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        self.0.adapter_config(model, plan, export)
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        self.0.updates(tensor, step)
    }

    fn hooks(&self, parts: &Parts<'_>) -> Result<Hooks> {
        let one = |(id, hook)| {
            let all_text = parts.site(id).role == Role::Norm;
            let hook: Box<dyn SiteMethod> = if all_text { Box::new(AllText(hook)) } else { hook };
            (id, hook)
        };
        Ok(self.0.hooks(parts)?.into_iter().map(one).collect())
    }
}

/// A hook to which every token is text.
struct AllText(Box<dyn SiteMethod>);

impl SiteHook for AllText {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let layout = cx.layout.rows(0..cx.layout.sequences()).with_modality(None);
        self.0.after(&SiteCx { layout: &layout, ..*cx }, x, y)
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        self.after(cx, &x, y)
    }
}

impl SiteMethod for AllText {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}
