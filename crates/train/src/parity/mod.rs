//! Parity: a recorded training is repeated, and what comes out is compared with what was recorded.
//!
//! A case is a folder: `model/`, `adapter/` and `trained/` (PEFT's layout, before and after the steps), `io.safetensors`
//! (`eval.*`, `batch.I.*`), `train.json` (losses, first gradient norm), `case.json` (optimiser, tolerances). The steps
//! are those of the product's own engine. Not here: how cases are made (`tests/interop/py/record_case.py`).

mod batch;
mod case;
mod compare;
mod recorded;

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt as _, SystemClock, TaskName, code};
use pleach_methods::Adapter;
use pleach_methods::reference::{self, Outcome};
use pleach_nn::{Backbone, HeadOptions, NoHooks, Precision};
use pleach_spec::job::{Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use serde::Serialize;
use tch::Device;

pub use compare::Measure;

use crate::engine::{Engine, Mode, Objective, TaskSetup, forward};
use crate::observer::Silent;
use batch::Recorded;
use case::Case;

/// How far a case is from what was recorded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the case.
    pub case: String,
    /// Class of the model.
    pub model_class: String,
    /// What it was trained on.
    pub task: String,
    /// PEFT's name of the method.
    pub peft_type: String,
    /// Training steps.
    pub steps: usize,
    /// Logits of the frozen model, absolute, at real tokens.
    pub base_logits: Measure,
    /// The same with the adapter, virtual tokens included.
    pub adapted_logits: Measure,
    /// Loss of each step, before it, relative.
    pub losses: Measure,
    /// Norm of the first gradient, before clipping, relative.
    pub grad_norm: Measure,
    /// Tensors of the trained adapter, absolute.
    pub trained: Measure,
}

impl Report {
    /// The measures with their names.
    #[must_use]
    pub fn measures(&self) -> [(&'static str, &Measure); 5] {
        [
            ("base logits", &self.base_logits),
            ("adapted logits", &self.adapted_logits),
            ("losses", &self.losses),
            ("gradient norm", &self.grad_norm),
            ("trained tensors", &self.trained),
        ]
    }

    /// Whether everything is within its tolerance.
    #[must_use]
    pub fn within(&self) -> bool {
        self.measures().iter().all(|(_, measure)| measure.within)
    }
}

/// What came of a folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Repeated {
    /// A whole training with an adapter of PEFT's.
    Training(Box<Report>),
    /// What a paper's code computed for one method.
    Method(Outcome),
}

impl Repeated {
    /// Whether everything is within its tolerance.
    #[must_use]
    pub fn within(&self) -> bool {
        match self {
            Self::Training(report) => report.within(),
            Self::Method(outcome) => outcome.within,
        }
    }
}

/// Repeats the case in `folder` on the CPU, whichever kind it is.
///
/// # Errors
/// As [`run`] and [`pleach_methods::reference::run`].
pub fn repeat(folder: &Path) -> Result<Repeated> {
    if reference::is_recording(folder)? {
        reference::run(folder, &recorded::Own).map(Repeated::Method)
    } else {
        run(folder).map(|report| Repeated::Training(Box::new(report)))
    }
}

/// Repeats the whole training in `folder` on the CPU.
///
/// # Errors
/// `PARITY_CASE` naming the file and what is wrong with it; those of opening its model and its adapter.
pub fn run(folder: &Path) -> Result<Report> {
    let case = Case::open(folder)?;
    let (dir, config) = pleach_nn::open(&folder.join("model"), &HeadOptions::default())?;
    let info = config.info();
    let objective = Objective::of_head(info.head)
        .ok_or_else(|| case.wrong("model/config.json", format!("{} has no loss to compare", info.class)))?;
    let model = config.build(&dir, Device::Cpu, Precision::Fp32)?;
    let adapter = adapter(folder, model.as_ref())?;
    let front = adapter.config().virtual_tokens();

    let eval = || Recorded::read(&case, "eval", info);
    let base = tch::no_grad(|| Ok(forward(model.as_ref(), &NoHooks, &eval()?.input, Mode::EVAL)))?;
    let base_logits = eval()?.logits(&case, "base_logits", &base, 0)?;

    let group = pleach_comm::local(Device::Cpu);
    let mut engine = Engine::new(model.as_ref(), group.as_ref(), Arc::new(Silent), SystemClock::shared());
    let name = TaskName::from("parity");
    engine.add_task(setup(&case, &name, adapter, objective)?)?;
    let adapted = engine.output(&name, eval()?.input)?;
    let adapted_logits = eval()?.logits(&case, "adapted_logits", &adapted, front.prompt)?;

    let mut losses = Measure::new(case.tolerance.loss_rel);
    let mut grad_norm = Measure::new(case.tolerance.grad_norm_rel);
    for (step, expected) in case.losses.iter().enumerate() {
        let batch = Recorded::read(&case, &format!("batch.{step}"), info)?;
        let forwarded = engine.forward_backward_rows(&name, batch.input, &batch.labels)?;
        losses.relative(forwarded.loss, *expected, || format!("step {step}"));
        let result = engine.optim_step(&name, false)?;
        if let (0, Some(expected)) = (step, case.grad_norm_step0) {
            grad_norm.relative(result.grad_norm, expected, || "step 0".to_owned());
        }
    }
    let trained = compare::trained(&case, &engine.save(&name)?)?;
    Ok(Report {
        model_class: info.class.clone(),
        steps: case.losses.len(),
        case: case.name,
        task: case.task,
        peft_type: case.peft_type,
        base_logits,
        adapted_logits,
        losses,
        grad_norm,
        trained,
    })
}

/// The adapter as it was before the first step.
fn adapter(folder: &Path, model: &dyn Backbone) -> Result<Adapter> {
    let at = folder.join("adapter");
    let imported = pleach_methods::import(&at)?;
    let (mut config, mut values) = (Arc::clone(&imported.config), imported.values()?);
    // The network that makes a prompt's table, where there was one: PEFT's file has the table alone.
    let network = folder.join("encoder.safetensors");
    if network.is_file() {
        config = imported.made_new()?;
        values.remove("prompt_embeddings");
        values.extend(case::tensors(&network)?);
    }
    let plan = config.plan(model.config()).map_err(|error| error.at(at.display()))?;
    Adapter::build(config, Arc::new(plan), model, Key::seed(0), Some(&values)).map_err(|error| error.at(at.display()))
}

fn setup(case: &Case, name: &TaskName, adapter: Adapter, objective: Objective) -> Result<TaskSetup> {
    let recorded = &case.optimizer;
    Ok(TaskSetup {
        name: name.clone(),
        adapter,
        adapter_config: serde_json::Value::Null,
        objective,
        optimizer: OptimizerSpec {
            lr: recorded.lr,
            betas: recorded.betas,
            eps: recorded.eps,
            weight_decay: recorded.weight_decay,
            ..OptimizerSpec::default()
        },
        schedule: ScheduleSpec::default(),
        total_steps: u64::try_from(case.losses.len()).or_code(code::INTERNAL, || "too many steps".to_owned())?,
        max_grad_norm: recorded.clip_grad_norm,
        // A loss that is not finite is far from any recorded one: it shows in the report.
        non_finite: NonFinite::Skip,
        determinism: Determinism::Fast,
        micro_batch: None,
        checkpointing: false,
        own_steps: case.own_steps()?,
    })
}
