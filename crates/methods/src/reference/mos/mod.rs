//! Page 48, MOS: a whole sequence of tasks on a small vision transformer.

mod around;
mod run;

use pleach_base::Result;
use pleach_spec::job::{OptimizerName, OptimizerSpec};
use serde::Deserialize;
use serde_json::Value;

use super::recording::{Recording, wrong};
use super::{Compared, Page, Train};
use crate::continual::align::Alignment;
use crate::continual::{MergeSchedule, Spread};

pub(super) const PAGE: Page = Page { number: 48, tolerances: &[], repeat };

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ffn_num: i64,
    adapter_scalar: f64,
    adapter_momentum: f64,
    #[serde(default)]
    merge_schedule: MergeSchedule,
    reg: f64,
    #[serde(default = "reg_temperature")]
    reg_temperature: f64,
    #[serde(default = "ensemble")]
    ensemble: bool,
    #[serde(default = "max_refine")]
    max_refine: usize,
    crct_epochs: u64,
    ca_lr: f64,
    ca_samples_per_class: i64,
    #[serde(default)]
    ca_storage_efficient_method: Spread,
    tuned_epoch: u64,
    init_lr: f64,
    #[serde(default = "head_lr_factor")]
    head_lr_factor: f64,
    #[serde(default)]
    weight_decay: f64,
    #[serde(default = "momentum")]
    momentum: f64,
    #[serde(default)]
    schedule: Schedule,
    /// How many classes each task brings; or these two.
    #[serde(default)]
    tasks: Vec<i64>,
    init_cls: Option<i64>,
    increment: Option<i64>,
}

/// The rate over the epochs of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum Schedule {
    #[default]
    #[serde(rename = "cosine per epoch to 0", alias = "cosine")]
    Cosine,
    #[serde(rename = "constant")]
    Constant,
}

fn reg_temperature() -> f64 {
    0.8
}

fn ensemble() -> bool {
    true
}

fn max_refine() -> usize {
    4
}

fn head_lr_factor() -> f64 {
    0.1
}

fn momentum() -> f64 {
    0.9
}

impl Config {
    fn optimizer(&self) -> OptimizerSpec {
        let Self { momentum, weight_decay, init_lr, .. } = *self;
        OptimizerSpec { name: OptimizerName::Sgd, lr: init_lr, weight_decay, momentum, ..OptimizerSpec::default() }
    }

    fn alignment(&self) -> Alignment {
        let Self { crct_epochs, ca_lr, momentum, weight_decay, .. } = *self;
        Alignment { epochs: crct_epochs, lr: ca_lr, momentum, weight_decay }
    }

    /// Classes of each task; `total` is how many there are.
    fn sizes(&self, total: i64) -> Result<Vec<i64>> {
        let sizes = match (self.init_cls, self.increment) {
            (Some(first), Some(more)) if self.tasks.is_empty() && first > 0 && more > 0 => {
                let rest = (total - first).max(0);
                std::iter::once(first).chain((0..rest / more).map(|_| more)).collect()
            }
            (None, None) => self.tasks.clone(),
            _ => return Err(wrong("config: either tasks, or init_cls and increment")),
        };
        if sizes.is_empty() || sizes.iter().any(|size| *size < 1) || sizes.iter().sum::<i64>() > total {
            return Err(wrong(format!("config.tasks: {sizes:?} of {total} classes")));
        }
        Ok(sizes)
    }
}

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    if recording.kind != "training" {
        return Err(wrong(format!("kind: page 48 has no {}", recording.kind)));
    }
    let config: Config = serde_json::from_value(Value::Object(recording.config.clone()))
        .map_err(|error| wrong("config: cannot be used").caused_by(error))?;
    run::repeat(recording, &config, train, compared)?;
    compared.check_used(recording);
    Ok(())
}
