//! Page 59, MHR: routing the blocks of low-rank skills on their own says more with the same inventory than routing whole
//! skills, and a new task needs the routing alone.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt as _, code};
use pleach_methods::Adapter;
use pleach_nn::Backbone;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::kit::{Act, Data, Mlp, Recipe, Shape, Tasked, adapter, normal, save};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 59,
    title: "MHR",
    paper: "Caccia, Ponti, Su, Pereira, Le Roux, Sordoni, *Multi-Head Adapter Routing for Cross-Task Generalization*, 2023",
    claim: "Routing parts of the skills reaches more than routing whole skills at the same inventory, and a new task is learnt by its \
            routing alone.",
    setup: "\
A frozen map from 32 to 32 and twelve tasks, each of which changes it by a product of rank 2. The factors are cut into four blocks over the \
input and over the output; each block of a task is that of one of four true skills, drawn for every block on its own. 100 noisy rows a task; \
the error is the mean squared one on rows without noise, over all tasks. MHR has four skills of rank 2 and four heads, Poly one head, and \
LoRA, which all tasks share, rank 8: all three have 512 parameters beside the routing (192 and 48 numbers). All train for as many steps at \
one rate, logits at ten times that.

*New task*: a thirteenth task of the same kind with 10 rows. MHR-z trains its 16 logits on the inventory that MHR has saved, read from its \
folder; the shared LoRA trains on, all of it, at the better of three rates.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "mhr", what: "4 skills of rank 2, 4 heads; new task: 16 logits" },
        Arm { name: "poly", what: "4 skills of rank 2, 1 head" },
        Arm { name: "lora", what: "rank 8, shared; new task: trained on" },
    ],
    measures: &[Measure { name: ERROR, unit: "", digits: 4 }, Measure { name: NEW, unit: "", digits: 4 }],
    margins: &[
        Margin::new(
            "MHR's error is at most 0.7 of Poly's",
            At("mhr", ERROR),
            Than::Arm(At("poly", ERROR)),
            Need::AtMostTimes(0.7),
        ),
        Margin::new(
            "it is at most 0.6 of the shared LoRA's",
            At("mhr", ERROR),
            Than::Arm(At("lora", ERROR)),
            Need::AtMostTimes(0.6),
        ),
        Margin::new(
            "on a new task with 10 rows, 16 logits reach more than LoRA's 512 parameters",
            At("mhr", NEW),
            Than::Arm(At("lora", NEW)),
            Need::AtMostTimes(0.95),
        ),
    ],
    run,
};

const ERROR: &str = "error on twelve tasks";
const NEW: &str = "error on a new task";

const WIDTH: i64 = 32;
const RANK: i64 = 2;
const BLOCKS: i64 = 4;
const SKILLS: u64 = 4;
const TASKS: u64 = 12;
const NOISE: f64 = 0.1;

/// The true skills: blocks of both factors.
struct Truth {
    frozen: Tensor,
    a: Tensor, // [blocks, skills, 8, 2]
    b: Tensor, // [blocks, skills, 2, 8]
}

impl Truth {
    fn draw(frozen: &Tensor, key: Key) -> Self {
        let each = WIDTH / BLOCKS;
        let skills = SKILLS as i64;
        let a = normal(key.named("a"), &[BLOCKS, skills, each, RANK], frozen.device());
        let b = normal(key.named("b"), &[BLOCKS, skills, RANK, each], frozen.device());
        Self { frozen: frozen.shallow_clone(), a, b }
    }

    /// The weight `[32, 32]` of a task: the skill of every block is drawn.
    fn weight(&self, key: Key) -> Tensor {
        let mut rng = key.named("blocks").rng();
        let chosen: Vec<i64> = (0..BLOCKS).map(|_| rng.below(SKILLS) as i64).collect();
        let blocks = |from: &Tensor, axis: i64| {
            let parts: Vec<_> =
                chosen.iter().enumerate().map(|(block, skill)| from.get(block as i64).get(*skill)).collect();
            Tensor::cat(&parts, axis)
        };
        let product = blocks(&self.a, 0).matmul(&blocks(&self.b, 1)) / ((WIDTH * RANK) as f64).sqrt();
        &self.frozen + product.tr()
    }

    fn rows(&self, key: Key, weight: &Tensor, count: i64, noise: f64) -> Data {
        let x = normal(key.named("x"), &[count, WIDTH], weight.device());
        let y = x.matmul(&weight.tr());
        let noise = normal(key.named("noise"), &y.size(), weight.device()) * noise;
        Data::new(x, y + noise)
    }
}

fn error(model: &Mlp, adapter: &Adapter, rows: &Tasked) -> Result<f64> {
    let all: Vec<i64> = (0..rows.tasks.len() as i64).collect();
    let outputs = rows.outputs(model, adapter, &all)?;
    Ok((outputs - &rows.data.y).square().mean(Kind::Double).double_value(&[]))
}

fn run(cx: &Cx) -> Result<Scores> {
    let (mut scores, key) = (Scores::default(), cx.key("mhr"));
    let shape = Shape { input: 32, hidden: vec![32], act: Act::None, bias: false, classes: None };
    let model = Mlp::draw(&shape, key.named("frozen"), cx.device);
    let Some(frozen) = model.weights(model.layer(0)) else { return Ok(scores) };
    let truth = Truth::draw(&frozen.weight, key.named("truth"));
    let parts = |name: &str, count: i64, noise: f64| {
        let of = |task| {
            let own = key.named("task").with(task);
            truth.rows(own.named(name), &truth.weight(own), count, noise)
        };
        Tasked::of(&(0..TASKS).map(of).collect::<Vec<_>>())
    };
    let (train, test) = (parts("train", 100, NOISE), parts("test", 200, 0.0));
    let recipe = Recipe::new(cx.steps(1_500), 120, 1e-2);
    let mut trained = BTreeMap::new();
    for (arm, described) in [("mhr", skills(4)), ("poly", skills(1)), ("lora", lora())] {
        let adapter = adapter(&model, &described, key.named("adapter"))?;
        scores.params(arm, adapter.plan().params());
        train.fit_mixed(&model, &adapter, &recipe, key.named("order"))?;
        scores.set(arm, ERROR, error(&model, &adapter, &test)?);
        trained.insert(arm, adapter);
    }
    let own = key.named("task").with(TASKS);
    let weight = truth.weight(own);
    let few = Tasked::of(&[truth.rows(own.named("train"), &weight, 10, NOISE)]);
    let clear = Tasked::of(&[truth.rows(own.named("test"), &weight, 400, 0.0)]);
    scores.set("mhr", NEW, routed_alone(cx, &model, &trained["mhr"], &few, &clear, key)?);
    scores.set("lora", NEW, trained_on(cx, &model, &trained["lora"], &few, &clear, key)?);
    Ok(scores)
}

fn skills(heads: u32) -> Value {
    json!({"method": "poly", "r": RANK, "n_skills": SKILLS, "n_splits": heads, "n_tasks": TASKS, "lora_alpha": RANK,
           "target_modules": ["fc"], "adapters_learning_rate": 0.01, "module_logits_learning_rate": 0.1})
}

fn lora() -> Value {
    json!({"method": "lora", "r": 8, "lora_alpha": 8, "target_modules": ["fc"]})
}

/// The new task by its logits alone, on the saved inventory.
fn routed_alone(cx: &Cx, model: &Mlp, mhr: &Adapter, few: &Tasked, clear: &Tasked, key: Key) -> Result<f64> {
    let folder = tempfile::tempdir().or_code(code::IO, || "no folder for an inventory can be made".to_owned())?;
    save(model, mhr, folder.path())?;
    let mut described = skills(4);
    described["n_tasks"] = json!(1);
    described["mode"] = json!("z");
    described["inventory"] = json!(folder.path());
    let z = adapter(model, &described, key.named("new"))?;
    few.fit_mixed(model, &z, &Recipe::new(cx.steps(300), 10, 1e-2), key.named("few"))?;
    error(model, &z, clear)
}

/// The new task by the shared LoRA, trained on at the rate that turns out best.
fn trained_on(cx: &Cx, model: &Mlp, shared: &Adapter, few: &Tasked, clear: &Tasked, key: Key) -> Result<f64> {
    let mut best = error(model, shared, clear)?;
    let begun = shared.params().flatten().copy();
    for rate in [3e-4, 3e-3, 1e-2] {
        few.fit_mixed(model, shared, &Recipe::new(cx.steps(300), 10, rate), key.named("few"))?;
        best = best.min(error(model, shared, clear)?);
        shared.params().unflatten(&begun)?;
    }
    Ok(best)
}
