//! Page 20, p-Adapter: where neighbours on attention's graph are mostly unlike a token, an adapter that weighs them by how
//! they differ learns from the few that are alike; plain averaging and no averaging do not.

mod graph;

use pleach_base::Result;
use pleach_base::rng::Key;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::kit::{Data, Recipe, accuracy, adapter, fit, normal};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};
use graph::{GraphModel, TOKENS};

pub(super) const PAGE: Page = Page {
    number: 20,
    title: "p-Adapter",
    paper: "Wu, Zhang, Xu, Liao, Yao, Yu, *p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models*, 2024",
    claim: "Weighing attention's edges by how their ends differ, with an exponent that is trained, serves graphs whose neighbours \
            are mostly unlike each other, and costs nothing where they are alike.",
    setup: "\
Rows of 32 tokens in 6 groups; every group of a row has one of 5 labels. A token \
shows its group clearly and its label weakly, through noise, so that its label is better told from all tokens of its group together. \
Attention is fixed to a random graph without self-loops, of 8 neighbours a token, of which a share (the homophily) is of the token's own \
group and the others are of groups with other labels. The block is one layer of attention with random frozen maps and a residual; the head \
and the adapter behind the output projection are trained, on 400 rows, and labels of tokens are predicted on 200 others.

All arms are the same method with the same budget: `p` trained from 1.5; `p` fixed to 2, plain averaging over neighbours; `mu` of a \
million, which leaves every token to itself: a plain gated adapter.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "p_adapter", what: "p trained from 1.5" },
        Arm { name: "averaging", what: "p fixed to 2" },
        Arm { name: "gated", what: "the node itself alone" },
    ],
    measures: &[Measure { name: UNLIKE, unit: "%", digits: 2 }, Measure { name: ALIKE, unit: "%", digits: 2 }],
    margins: &[
        Margin::new(
            "at homophily 0.2 it is at least 2 points above averaging",
            At("p_adapter", UNLIKE),
            Than::Arm(At("averaging", UNLIKE)),
            Need::AtLeast(2.0),
        ),
        Margin::new(
            "and at least 2 points above the gated adapter",
            At("p_adapter", UNLIKE),
            Than::Arm(At("gated", UNLIKE)),
            Need::AtLeast(2.0),
        ),
        Margin::new(
            "at homophily 0.8 it is within 1 point of averaging, or above",
            At("p_adapter", ALIKE),
            Than::Arm(At("averaging", ALIKE)),
            Need::AtLeast(-1.0),
        ),
        Margin::new(
            "and within 1 point of the gated adapter, or above",
            At("p_adapter", ALIKE),
            Than::Arm(At("gated", ALIKE)),
            Need::AtLeast(-1.0),
        ),
    ],
    run,
};

const UNLIKE: &str = "accuracy at homophily 0.2";
const ALIKE: &str = "accuracy at homophily 0.8";

/// Groups of tokens, labels, and neighbours of a token.
const GROUPS: u64 = 6;
const LABELS: u64 = 5;
const NEIGHBOURS: usize = 8;
/// Size of what shows the label, beside what shows the group; its own noise is as large as itself.
const EVIDENCE: f64 = 0.15;
/// Deviation of the noise on everything.
const NOISE: f64 = 0.1;

fn run(cx: &Cx) -> Result<Scores> {
    let mut scores = Scores::default();
    for (measure, homophily) in [(UNLIKE, 0.2), (ALIKE, 0.8)] {
        let key = cx.key(measure);
        let (train, test) = (rows(key.named("train"), 400, homophily, cx), rows(key.named("test"), 200, homophily, cx));
        let model = GraphModel::draw(LABELS as usize, cx.key("model"), cx.device);
        for (arm, options) in [
            ("p_adapter", json!({"p_self": 1.5})),
            ("averaging", json!({"p_self": 2.0, "learnable_p": false})),
            ("gated", json!({"p_self": 2.0, "learnable_p": false, "mu": 1e6})),
        ] {
            let mut described = json!({"method": "p_adapter", "reduction_factor": 2, "modules_to_save": ["classifier"],
                                       "ffn_adapter_reduction_factor": false});
            if let (Some(all), Some(own)) = (described.as_object_mut(), options.as_object()) {
                all.extend(own.clone());
            }
            let adapter = adapter(&model, &described, key.named("adapter"))?;
            fit(&model, &adapter, &Recipe::new(cx.steps(300), 16, 1e-2), &train, key.named("order"))?;
            scores.set(arm, measure, accuracy(&model, &adapter, &test)?);
            scores.params(arm, adapter.plan().params());
        }
    }
    Ok(scores)
}

/// Rows of features beside the graph `[count, TOKENS, width + TOKENS]`, and labels `[count, TOKENS]`.
fn rows(key: Key, count: u64, homophily: f64, cx: &Cx) -> Data {
    let shows = |name: &str, what: u64| normal(cx.key(name), &[what as i64, graph::WIDTH], Device::Cpu);
    let (of_group, of_label) = (shows("group", GROUPS), shows("label", LABELS));
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for row in 0..count {
        let key = key.with(row);
        let drawn = Row::draw(key, homophily);
        let pick = |table: &Tensor, at: &[i64]| table.index_select(0, &Tensor::from_slice(at));
        let noise = |name: &str, width: i64| normal(key.named(name), &[TOKENS, width], Device::Cpu);
        let told = pick(&of_label, &drawn.labels) + noise("label", LABELS as i64).matmul(&of_label);
        let features = pick(&of_group, &drawn.groups) + told * EVIDENCE + noise("all", graph::WIDTH) * NOISE;
        x.push(Tensor::cat(&[features, drawn.graph], -1));
        y.push(Tensor::from_slice(&drawn.labels));
    }
    Data::new(Tensor::stack(&x, 0).to_device(cx.device).to_kind(Kind::Float), Tensor::stack(&y, 0).to_device(cx.device))
}

/// A drawn row.
struct Row {
    groups: Vec<i64>,
    labels: Vec<i64>,
    /// Weights of attention `[TOKENS, TOKENS]`.
    graph: Tensor,
}

impl Row {
    fn draw(key: Key, homophily: f64) -> Self {
        let mut draws = key.named("row").rng();
        let of_group: Vec<i64> = (0..GROUPS).map(|_| draws.below(LABELS) as i64).collect();
        let groups: Vec<i64> = (0..TOKENS).map(|_| draws.below(GROUPS) as i64).collect();
        let labels: Vec<i64> = groups.iter().map(|group| of_group[*group as usize]).collect();
        let mut weights = vec![0.0f32; (TOKENS * TOKENS) as usize];
        for token in 0..TOKENS as usize {
            let near = |other: &usize| *other != token && groups[*other] == groups[token];
            let alike: Vec<usize> = (0..TOKENS as usize).filter(near).collect();
            let unlike: Vec<usize> = (0..TOKENS as usize).filter(|other| labels[*other] != labels[token]).collect();
            for _ in 0..NEIGHBOURS {
                let own = f64::from(draws.uniform()) < homophily;
                let from = if (own && !alike.is_empty()) || unlike.is_empty() { &alike } else { &unlike };
                // A row of one label has nobody unlike, and a token may have a group to itself.
                let any = (token + 1) % TOKENS as usize;
                let other = if from.is_empty() { any } else { from[draws.below(from.len() as u64) as usize] };
                weights[token * TOKENS as usize + other] += 1.0 / NEIGHBOURS as f32;
            }
        }
        Self { groups, labels, graph: Tensor::from_slice(&weights).reshape([TOKENS, TOKENS]) }
    }
}
