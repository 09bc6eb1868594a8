//! Page 6, Generative Adapter: a generator that reads a list of pairs writes an adapter with which the model, without the list in
//! front of it, gives the values of its keys.

use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_data::{Batch, Content, Encoded, Example, Marks};
use pleach_methods::Adapter;
use pleach_nn::{Forward, Group, HookSet, Inputs, Layout, NoHooks, Segment};
use pleach_spec::job::DataTask;
use pleach_train::loss::IGNORE;
use serde_json::{Value, json};
use tch::{Kind, Reduction, Tensor};

use crate::kit::{Data, Recipe, StandIn, Tiny, adapter, adapter_of, fit, fit_batches, llama, order};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 6,
    title: "Generative Adapter",
    paper: "Chen, Fang, Xia, Liu, Van Durme, Zettlemoyer, Gao, Cheng, *Generative Adapter: Contextualizing Language Models in \
            Parameters with A Single Forward Pass*, ICLR 2025",
    claim: "A generated adapter lets a model answer from a context that is no longer in front of it; normalising by singular values \
            and training on reconstruction are what makes it work.",
    setup: "\
A decoder of two blocks of width 64 is pretrained for 400 steps on lists of six pairs of a key and a value, each list twice in different \
orders: it begins to look values up in its context. Frozen, it then reads documents of two segments: a list, and a key of that list with \
its value. The second segment has the list only by way of the generated adapter (`fastlora_r` 32, `fastlora_max_rank` 8, at the output \
projections). All arms see the same 12,800 documents in 400 steps, at one learning rate. *Recall* is the share of values that are found, \
of 256 lists that were never seen: whoever knows which values are in the list, and not whose they are, finds about one in six. \
*Reconstruction* is the mean loss of the list itself, with the adapter that was made of it.",
    seeds: 5,
    arms: &[
        Arm { name: SVD, what: "singular values, reconstruction and completion" },
        Arm { name: FROBENIUS, what: "Frobenius norm, reconstruction and completion" },
        Arm { name: COMPLETION, what: "singular values, completion alone" },
        Arm { name: FROZEN, what: "the model without the list" },
    ],
    measures: &[
        Measure { name: RECALL, unit: "%", digits: 1 },
        Measure { name: RECONSTRUCTION, unit: "", digits: 3 },
    ],
    margins: &[
        Margin::new(
            "recall is at least three times that without the list",
            At(SVD, RECALL),
            Than::Arm(At(FROZEN, RECALL)),
            Need::AtLeastTimes(3.0),
        ),
        Margin::new(
            "normalising by singular values reconstructs better than by the Frobenius norm",
            At(SVD, RECONSTRUCTION),
            Than::Arm(At(FROBENIUS, RECONSTRUCTION)),
            Need::AtMost(0.0),
        ),
        Margin::new(
            "with reconstruction recall is better than with completion alone",
            At(SVD, RECALL),
            Than::Arm(At(COMPLETION, RECALL)),
            Need::AtLeast(0.0),
        ),
    ],
    run,
};

const SVD: &str = "svd";
const FROBENIUS: &str = "frobenius";
const COMPLETION: &str = "completion only";
const FROZEN: &str = "frozen";
const RECALL: &str = "recall";
const RECONSTRUCTION: &str = "reconstruction";

/// Keys, and values behind them; token 0 begins a sequence.
const KEYS: usize = 16;
const VALUES: usize = 16;
const PAIRS: usize = 6;
/// Tokens of a list.
const LIST: usize = 1 + 2 * PAIRS;
const TESTED: usize = 256;

fn run(cx: &Cx) -> Result<Scores> {
    let key = cx.key("pairs");
    let model = pretrained(cx, key)?;
    let test: Vec<Document> = (0..TESTED as u64).map(|n| Document::draw(key.named("test").with(n))).collect();
    let mut scores = Scores::default();
    let none = judge(&model, &NoHooks, &test);
    scores.set(FROZEN, RECALL, none.0);
    scores.set(FROZEN, RECONSTRUCTION, none.1);
    let both = json!(["reconstruction", "completion"]);
    for (arm, norm, tasks) in
        [(SVD, "svd", &both), (FROBENIUS, "frobenius", &both), (COMPLETION, "svd", &json!(["completion"]))]
    {
        let generator = trained(cx, &model, &options(norm, tasks), key)?;
        let (recall, reconstruction) = judge(&model, &generator, &test);
        scores.set(arm, RECALL, recall);
        scores.set(arm, RECONSTRUCTION, reconstruction);
        scores.params(arm, generator.params().numel() as u64);
    }
    Ok(scores)
}

fn options(norm: &str, tasks: &Value) -> Value {
    json!({"method": "generative", "fastlora_r": 32, "fastlora_max_rank": 8, "fastlora_alpha": 64, "fastlora_norm": norm,
           "window": LIST, "tasks": tasks})
}

/// The model that looks values up.
fn pretrained(cx: &Cx, key: Key) -> Result<Tiny> {
    let vocabulary = 1 + KEYS + VALUES;
    let before = Tiny::draw(&llama(64, 2, vocabulary, 32), None, key.named("model"), cx.device)?;
    let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), key)?;
    let rows = 4096;
    let ids: Vec<i64> = (0..rows)
        .flat_map(|n| {
            let list = Document::draw(key.named("text").with(n));
            let again = order(key.named("again").with(n), PAIRS);
            let pair = |at: i64| [list.list[1 + 2 * at as usize], list.list[2 + 2 * at as usize]];
            list.list.iter().copied().chain(again.into_iter().flat_map(pair)).collect::<Vec<_>>()
        })
        .collect();
    let ids = Tensor::from_slice(&ids).reshape([rows as i64, -1]).to_device(cx.device);
    // Nothing foretells what comes the first time.
    let labels = ids.copy();
    let _ = labels.narrow(1, 0, LIST as i64).fill_(IGNORE);
    let recipe = Recipe { warmup: cx.steps(50), max_grad_norm: 1.0, ..Recipe::new(cx.steps(400), 64, 4e-3) };
    fit(&*before.model, &whole, &recipe, &Data::new(ids, labels), key.named("pretraining"))?;
    before.trained(&whole)
}

/// A list and a key of it with its value.
struct Document {
    list: Vec<i64>,
    query: [i64; 3],
}

impl Document {
    fn draw(key: Key) -> Self {
        let keys = order(key.named("keys"), KEYS);
        let mut rng = key.named("values").rng();
        let pairs: Vec<[i64; 2]> = keys[..PAIRS]
            .iter()
            .map(|number| [1 + number, 1 + KEYS as i64 + rng.below(VALUES as u64) as i64])
            .collect();
        let asked = pairs[rng.below(PAIRS as u64) as usize];
        let list = std::iter::once(0).chain(pairs.into_iter().flatten()).collect();
        Self { list, query: [0, asked[0], asked[1]] }
    }

    /// A row as a job's data has it.
    fn example(&self, sample_id: u64) -> Example {
        let ids: Vec<i64> = self.list.iter().chain(&self.query).copied().collect();
        let mut labels = ids.clone();
        labels[LIST..LIST + 2].fill(IGNORE);
        let segments = (0..ids.len()).map(|at| i64::from(at >= LIST)).collect();
        let text = Encoded { type_ids: vec![0; ids.len()], ids: ids.iter().map(|id| *id as u32).collect() };
        let marks = Marks { labels, segments, ..Marks::default() };
        Example { sample_id, content: Content::Marked(text, marks), row_task: None }
    }
}

fn trained(cx: &Cx, model: &Tiny, described: &Value, key: Key) -> Result<Adapter> {
    let generator = adapter(&*model.model, described, key.named("generator"))?;
    let recipe = Recipe { warmup: cx.steps(20), max_grad_norm: 1.0, ..Recipe::new(cx.steps(400), 32, 4e-3) };
    let (train, batch) = (key.named("train"), recipe.batch as u64);
    fit_batches(&*model.model, &generator, &recipe, |step| {
        let rows = (batch * step..batch * (step + 1)).map(|n| Document::draw(train.with(n)).example(n));
        Batch::collate(DataTask::CausalLm, &rows.collect::<Vec<_>>())
    })?;
    Ok(generator)
}

/// Recall in per cent, and the loss of the lists themselves.
fn judge(model: &Tiny, hooks: &dyn HookSet, documents: &[Document]) -> (f64, f64) {
    let device = model.model.device();
    let (mut ids, mut lengths) = (Vec::new(), Vec::new());
    for document in documents {
        let mut row = |tokens: &[i64]| {
            ids.extend(tokens.iter().copied().chain(std::iter::repeat_n(0, LIST - tokens.len())));
            lengths.push(tokens.len());
        };
        row(&document.list);
        row(&document.query[..2]);
        row(&document.list);
    }
    let rows = lengths.len();
    let of_document = [(0, 0), (1, 1), (2, 1)].map(|(index, sees)| Segment { index, sees });
    let layout = Layout::padded(lengths, LIST, (0..rows as u64).collect(), device)
        .segmented(of_document.repeat(documents.len()));
    let ids = Tensor::from_slice(&ids).reshape([rows as i64, LIST as i64]).to_device(device);
    let groups = [Group { rows: 0..rows, hooks }];
    let cx = Forward::eval(model.model.config().sites(), &layout, &groups);
    let logits = tch::no_grad(|| model.model.forward(&cx, &Inputs::ids(ids.shallow_clone())).tensor().to_kind(Kind::Float));
    let parts = logits.unflatten(0, [-1, 3]); // [n, 3, tokens, vocabulary]
    let answers: Vec<i64> = documents.iter().map(|document| document.query[2]).collect();
    let answers = Tensor::from_slice(&answers).to_device(device);
    let right = parts.select(1, 1).select(1, 1).argmax(-1, false).eq_tensor(&answers).to_kind(Kind::Float);
    let (list, targets) = (parts.select(1, 2), ids.unflatten(0, [-1, 3]).select(1, 2));
    let vocabulary = list.size()[2];
    let predicted = list.narrow(1, 0, LIST as i64 - 1).reshape([-1, vocabulary]);
    let wanted = targets.narrow(1, 1, LIST as i64 - 1).reshape([-1]);
    let loss = predicted.cross_entropy_loss::<Tensor>(&wanted, None, Reduction::Mean, IGNORE, 0.0);
    (100.0 * right.mean(Kind::Float).double_value(&[]), loss.double_value(&[]))
}
