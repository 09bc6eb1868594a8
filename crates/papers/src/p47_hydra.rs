//! Page 47, Hydra: where the output is narrower than the input, a branch behind the frozen map buys more rank for the same
//! parameters than one beside it.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{Backbone, HeadKind};
use serde_json::{Value, json};
use tch::Tensor;

use crate::kit::{Act, Data, Mlp, Recipe, Shape, StandIn, Tiny, accuracy, adapter, adapter_of, digits, fit, loss, normal, vit};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 47,
    title: "Hydra",
    paper: "Kim, Yang, Kim, Hong, Park, *Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning*, 2023",
    claim: "Branches beside and behind a frozen map reach more than a branch beside it alone, at the same number of parameters.",
    setup: "\
*Wide to narrow*: a frozen map `W0` from 128 to 32, a teacher `(I + S) W0 + P` with `S` of rank 7 and `P` of rank 1, 400 noisy rows. Hydra \
with a branch of rank 1 beside the map and one of rank 7 behind it has 608 parameters, LoRA of rank 4 has 640. The error is the mean \
squared one on 2,000 rows without noise.

*Square*: the same with a map from 32 to 32 and a teacher of rank 4 beside and 4 behind. Here both kinds of branches cost the same and a sum \
of ranks is a sum of ranks, so that no such gap is expected: a check that the first one is not an accident of training.

*Digits*: a vision transformer of width 64 with two blocks, pretrained on the digits 0 to 4, learns 5 to 9 through the second maps of its \
feed-forward parts and a new head.",
    seeds: 10,
    arms: &[
        Arm { name: "hydra", what: "rank 1 beside, 7 behind (square: 4 and 4; digits: 2 and 3)" },
        Arm { name: "lora", what: "rank 4 beside (square: 8)" },
        Arm { name: "frozen", what: "nothing is trained (digits: the head)" },
    ],
    measures: &[
        Measure { name: WIDE, unit: "", digits: 4 },
        Measure { name: SQUARE, unit: "", digits: 4 },
        Measure { name: DIGITS, unit: "%", digits: 2 },
    ],
    margins: &[
        Margin::new(
            "wide to narrow, Hydra's error is at most 0.6 of LoRA's",
            At("hydra", WIDE),
            Than::Arm(At("lora", WIDE)),
            Need::AtMostTimes(0.6),
        ),
        Margin::new(
            "square, it is at least 0.6 of LoRA's",
            At("hydra", SQUARE),
            Than::Arm(At("lora", SQUARE)),
            Need::AtLeastTimes(0.6),
        ),
        Margin::new(
            "on digits it is within 0.3 points of LoRA or better",
            At("hydra", DIGITS),
            Than::Arm(At("lora", DIGITS)),
            Need::AtLeast(-0.3),
        ),
    ],
    run,
};

const WIDE: &str = "error, wide to narrow";
const SQUARE: &str = "error, square";
const DIGITS: &str = "accuracy on digits";

fn run(cx: &Cx) -> Result<Scores> {
    let mut scores = Scores::default();
    let hydra = |par: u32, seq: u32| json!({"method": "hydra", "r_par": par, "r_seq": seq, "bias": false});
    let lora = |r: u32| json!({"method": "lora", "r": r, "lora_alpha": r});
    let wide = Teacher { input: 128, beside: 1, behind: 7, measure: WIDE };
    wide.teach(cx, &mut scores, &[("hydra", hydra(1, 7)), ("lora", lora(4))])?;
    let square = Teacher { input: 32, beside: 4, behind: 4, measure: SQUARE };
    square.teach(cx, &mut scores, &[("hydra", hydra(4, 4)), ("lora", lora(8))])?;
    on_digits(cx, &mut scores, &[("hydra", hydra(2, 3)), ("lora", lora(4))])?;
    Ok(scores)
}

/// What a frozen map must become.
struct Teacher {
    input: i64,
    beside: i64,
    behind: i64,
    measure: &'static str,
}

const OUTPUT: i64 = 32;
const NOISE: f64 = 0.1;

impl Teacher {
    /// `(I + S) W0 + P` `[32, input]`, changes as large as the map itself.
    fn weight(&self, frozen: &Tensor, key: Key) -> Tensor {
        let device = frozen.device();
        let product = |name: &str, rank: i64, input: i64| {
            let left = normal(key.named(name).named("left"), &[OUTPUT, rank], device);
            let right = normal(key.named(name).named("right"), &[rank, input], device);
            left.matmul(&right) / ((rank * input) as f64).sqrt()
        };
        frozen + product("behind", self.behind, OUTPUT).matmul(frozen) + product("beside", self.beside, self.input)
    }

    fn teach(&self, cx: &Cx, scores: &mut Scores, arms: &[(&'static str, Value)]) -> Result<()> {
        let key = cx.key(self.measure);
        let shape = Shape { input: self.input as usize, hidden: vec![OUTPUT as usize], act: Act::None, bias: false, classes: None };
        let model = Mlp::draw(&shape, key.named("frozen"), cx.device);
        let site = model.layer(0);
        let Some(frozen) = model.weights(site) else { return Ok(()) };
        let teacher = self.weight(&frozen.weight, key);
        let rows = |name: &str, count: i64| {
            let x = normal(key.named(name), &[count, self.input], cx.device);
            Data::new(x.shallow_clone(), x.matmul(&teacher.tr()))
        };
        let (clear, test) = (rows("train", 400), rows("test", 2_000));
        let noise = normal(key.named("noise"), &clear.y.size(), cx.device) * NOISE;
        let train = Data::new(clear.x, clear.y + noise);
        for (arm, described) in arms {
            let mut described = described.clone();
            described["target_modules"] = json!(["fc"]);
            let adapter = adapter(&model, &described, key.named("adapter"))?;
            if *arm == "hydra" {
                scores.set("frozen", self.measure, loss(&model, &adapter, &test)?);
            }
            fit(&model, &adapter, &Recipe::new(cx.steps(800), 100, 1e-2), &train, key.named("order"))?;
            scores.set(arm, self.measure, loss(&model, &adapter, &test)?);
            if self.measure == WIDE {
                scores.params(arm, adapter.plan().params());
            }
        }
        Ok(())
    }
}

fn on_digits(cx: &Cx, scores: &mut Scores, arms: &[(&'static str, Value)]) -> Result<()> {
    let key = cx.key(DIGITS);
    let all = digits::load(cx.device)?;
    let before = Tiny::draw(&vit(64, 2, (1, 8, 2), 5), None, key.named("model"), cx.device)?;
    let whole = adapter_of(&*before.model, std::sync::Arc::new(StandIn::whole()), key)?;
    let first = all.only(&[0, 1, 2, 3, 4]);
    fit(&*before.model, &whole, &Recipe::new(cx.steps(300), 64, 2e-3), &first, key.named("pretraining"))?;
    let model = before.trained_below(&whole, HeadKind::ImageClassification, Some(5))?;
    let (train, test) = all.only(&[5, 6, 7, 8, 9]).split(key.named("split"), 450);
    let recipe = Recipe::new(cx.steps(200), 64, 3e-3);
    let frozen = ("frozen", json!({"method": "stand_in"}));
    for (arm, described) in arms.iter().chain([&frozen]) {
        let adapter = match *arm {
            "frozen" => adapter_of(&*model.model, std::sync::Arc::new(StandIn::head()), key)?,
            _ => {
                let mut described = described.clone();
                described["target_modules"] = json!(["fc2"]);
                described["modules_to_save"] = json!(["classifier"]);
                adapter(&*model.model, &described, key.named("adapter"))?
            }
        };
        fit(&*model.model, &adapter, &recipe, &train, key.named("order"))?;
        scores.set(arm, DIGITS, accuracy(&*model.model, &adapter, &test)?);
    }
    Ok(())
}
