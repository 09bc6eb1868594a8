//! Page 2, SNNK: a layer of random features learns what a bottleneck of several times the parameters learns, and a head over
//! random features needs no training at all.

use std::sync::Arc;

use pleach_base::Result;
use pleach_methods::MethodKind;
use serde_json::json;

use crate::kit::{Act, Mlp, Recipe, Shape, StandIn, accuracy, adapter, adapter_of, around, digits, fit};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 2,
    title: "SNNK",
    paper: "Sehanobish, Choromanski, Zhao, Dubey, Likhosherstov, *Scalable Neural Network Kernels*, 2024",
    claim: "Layers of random features replace the dense layers of adapters at a fraction of their parameters, and bundled layers \
            have an explicit solution.",
    setup: "\
A perceptron of two rectified layers, 64 to 256 to 256, pretrained on the digits 0 to 4 and frozen, learns the digits 5 to 9: 450 images \
for training, the others for testing, 10 epochs of batches of 16. Adapters stand behind both layers, and a new head is trained with each. \
SNNK has 8 random features, orthogonal and of inputs of length one, 2,304 parameters an adapter; the bottleneck is 32 wide and has 16,672. Each \
arm has the best of the learning rates 0.001 to 0.05.

*Closed form*: no adapter is trained; 512 random features of the second layer's result are read out by least squares, the sums made by \
the engine in one pass over the training images.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "snnk", what: "8 random features" },
        Arm { name: "bottleneck", what: "32 wide" },
        Arm { name: "head", what: "the head alone" },
        Arm { name: "closed form", what: "512 random features, ridge 0.001" },
    ],
    measures: &[Measure { name: ACCURACY, unit: "%", digits: 2 }],
    margins: &[
        Margin::new(
            "SNNK is within 1.5 points of the bottleneck, or above",
            At("snnk", ACCURACY),
            Than::Arm(At("bottleneck", ACCURACY)),
            Need::AtLeast(-1.5),
        ),
        Margin::new(
            "and at least 1 point above the head alone",
            At("snnk", ACCURACY),
            Than::Arm(At("head", ACCURACY)),
            Need::AtLeast(1.0),
        )
        .but(
            "with a rate of its own the head reads almost all of what 256 features say of the new digits, and leaves even the \
             bottleneck less than a point; eight random features add the smaller part of that. At the rates at which the head is \
             not done after 10 epochs (0.001, 0.002) SNNK is 1.4 and 0.9 points above it.",
        ),
        Margin::new(
            "the closed form reaches 95 %",
            At("closed form", ACCURACY),
            Than::Number(95.0),
            Need::AtLeast(0.0),
        ),
    ],
    run,
};

const ACCURACY: &str = "accuracy";

fn run(cx: &Cx) -> Result<Scores> {
    let mut scores = Scores::default();
    let key = cx.key("digits");
    let all = digits::load(cx.device)?.flat();
    let shape = Shape { input: 64, hidden: vec![256, 256], act: Act::Relu, bias: true, classes: Some(5) };
    let drawn = Mlp::draw(&shape, key.named("model"), cx.device);
    let whole = adapter_of(&drawn, Arc::new(StandIn::whole()), key)?;
    let first = all.only(&[0, 1, 2, 3, 4]);
    fit(&drawn, &whole, &Recipe::new(cx.steps(300), 64, 1e-3), &first, key.named("pretraining"))?;
    let model = drawn.trained(&whole)?.with_head(5, key.named("head"));
    let (train, test) = all.only(&[5, 6, 7, 8, 9]).split(key.named("split"), 450);
    let saved = json!(["classifier"]);
    let snnk = json!({"method": "snnk", "num_rfs": 8, "orthogonal": true, "normalize": "l2", "positions": ["ffn"],
                      "modules_to_save": saved});
    let bottleneck = json!({"method": "bottleneck", "reduction_factor": 8, "modules_to_save": saved});
    for (arm, adapter, lr) in [
        ("snnk", adapter(&model, &snnk, key.named("adapter"))?, 3e-2),
        ("bottleneck", adapter(&model, &bottleneck, key.named("adapter"))?, 5e-3),
        ("head", adapter_of(&model, Arc::new(StandIn::head()), key)?, 3e-2),
    ] {
        // 10 epochs of 28 batches.
        fit(&model, &adapter, &Recipe::new(cx.steps(280), 16, lr), &train, key.named("order"))?;
        scores.set(arm, ACCURACY, accuracy(&model, &adapter, &test)?);
        scores.params(arm, adapter.plan().params());
    }
    let inner = json!({"method": "snnk", "num_rfs": 8, "positions": ["ffn"]});
    let solved = around(MethodKind::Strategy, &json!({"method": "snnk_closed_form", "num_rfs": 512}), &inner)?;
    let solved = adapter_of(&model, solved, key.named("adapter"))?;
    fit(&model, &solved, &Recipe::new(9, 50, 1e-3), &train, key.named("order"))?;
    scores.set("closed form", ACCURACY, accuracy(&model, &solved, &test)?);
    scores.params("closed form", 512 * 5);
    Ok(scores)
}
