//! Page 48, MOS: an adapter for every task, merged towards the older ones and found again by what it predicts.

use pleach_base::Result;
use pleach_methods::MethodKind;
use serde_json::{Value, json};

use crate::kit::{Recipe, adapter_of, around, learn, sequences};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 48,
    title: "MOS",
    paper: "Sun et al., *MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning*, AAAI 2025",
    claim: "Merging adapters and retrieving them by their own predictions keeps what a sequence of tasks taught.",
    setup: "\
Digits in five tasks of two classes; a vision transformer of width 64 with two blocks, pretrained to tell in which of eight ways a digit is \
turned and mirrored, is frozen. Every task trains AdaptFormer of width 16 for 10 epochs with batches of 32 by AdamW at 3e-3. *Sequential* is \
one adapter with a loss over all classes seen so far. The number is the mean accuracy over all five tasks after the last, among ten classes.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "mos", what: "MOS" },
        Arm { name: "sequential", what: "one adapter in sequence" },
        Arm { name: "unrefined", what: "MOS, the first guess of the adapter counts" },
        Arm { name: "unmerged", what: "MOS without merging" },
    ],
    measures: &[Measure { name: LAST, unit: "%", digits: 2 }],
    margins: &[
        Margin::new("MOS is 15 points above one adapter in sequence", MOS, Than::Arm(At("sequential", LAST)), Need::AtLeast(15.0)),
        Margin::new("refinement does not harm", MOS, Than::Arm(At("unrefined", LAST)), Need::AtLeast(0.0)),
        Margin::new("merging costs at most 0.5 points", MOS, Than::Arm(At("unmerged", LAST)), Need::AtLeast(-0.5)),
    ],
    run,
};

const LAST: &str = "last accuracy";
const MOS: At = At("mos", LAST);
const EPOCHS: u64 = 10;
const BATCH: usize = 32;

fn run(cx: &Cx) -> Result<Scores> {
    let key = cx.key("sequence");
    let model = sequences::pretrained(key, cx.steps(400), cx.device)?;
    let epochs = cx.steps(EPOCHS);
    let mos = |refine: u32, momentum: f64| {
        json!({"method": "mos", "init_cls": 2, "increment": 2, "tuned_epoch": epochs, "max_refine": refine,
               "adapter_momentum": momentum, "head_lr_factor": 1.0, "ca_samples_per_class": 5 * BATCH})
    };
    let arms: [(&'static str, Value); 4] = [
        ("mos", mos(4, 0.1)),
        ("sequential", json!({"method": "sequential", "num_increment_classes": 2, "num_epochs": epochs})),
        ("unrefined", mos(1, 0.1)),
        ("unmerged", mos(4, 0.0)),
    ];
    let mut scores = Scores::default();
    for (arm, strategy) in arms {
        let config = around(MethodKind::Strategy, &strategy, &json!({"method": "adaptformer", "dim": 16}))?;
        let adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
        let recipe = Recipe::new(0, BATCH, 3e-3).constant();
        let parts = sequences::tasks(key, cx.device)?;
        let matrix = learn(&*model.model, &adapter, &recipe, parts, epochs, key.named("order"))?;
        let last = matrix.last().map_or(0.0, |row| row.iter().sum::<f64>() / row.len() as f64);
        scores.set(arm, LAST, last);
        scores.params(arm, adapter.plan().params());
    }
    Ok(scores)
}
