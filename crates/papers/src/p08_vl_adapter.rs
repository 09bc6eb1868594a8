//! Page 8, VL-Adapter: one adapter for all tasks, told apart by a token, is as good as an adapter a task, and better where rows
//! are few.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, MethodKind};
use pleach_nn::HeadKind;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::kit::{Data, Recipe, StandIn, Tasked, Tiny, adapter_of, around, bert, fit, normal};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 8,
    title: "VL-Adapter",
    paper: "Sung, Cho, Bansal, *VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks*, 2022",
    claim: "One adapter shared by all tasks, with a prompt a task, is as good as an adapter a task with a fraction of the parameters.",
    setup: "\
An image is six visual words. Each word has a hidden vector of two numbers, an image their mean, and four questions ask on which side of a \
line through the origin it lies, each of another line. An encoder of two blocks and width 32 is pretrained to answer the questions, named \
by a token in front, about images of 24 words; then images are of 24 other words that it has never seen, with vectors of their own. The tasks, \
one a question, share the map from words to vectors, and differ in what is asked. All of the encoder and its head stay frozen but for its \
normalisations; adapters of width 8 stand behind the attention and feed-forward part of both blocks.

`single` is one such adapter for all tasks, `multiple` one a task; the question stands in front for both. They train for as many \
steps at the same rate, tasks in turn. Accuracy is the mean over the tasks, on 500 images each; parameters are those of the adapters.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "single", what: "one adapter, a token a task" },
        Arm { name: "multiple", what: "an adapter a task" },
    ],
    measures: &[Measure { name: MANY, unit: "%", digits: 2 }, Measure { name: FEW, unit: "%", digits: 2 }],
    margins: &[
        Margin::new(
            "with 150 rows a task, the single adapter is at most 0.5 points behind",
            At("single", MANY),
            Than::Arm(At("multiple", MANY)),
            Need::AtLeast(-0.5),
        ),
        Margin::new(
            "with 80 rows a task it is better",
            At("single", FEW),
            Than::Arm(At("multiple", FEW)),
            Need::AtLeast(0.0),
        ),
    ],
    run,
};

const MANY: &str = "accuracy, 150 rows a task";
const FEW: &str = "accuracy, 80 rows a task";

const WORDS: i64 = 24;
const LENGTH: i64 = 6;
const TASKS: i64 = 4;
/// Tokens: words of pretraining, words of the tasks' images, questions.
const QUESTION: i64 = 2 * WORDS;

/// Words, and the vector of each.
struct Codebook {
    first: i64,
    vectors: Tensor, // [24, 2]
}

/// Images as words, and their vectors.
struct Images {
    words: Tensor,   // [n, 6]
    vectors: Tensor, // [n, 2]
}

impl Images {
    fn draw(codebook: &Codebook, key: Key, count: i64) -> Self {
        let mut rng = key.rng();
        let words: Vec<i64> = (0..count * LENGTH).map(|_| rng.below(WORDS as u64) as i64).collect();
        let words = Tensor::from_slice(&words).to_device(codebook.vectors.device());
        let vectors = codebook.vectors.index_select(0, &words).reshape([count, LENGTH, 2]);
        let vectors = vectors.mean_dim([1i64].as_slice(), false, Kind::Float);
        Self { words: words.reshape([count, LENGTH]) + codebook.first, vectors }
    }

    /// With a question in front.
    fn asked(&self, task: i64) -> Data {
        let front = Tensor::full([self.words.size()[0], 1], QUESTION + task, (Kind::Int64, self.words.device()));
        Data::new(Tensor::cat(&[&front, &self.words], 1), self.sides(task))
    }

    /// On which side of the line of a task each lies.
    fn sides(&self, task: i64) -> Tensor {
        let angle = std::f64::consts::PI * task as f64 / TASKS as f64;
        let along = self.vectors.select(1, 0) * angle.cos() + self.vectors.select(1, 1) * angle.sin();
        along.gt(0.0).to_kind(Kind::Int64)
    }
}

fn run(cx: &Cx) -> Result<Scores> {
    let (mut scores, key) = (Scores::default(), cx.key("vl"));
    let model = pretrained(cx, key)?;
    let codebook = Codebook { first: WORDS, vectors: normal(key.named("codebook"), &[WORDS, 2], cx.device) };
    let tasked = |name: &str, count: i64| {
        let of = |task: i64| Images::draw(&codebook, key.named(name).with(task as u64), count).asked(task);
        Tasked::of(&(0..TASKS).map(of).collect::<Vec<_>>())
    };
    let test = tasked("test", 500);
    for (measure, rows) in [(MANY, 150), (FEW, 80)] {
        let train = tasked("train", rows);
        for arm in ["single", "multiple"] {
            let config = around(MethodKind::Strategy, &strategy(arm), &json!({"method": "bottleneck"}))?;
            let adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
            let own = adapter.plan().trained().filter(|tensor| tensor.part.starts_with("adapter_"));
            scores.params(arm, own.map(pleach_methods::PlannedTensor::numel).sum());
            let recipe = Recipe::new(cx.steps(600), 32, 3e-3);
            train.fit_in_turns(&*model.model, &adapter, &recipe, key.named("order"))?;
            scores.set(arm, measure, accuracy(&model, &adapter, &test)?);
        }
    }
    Ok(scores)
}

fn strategy(sharing: &str) -> Value {
    let tasks: Vec<Value> = (0..TASKS).map(|task| json!({"name": format!("t{task}")})).collect();
    json!({"method": "vl_multitask", "sharing": sharing, "tasks": tasks, "reduction_factor": 4, "use_tasks_prompts": false})
}

/// An encoder that has learnt to answer the questions about images of other words.
fn pretrained(cx: &Cx, key: Key) -> Result<Tiny> {
    let mut config = bert(32, 2, (QUESTION + TASKS) as usize, (LENGTH + 1) as usize);
    config["num_labels"] = json!(2);
    let drawn = Tiny::draw(&config, Some(HeadKind::SequenceClassification), key.named("model"), cx.device)?;
    let codebook = Codebook { first: 0, vectors: normal(key.named("other codebook"), &[WORDS, 2], cx.device) };
    let of = |task: i64| Images::draw(&codebook, key.named("pretraining").with(task as u64), 2_000).asked(task);
    let rows = Tasked::of(&(0..TASKS).map(of).collect::<Vec<_>>()).data;
    let whole = adapter_of(&*drawn.model, std::sync::Arc::new(StandIn::whole()), key)?;
    let recipe = Recipe { warmup: cx.steps(50), ..Recipe::new(cx.steps(600), 64, 3e-3) };
    fit(&*drawn.model, &whole, &recipe, &rows, key.named("order"))?;
    drawn.trained(&whole)
}

fn accuracy(model: &Tiny, adapter: &Adapter, rows: &Tasked) -> Result<f64> {
    let right: Result<Vec<f64>> = (0..TASKS as u32)
        .map(|task| {
            let own = rows.rows_of(task);
            let found = rows.outputs(&*model.model, adapter, &own)?.argmax(-1, false);
            let labels = rows.data.y.index_select(0, &Tensor::from_slice(&own).to_device(rows.data.y.device()));
            let right = found.eq_tensor(&labels).to_kind(Kind::Double).mean(Kind::Double);
            Ok(100.0 * right.to_device(Device::Cpu).double_value(&[]))
        })
        .collect();
    Ok(right?.iter().sum::<f64>() / TASKS as f64)
}
