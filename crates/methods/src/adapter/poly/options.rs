//! The options of Poly and MHR. Names are those of PEFT's `PolyConfig` and, beyond it, of the paper's code.

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::{Targets, options, positive, positive_number, refuse, share};

options! {
    /// Options of Poly and MHR.
    pub struct Config {
        /// Rank of every skill, and of every mixture of them.
        r: u32 = 8,
        /// Skills in the inventory.
        n_skills: u32 = 4,
        /// Parts that input and output are cut into, each with a mixture of its own: 1 is Poly, more are MHR.
        n_splits: u32 = 1,
        /// Tasks that rows may name by number; not needed beside `task_names`.
        n_tasks: u32 = 1,
        /// Names of the tasks, in the order of their numbers, for rows that name them so.
        task_names: Vec<String> = Vec::new(),
        /// Numerator of the scaling `lora_alpha / r`; PEFT's is 1.
        lora_alpha: f64 = 1.0,
        /// Which linear maps share one set of logits: `finegrained` (none), `layerwise` (those of one attention or
        /// feed-forward part), `blockwise`, `coderwise` (encoder and decoder), `coarsegrained` (all).
        router_granularity: Granularity = Granularity::Finegrained,
        /// Draw the skills of each sample in training from a relaxed Bernoulli distribution of temperature 1.
        module_logits_relaxed_bernoulli: bool = false,
        /// Use rounded values in the forward pass, the gradient of those before rounding in the backward pass.
        module_logits_straight_through: bool = false,
        /// Weights are the logits divided by their norm, and may be negative.
        module_logits_l2_norm: bool = false,
        /// Share of skills that are dropped for a sample in training, before weights are made to add up to 1.
        module_logits_dropout: f64 = 0.0,
        /// Every task has the last skill of each part in full.
        poly_use_shared_skill: bool = false,
        /// Multiply by `sqrt(n_splits / n_skills)` instead of making weights add up to 1.
        poly_average_correction: bool = false,
        /// Learning rate of the logits when that of the skills is `adapters_learning_rate`: the optimiser's `lr` is that
        /// of the skills, and the quotient of the two its multiple for the logits.
        module_logits_learning_rate: f64 = 0.1,
        /// See `module_logits_learning_rate`.
        adapters_learning_rate: f64 = 1e-3,
        /// How `A` begins: `mttl` uniform within `sqrt(1 / (3 in))` as the paper's code, `peft` within
        /// `sqrt(n_splits / in)`.
        a_init: AInit = AInit::Mttl,
        /// Begin `B` at zero; uniform otherwise, which is no identity.
        init_weights: bool = true,
        /// What is trained: `full` for skills and logits, `z` for the logits alone, `mu` for the skills alone, all with
        /// one weight and saved as one LoRA. The last two need an `inventory`.
        mode: Mode = Mode::Full,
        /// A local folder of a saved adapter of this method, of this build or PEFT, whose skills this one begins with, and
        /// the logits of tasks that both name. Every worker reads it.
        inventory: Option<String> = None,
        /// Save, and merge, the LoRA of this task instead of the inventory: a number or a name.
        export_task: Option<TaskRef> = None,
        /// PEFT's name of the method: `poly`.
        poly_type: PolyType = PolyType::Poly,
        /// Modules: queries and values of attention when left out.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
    }
}

/// Which linear maps share a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// None.
    Finegrained,
    /// Those of one attention or feed-forward part.
    Layerwise,
    /// Those of one block.
    Blockwise,
    /// Those of encoder and decoder.
    Coderwise,
    /// All.
    Coarsegrained,
}

/// How `A` begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AInit {
    /// As in the paper's code.
    Mttl,
    /// As in PEFT.
    Peft,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Skills and logits.
    Full,
    /// Logits.
    Z,
    /// Skills, without a router.
    Mu,
}

/// PEFT's `poly_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolyType {
    /// The only one.
    Poly,
}

/// A task by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TaskRef {
    /// Its number.
    Number(u32),
    /// Its name.
    Name(String),
}

impl Config {
    /// How many tasks there are.
    pub(crate) fn tasks(&self) -> u32 {
        if self.task_names.is_empty() { self.n_tasks } else { self.task_names.len() as u32 }
    }

    /// The task whose LoRA is saved and merged: the chosen one, or the only one.
    pub(crate) fn chosen(&self) -> Option<u32> {
        match &self.export_task {
            Some(TaskRef::Number(number)) => Some(*number),
            Some(TaskRef::Name(name)) => {
                self.task_names.iter().position(|known| known == name).map(|at| at as u32)
            }
            None => (self.tasks() == 1).then_some(0),
        }
    }

    /// What low-rank products are multiplied with.
    #[cfg(feature = "torch")]
    pub(crate) fn scaling(&self) -> f64 {
        self.lora_alpha / f64::from(self.r)
    }

    /// Whether PEFT's `PolyConfig` can say all of this.
    pub(super) fn is_peft(&self) -> bool {
        let own = Self {
            task_names: self.task_names.clone(),
            export_task: self.export_task.clone(),
            lora_alpha: self.lora_alpha,
            router_granularity: self.router_granularity,
            module_logits_straight_through: self.module_logits_straight_through,
            module_logits_l2_norm: self.module_logits_l2_norm,
            poly_use_shared_skill: self.poly_use_shared_skill,
            poly_average_correction: self.poly_average_correction,
            ..Self::default()
        };
        own == Self::default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (field, value) in
            [("r", self.r), ("n_skills", self.n_skills), ("n_splits", self.n_splits), ("n_tasks", self.n_tasks)]
        {
            positive(field, value)?;
        }
        for (field, value) in [
            ("lora_alpha", self.lora_alpha),
            ("module_logits_learning_rate", self.module_logits_learning_rate),
            ("adapters_learning_rate", self.adapters_learning_rate),
        ] {
            positive_number(field, value)?;
        }
        share("module_logits_dropout", self.module_logits_dropout)?;
        self.check_tasks()?;
        self.check_routing()
    }

    fn check_tasks(&self) -> Result<()> {
        let names = &self.task_names;
        if !names.is_empty() && self.n_tasks != 1 && self.n_tasks as usize != names.len() {
            let why = format!("{} names for n_tasks {}", names.len(), self.n_tasks);
            return Err(refuse("task_names", &why).hint("leave n_tasks out"));
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(refuse("task_names", &format!("`{}` is there twice", twice.1)));
        }
        if self.export_task.is_some() && self.chosen().is_none_or(|task| task >= self.tasks()) {
            return Err(refuse("export_task", &format!("is none of the {} tasks", self.tasks())));
        }
        Ok(())
    }

    fn check_routing(&self) -> Result<()> {
        if self.module_logits_relaxed_bernoulli && self.module_logits_straight_through {
            let why = "cannot be given together with module_logits_relaxed_bernoulli";
            return Err(refuse("module_logits_straight_through", why));
        }
        let other = self.module_logits_relaxed_bernoulli
            || self.module_logits_straight_through
            || self.module_logits_dropout > 0.0
            || self.poly_use_shared_skill
            || self.poly_average_correction;
        if self.module_logits_l2_norm && other {
            let why = "divides the logits themselves: no other option of the routing can be given with it";
            return Err(refuse("module_logits_l2_norm", why));
        }
        if self.mode == Mode::Mu && (self.tasks() > 1 || self.export_task.is_some()) {
            return Err(refuse("mode", "mu has no router, and therefore no tasks").hint("leave the tasks out"));
        }
        if self.mode != Mode::Full && self.inventory.is_none() {
            return Err(refuse("mode", "z and mu begin with skills that were trained before")
                .hint("name the folder of their adapter as `inventory`"));
        }
        Ok(())
    }
}
