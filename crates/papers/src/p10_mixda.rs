//! Page 10, MixDA: a domain adapter learns a domain from texts alone, the loss on general ones keeps what the model knew, and
//! a gate brings the domain to a task with few labels.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleach_base::rng::{CounterRng, Key};
use pleach_base::{Result, ResultExt as _, code};
use pleach_data::{Batch, Content, Encoded, Example, Masks};
use pleach_methods::{Adapter, AdapterConfig, MethodKind};
use pleach_nn::HeadKind;
use pleach_spec::job::{DataTask, Masking};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::kit::{
    Data, Recipe, StandIn, Tiny, accuracy, adapter, adapter_of, around, bert, fit, fit_batches, loss, order, save,
};
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Page, SEEDS, Scores, Than};

pub(super) const PAGE: Page = Page {
    number: 10,
    title: "MixDA",
    paper: "Diao, Xu, Xu, Wang, Zhang, *Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained Language \
            Models' Memories*, ACL 2023",
    claim: "A domain adapter learns a domain from unlabelled texts without forgetting the general ones, and mixed in by a gate it helps \
            a task with few labels.",
    setup: "\
Two languages of 96 words each, 64 of which they share: in each the words fall into four parts, a text is a walk within one part, where three words \
may follow each, and every fifth word of a text is any word of the language. An encoder of width 64 with two blocks is pretrained by masks on the \
general language for 2,000 steps; all of it but the adapters is frozen from then on.

*Stage 1*: adapters of both feed-forward parts (`adapter_down_scale` 1, so that they have room for what the frozen maps do beside what is new) \
learn the domain's language for 1,200 steps of 32 texts, with 32 general texts beside (`knowledge_loss_factor` 2) or without. Losses are those of \
masked words in 512 texts that were never seen, with the adapters in the place of the frozen maps, as in their training.

*Stage 2*: to name the part of a text of the domain's language, from 16 labels a part: 200 steps of 16 at 3e-3. A gate for every token weighs \
adapters and frozen maps, beside a bottleneck of width 16 behind every feed-forward part; *pfeiffer* is that bottleneck alone. Means over three \
draws of the labels, on 512 texts.

Words, steps and factor were chosen on seeds 10 and 11. There, with the same 128 words in both languages, the domain's loss with general texts was \
5.6 % above that without, at 0.47 of the rise; with a factor of 1 and the words as they are it was 5.0 % above, at 0.17 of it.",
    seeds: SEEDS,
    arms: &[
        Arm { name: KEPT, what: "stage 1 with the loss on general texts" },
        Arm { name: LOST, what: "stage 1 without it" },
        Arm { name: PFEIFFER, what: "no domain adapter: the task's adapter alone" },
        Arm { name: FROZEN, what: "the pretrained model" },
    ],
    measures: &[
        Measure { name: DOMAIN, unit: "", digits: 3 },
        Measure { name: GENERAL, unit: "", digits: 3 },
        Measure { name: RISE, unit: "", digits: 3 },
        Measure { name: FEW, unit: "%", digits: 2 },
    ],
    margins: &[
        Margin::new(
            "the loss on the domain with general texts is at most 5 % above that without them",
            At(KEPT, DOMAIN),
            Than::Arm(At(LOST, DOMAIN)),
            Need::AtMostTimes(1.05),
        ),
        Margin::new(
            "and that without them at most 5 % above that with them",
            At(LOST, DOMAIN),
            Than::Arm(At(KEPT, DOMAIN)),
            Need::AtMostTimes(1.05),
        ),
        Margin::new(
            "the loss on general texts rises at most half as much",
            At(KEPT, RISE),
            Than::Arm(At(LOST, RISE)),
            Need::AtMostTimes(0.5),
        ),
        Margin::new(
            "with 16 labels a class, gate and task adapter are 2 points above the task adapter alone",
            At(KEPT, FEW),
            Than::Arm(At(PFEIFFER, FEW)),
            Need::AtLeast(2.0),
        ),
    ],
    run,
};

const KEPT: &str = "mixda";
const LOST: &str = "no old knowledge";
const PFEIFFER: &str = "pfeiffer";
const FROZEN: &str = "frozen";
const DOMAIN: &str = "loss on the domain";
const GENERAL: &str = "loss on general texts";
const RISE: &str = "its rise";
const FEW: &str = "accuracy with 16 labels a class";

/// Tokens 0 and 1 begin a text and stand for a masked word; the words are behind them.
const SPECIAL: u32 = 2;
const MASK: u32 = 1;
const WORDS: u32 = 128;
/// Words of a language.
const OWN: u32 = 96;
/// Parts of a language: its texts stay in one.
const PARTS: usize = 4;
/// Words that may follow a word.
const NEXT: usize = 3;
/// Tokens of a text.
const LENGTH: usize = 16;
/// One word in so many is any word of the language.
const STRAY: u64 = 5;
/// Texts for tests.
const TESTED: u64 = 512;
/// Draws of the few labels.
const DRAWS: u64 = 3;
const SHOTS: u64 = 16;

/// A Markov chain whose words fall into parts, which it leaves by stray words alone.
struct Language {
    first: u32,
    /// Words of each part.
    parts: Vec<Vec<u32>>,
    /// Words that may follow each word, by number from 0.
    next: Vec<Vec<u32>>,
}

impl Language {
    /// A language of the words from `first` on.
    fn draw(key: Key, first: u32) -> Self {
        let words = order(key.named("parts"), OWN as usize);
        let word = |word: &i64| first + *word as u32;
        let parts: Vec<Vec<u32>> =
            words.chunks(OWN as usize / PARTS).map(|part| part.iter().map(word).collect()).collect();
        let mut next = vec![Vec::new(); WORDS as usize];
        for part in &parts {
            for word in part {
                let chosen = order(key.named("next").with(u64::from(*word)), part.len());
                next[*word as usize] = chosen[..NEXT].iter().map(|at| part[*at as usize]).collect();
            }
        }
        Self { first, parts, next }
    }

    /// A text of a part.
    fn text(&self, part: usize, key: Key) -> Encoded {
        let mut rng = key.rng();
        let mut word = pick(&mut rng, &self.parts[part]);
        let mut ids = vec![0, SPECIAL + word];
        while ids.len() < LENGTH {
            // The walk goes on behind a stray word.
            let shown = if rng.below(STRAY) == 0 {
                self.first + rng.below(u64::from(OWN)) as u32
            } else {
                word = pick(&mut rng, &self.next[word as usize]);
                word
            };
            ids.push(SPECIAL + shown);
        }
        Encoded { type_ids: vec![0; ids.len()], ids }
    }

    /// Text `number` under a key: parts take turns.
    fn numbered(&self, key: Key, number: u64) -> Encoded {
        self.text((number % PARTS as u64) as usize, key.with(number))
    }
}

fn pick(rng: &mut CounterRng, from: &[u32]) -> u32 {
    from[rng.below(from.len() as u64) as usize]
}

/// Masks as a job draws them.
fn masks(masking: Masking, key: Key) -> Masks {
    let special = BTreeSet::from([0, MASK]);
    Masks { masking, token: MASK, special, vocab_size: SPECIAL + WORDS, key: key.named("masks") }
}

/// The `rows` texts of a step, none of which comes again, as a job's data has them.
fn batch(language: &Language, masks: &Masks, key: Key, step: u64, rows: usize) -> Result<Batch> {
    let one = |number: u64| {
        let (read, marks) = masks.draw(number, Some(0), &language.numbered(key, number));
        Example { sample_id: number, row_task: None, content: Content::Marked(read, marks) }
    };
    let rows = rows as u64;
    Batch::collate(DataTask::MaskedLm, &(step * rows..(step + 1) * rows).map(one).collect::<Vec<_>>())
}

fn matrix(rows: &[Vec<i64>], device: Device) -> Tensor {
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, -1]).to_device(device)
}

/// Masked texts for tests, of both stages' masks.
fn masked(language: &Language, key: Key, device: Device) -> Data {
    let masks = masks(Masking::default(), key);
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for number in 0..TESTED {
        let (read, marks) = masks.draw(number, None, &language.numbered(key, number));
        ids.push(read.ids.iter().map(|id| i64::from(*id)).collect());
        labels.push(marks.labels);
    }
    Data::new(matrix(&ids, device), matrix(&labels, device))
}

/// So many texts of each part, labelled with it.
fn labelled(language: &Language, key: Key, each: u64, device: Device) -> Data {
    let numbers = || 0..each * PARTS as u64;
    let ids = |number| language.numbered(key, number).ids.iter().map(|id| i64::from(*id)).collect();
    let classes: Vec<i64> = numbers().map(|number| (number % PARTS as u64) as i64).collect();
    Data::new(matrix(&numbers().map(ids).collect::<Vec<_>>(), device), Tensor::from_slice(&classes).to_device(device))
}

/// The pretrained model, and the same below a head of classes.
fn pretrained(cx: &Cx, key: Key, general: &Language) -> Result<[Tiny; 2]> {
    let mut config = bert(64, 2, (SPECIAL + WORDS) as usize, LENGTH);
    config["intermediate_size"] = json!(4 * 64);
    let before = Tiny::draw(&config, Some(HeadKind::MaskedLm), key.named("model"), cx.device)?;
    let whole = adapter_of(&*before.model, Arc::new(StandIn::whole()), key)?;
    let steps = cx.steps(PRETRAINING);
    let recipe = Recipe { warmup: steps / 10, max_grad_norm: 1.0, ..Recipe::new(steps, 64, 3e-3) };
    let (masks, texts) = (masks(Masking::default(), key.named("pretraining")), key.named("texts"));
    fit_batches(&*before.model, &whole, &recipe, |step| batch(general, &masks, texts, step, recipe.batch))?;
    let classes = before.trained_below(&whole, HeadKind::SequenceClassification, Some(PARTS))?;
    Ok([before.trained(&whole)?, classes])
}

const PRETRAINING: u64 = 2_000;
const STAGE_1: u64 = 1_200;
/// Weight of the loss on the domain: that on general texts is a mean over 64 features, of which most differ little.
const FACTOR: f64 = 2.0;
const STAGE_2: u64 = 200;

/// The layers and the width of the domain adapters, in the words of both stages.
fn described() -> Value {
    json!({"layers": [0, 1], "adapter_down_scale": 1})
}

/// Stage 1, with general texts or without.
fn learnt(cx: &Cx, model: &Tiny, key: Key, domain: &Language, general: Option<&Language>) -> Result<Adapter> {
    let mut strategy = json!({"method": "mixda", "stage": 1, "knowledge_loss_factor": FACTOR});
    match general {
        Some(_) => strategy["general_data"] = json!("general texts"),
        None => strategy["no_old_knowledge"] = json!(true),
    }
    let mut inner = described();
    inner["method"] = json!("domain");
    let config: Arc<dyn AdapterConfig> = around(MethodKind::Strategy, &strategy, &inner)?;
    let masks = masks(config.masking(), key.named("stage 1"));
    let adapter = adapter_of(&*model.model, config, key.named("adapter"))?;
    let recipe = Recipe { max_grad_norm: 1.0, ..Recipe::new(cx.steps(STAGE_1), 32, 3e-3) };
    let texts = |name: &str| key.named("stage 1").named(name);
    fit_batches(&*model.model, &adapter, &recipe, |step| {
        let own = batch(domain, &masks, texts("domain"), step, recipe.batch)?;
        let Some(general) = general else { return Ok(own) };
        Ok(own.beside(batch(general, &masks, texts("general"), step, recipe.batch)?))
    })?;
    Ok(adapter)
}

/// The task's adapter.
fn pfeiffer() -> Value {
    json!({"method": "bottleneck", "preset": "seq_bn", "reduction_factor": 4, "non_linearity": "swish"})
}

/// Mean accuracy over draws of the few labels; with a gate over a domain adapter if there is one.
fn few(cx: &Cx, key: Key, model: &Tiny, domain: &Language, learnt: Option<&Adapter>, mlm: &Tiny) -> Result<f64> {
    let folder = tempfile::tempdir().or_code(code::IO, || "no folder for an adapter can be made".to_owned())?;
    let mut loaded = described();
    if let Some(learnt) = learnt {
        save(&*mlm.model, learnt, folder.path())?;
        loaded["id"] = json!("domain");
        loaded["init_from"] = json!(folder.path());
    }
    let strategy = json!({"method": "mixda", "load_adapters": [loaded], "gate": {"hidden": 16}});
    let test = labelled(domain, key.named("test texts"), TESTED / PARTS as u64, cx.device);
    let recipe = Recipe { weight_decay: 0.05, ..Recipe::new(cx.steps(STAGE_2), 16, 3e-3) };
    let mut sum = 0.0;
    for draw in 0..DRAWS {
        let key = key.named("few").with(draw);
        let train = labelled(domain, key.named("texts"), SHOTS, cx.device);
        let own = match learnt {
            Some(_) => adapter_of(&*model.model, around(MethodKind::Strategy, &strategy, &pfeiffer())?, key)?,
            None => adapter(&*model.model, &pfeiffer(), key)?,
        };
        fit(&*model.model, &own, &recipe, &train, key.named("order"))?;
        sum += accuracy(&*model.model, &own, &test)?;
    }
    Ok(sum / DRAWS as f64)
}

fn run(cx: &Cx) -> Result<Scores> {
    let (key, mut scores) = (cx.key("mixda"), Scores::default());
    let [general, domain] =
        [("general", 0), ("domain", WORDS - OWN)].map(|(name, first)| Language::draw(key.named(name), first));
    let [mlm, classes] = pretrained(cx, key, &general)?;
    let tests = [("general", &general), ("domain", &domain)];
    let [on_general, on_domain] =
        tests.map(|(name, language)| masked(language, key.named("test").named(name), cx.device));
    let still = adapter_of(&*mlm.model, Arc::new(StandIn::head()), key)?;
    let before = loss(&*mlm.model, &still, &on_general)?;
    scores.set(FROZEN, GENERAL, before);
    scores.set(FROZEN, DOMAIN, loss(&*mlm.model, &still, &on_domain)?);
    for (arm, beside) in [(KEPT, Some(&general)), (LOST, None)] {
        let learnt = learnt(cx, &mlm, key, &domain, beside)?;
        let after = loss(&*mlm.model, &learnt, &on_general)?;
        scores.set(arm, DOMAIN, loss(&*mlm.model, &learnt, &on_domain)?);
        scores.set(arm, GENERAL, after);
        scores.set(arm, RISE, after - before);
        scores.set(arm, FEW, few(cx, key, &classes, &domain, Some(&learnt), &mlm)?);
    }
    scores.set(PFEIFFER, FEW, few(cx, key, &classes, &domain, None, &mlm)?);
    Ok(scores)
}
