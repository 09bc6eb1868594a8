//! Page 21, binary adapters: at equal storage many weights of one bit beat few of 32, and lose almost nothing against as many.

use std::sync::Arc;

use pleach_base::Result;
use pleach_methods::{Adapter, AdapterConfig, MethodKind};
use pleach_nn::HeadKind;
use serde_json::json;

use crate::kit::{Recipe, StandIn, Tiny, accuracy, adapter_of, around, digits, fit, options, vit};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 21,
    title: "Binary adapters",
    paper: "Jie, Wang, Deng, *Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy*, 2023",
    claim: "Adapters of one bit a weight lose almost nothing against those of 32 bits of the same width, and win at the same storage.",
    setup: "\
A vision transformer of width 64 with two blocks, pretrained on the digits 0 to 4, learns 5 to 9 through AdaptFormer without biases. Its head \
is frozen as well: the new digits are read from the old five classes, so that the adapter does all the work. 450 images are trained on, the \
other 444 measured, in 400 steps of 64. `qat32` and `float1` have files of about the same size. Of the learning rates 0.003 to 0.1 each arm \
has the one that was best on seeds 0 and 1; `ptq32` has that of `float32`, which it codes.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "qat32", what: "width 32, trained with one bit a weight" },
        Arm { name: "float32", what: "width 32, 32 bits a weight" },
        Arm { name: "float1", what: "width 1, 32 bits a weight" },
        Arm { name: "ptq32", what: "`float32`, one bit a weight after training" },
    ],
    measures: &[
        Measure { name: ACCURACY, unit: "%", digits: 2 },
        Measure { name: BYTES, unit: " bytes", digits: 0 },
    ],
    margins: &[
        Margin::new(
            "one bit is within 1.0 point of 32 bits of the same width, or better",
            At("qat32", ACCURACY),
            Than::Arm(At("float32", ACCURACY)),
            Need::AtLeast(-1.0),
        ),
        Margin::new(
            "one bit is at least 2 points above 32 bits of the same storage",
            At("qat32", ACCURACY),
            Than::Arm(At("float1", ACCURACY)),
            Need::AtLeast(2.0),
        ),
        Margin::new(
            "coding after training is at least 1 point worse than in training",
            At("ptq32", ACCURACY),
            Than::Arm(At("qat32", ACCURACY)),
            Need::AtMost(-1.0),
        ),
    ],
    run,
};

const ACCURACY: &str = "accuracy on new digits";
const BYTES: &str = "stored";

/// Name, configuration and learning rate.
type Trial = (&'static str, Arc<dyn AdapterConfig>, f64);

fn arms() -> Result<[Trial; 4]> {
    let adapter = |dim: u32| json!({"method": "adaptformer", "dim": dim, "scale": 1.0, "dropout": 0.0, "bias": false});
    let coded = |method: &str| around(MethodKind::Compress, &json!({"method": method, "bit": 1}), &adapter(32));
    let float = |dim: u32| options(&adapter(dim));
    Ok([
        ("qat32", coded("adapter_qat")?, 3e-2),
        ("float32", float(32)?, 1e-2),
        ("float1", float(1)?, 3e-2),
        ("ptq32", coded("adapter_ptq")?, 1e-2),
    ])
}

fn run(cx: &Cx) -> Result<Scores> {
    let key = cx.key("digits");
    let all = digits::load(cx.device)?;
    let before = Tiny::draw(&vit(64, 2, (1, 8, 2), 5), Some(HeadKind::ImageClassification), key.named("model"), cx.device)?;
    let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), key)?;
    let first = all.only(&[0, 1, 2, 3, 4]);
    fit(&*before.model, &whole, &Recipe::new(cx.steps(300), 64, 2e-3), &first, key.named("pretraining"))?;
    let model = before.trained(&whole)?;
    let (train, test) = all.only(&[5, 6, 7, 8, 9]).split(key.named("split"), 450);
    let mut scores = Scores::default();
    for (arm, config, lr) in arms()? {
        let adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
        let recipe = Recipe { weight_decay: 1e-4, warmup: cx.steps(30), ..Recipe::new(cx.steps(400), 64, lr) };
        fit(&*model.model, &adapter, &recipe, &train, key.named("order"))?;
        scores.set(arm, ACCURACY, accuracy(&*model.model, &adapter, &test)?);
        scores.set(arm, BYTES, stored(&adapter)?);
        scores.params(arm, adapter.plan().params());
    }
    Ok(scores)
}

/// Bytes of the tensors in its file.
fn stored(adapter: &Adapter) -> Result<f64> {
    let tensors = adapter.exported()?;
    Ok(tensors.iter().map(|(_, tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as f64).sum())
}
