//! Page 61, LAE: an online module, offline averages of it, and both together, over a sequence of tasks.

use pleach_base::Result;
use pleach_methods::MethodKind;
use serde_json::{Value, json};

use crate::kit::{Recipe, adapter_of, around, learn, sequences};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 61,
    title: "LAE",
    paper: "Gao et al., *A Unified Continual Learning Framework with General Parameter-Efficient Tuning*, ICCV 2023",
    claim: "Learning, accumulation and ensemble keep what a sequence of tasks taught, whatever the small module is.",
    setup: "\
Digits in five tasks of two classes; a vision transformer of width 64 with two blocks, pretrained to tell in which of eight ways a digit is \
turned and mirrored, is frozen. Every task trains for 10 epochs with batches of 32 by AdamW at 3e-3 without decay. LAE rests its module for \
the first 4 epochs of later tasks; its copies keep `1 - 1/steps` of themselves, with the steps of a task. *Naive* is the same module with a \
loss over all classes seen so far and nothing else. The number is the mean accuracy over all five tasks after the last, among ten classes.",
    seeds: SEEDS,
    arms: &[
        Arm { name: "lae", what: "LAE around the adapter" },
        Arm { name: "naive", what: "the adapter in sequence, loss over all classes" },
        Arm { name: "online", what: "LAE, the online module alone answers" },
        Arm { name: "offline", what: "LAE, the offline copy alone answers" },
        Arm { name: "moving", what: "LAE without rest" },
        Arm { name: "lae lora", what: "LAE around LoRA on keys and values" },
        Arm { name: "naive lora", what: "that LoRA in sequence" },
        Arm { name: "lae prefix", what: "LAE around the compensated prefix" },
        Arm { name: "naive prefix", what: "that prefix in sequence" },
    ],
    measures: &[Measure { name: LAST, unit: "%", digits: 2 }],
    margins: &[
        Margin::new("LAE is 5 points above naive", LAE, Than::Arm(At("naive", LAST)), Need::AtLeast(5.0)),
        Margin::new("it is within 0.5 points of the online module or better", LAE, Than::Arm(At("online", LAST)), Need::AtLeast(-0.5))
            .but(
                "the mean is above it, but half a point is one of the 360 rows for tests, and the difference scatters by more than three \
                 times that over seeds: too little for five of them to resolve",
            ),
        Margin::new("it is within 0.5 points of the offline copy or better", LAE, Than::Arm(At("offline", LAST)), Need::AtLeast(-0.5)),
        Margin::new("rest does not harm", LAE, Than::Arm(At("moving", LAST)), Need::AtLeast(0.0)),
        Margin::new("LoRA gains", At("lae lora", LAST), Than::Arm(At("naive lora", LAST)), Need::AtLeast(0.0)),
        Margin::new("the prefix gains", At("lae prefix", LAST), Than::Arm(At("naive prefix", LAST)), Need::AtLeast(0.0)),
    ],
    run,
};

const LAST: &str = "last accuracy";
const LAE: At = At("lae", LAST);
const EPOCHS: u64 = 10;
const BATCH: usize = 32;

fn run(cx: &Cx) -> Result<Scores> {
    let key = cx.key("sequence");
    let model = sequences::pretrained(key, cx.steps(400), cx.device)?;
    let parts = || sequences::tasks(key, cx.device);
    let epochs = cx.steps(EPOCHS);
    // About 290 rows a task.
    let decay = 1.0 - 1.0 / (9 * epochs) as f64;
    let lae = |ensemble: &str, rests: bool| {
        let freeze = if rests { epochs * 2 / 5 } else { 0 };
        json!({"method": "lae", "num_increment_classes": 2, "num_epochs": epochs, "num_freeze_epochs": freeze,
               "ema_decay": decay, "ensemble": ensemble})
    };
    let naive = || json!({"method": "sequential", "num_increment_classes": 2, "num_epochs": epochs});
    let pet = |class: &str| json!({"method": "lae_pet", "pet_cls": class, "adapt_blocks": [0, 1]});
    let arms: [(&'static str, Value, &str); 9] = [
        ("lae", lae("max", true), "Adapter"),
        ("naive", naive(), "Adapter"),
        ("online", lae("online", true), "Adapter"),
        ("offline", lae("offline", true), "Adapter"),
        ("moving", lae("max", false), "Adapter"),
        ("lae lora", lae("max", true), "LoRA"),
        ("naive lora", naive(), "LoRA"),
        ("lae prefix", lae("max", true), "Prefix"),
        ("naive prefix", naive(), "Prefix"),
    ];
    let mut scores = Scores::default();
    for (arm, strategy, class) in arms {
        let config = around(MethodKind::Strategy, &strategy, &pet(class))?;
        let adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
        let recipe = Recipe::new(0, BATCH, 3e-3).constant();
        let matrix = learn(&*model.model, &adapter, &recipe, parts()?, epochs, key.named("order"))?;
        let last = matrix.last().map_or(0.0, |row| row.iter().sum::<f64>() / row.len() as f64);
        scores.set(arm, LAST, last);
        scores.params(arm, adapter.plan().params());
    }
    Ok(scores)
}
