//! The options of VL-Adapter.

use std::fmt;

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Part, Role, Sites};
use pleach_spec::job::RowTasks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::bottleneck::{Bn, InitWeights, Reduction};
use crate::adapter::common::{Activation, options, positive, refuse};

options! {
    /// Options of VL-Adapter.
    pub struct Config {
        /// The tasks that rows name, in order.
        tasks: Vec<Task> = Vec::new(),
        /// What tasks share: `single` everything, `multiple` nothing, `share_up` or `share_down` one of the two maps,
        /// `hyper` what generates both.
        sharing: Sharing = Sharing::Single,
        /// Width of the hidden states divided by that of the bottleneck, which must come out even.
        reduction_factor: u32 = 8,
        /// Activation in the bottleneck.
        non_linearity: String = "gelu_new".to_owned(),
        /// A new normalisation before the bottleneck, one for all tasks.
        add_layer_norm_before_adapter: bool = false,
        /// A new normalisation behind the bottleneck, one for all tasks.
        add_layer_norm_after_adapter: bool = false,
        /// Put one behind attention to the encoder too, in decoders that have it.
        add_adapter_cross_attn: bool = true,
        /// Train the model's own normalisations.
        unfreeze_layer_norms: bool = true,
        /// Train the embedding of visual features, in models that have one.
        train_visual_embedding: bool = true,
        /// Put each task's prompt before its texts; when left out, only where tasks share everything.
        use_tasks_prompts: Option<bool> = None,
        /// Compacter: number of products, and size of the small factors.
        phm_dim: u32 = 2,
        /// Compacter: one set of small factors for all maps.
        shared_phm_rule: bool = false,
        /// Compacter: large factors are products of two thin ones.
        #[serde(rename = "factorized_phm_W")]
        factorized_phm_w: bool = false,
        /// Compacter: rank of those.
        phm_rank: u32 = 1,
        /// `hyper`: width of the embeddings of tasks and blocks.
        task_embedding_dim: u32 = 512,
        /// `hyper`: width of what both are mapped to.
        projected_task_embedding_dim: u32 = 8,
        /// `hyper`: inner width of that map.
        hidden: u32 = 128,
        /// How tasks are drawn: `roundrobin`, all steps of all tasks in a drawn order. `balanced` is not of this build.
        sampling: Sampling = Sampling::Roundrobin,
    }
}

/// One of the tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What rows call it.
    pub name: String,
    /// What stands before its texts, such as `"vqa: "`.
    #[serde(default)]
    pub prompt: String,
    /// Rows of its steps in parts of the global batch.
    #[serde(default = "one")]
    pub batch_ratio: f64,
    /// `none`. `answer_score`, a weight of each row's loss, is not of this build.
    #[serde(default)]
    pub loss_weight: LossWeight,
}

fn one() -> f64 {
    1.0
}

/// `loss_weight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// All rows alike.
    #[default]
    None,
    /// By the row's answer score.
    AnswerScore,
}

/// `sharing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Everything.
    Single,
    /// Nothing.
    Multiple,
    /// The second map.
    ShareUp,
    /// The first map.
    ShareDown,
    /// What generates both.
    Hyper,
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Multiple => "multiple",
            Self::ShareUp => "share_up",
            Self::ShareDown => "share_down",
            Self::Hyper => "hyper",
        })
    }
}

/// `sampling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Every task gives all its steps.
    Roundrobin,
    /// Every task gives as many steps.
    Balanced,
}

impl Config {
    /// Whether texts get prompts.
    pub(super) fn prompts(&self) -> bool {
        self.use_tasks_prompts.unwrap_or(self.sharing == Sharing::Single)
    }

    /// What rows must name.
    pub(super) fn row_tasks(&self) -> Option<RowTasks> {
        let all = || RowTasks {
            count: self.tasks.len() as u32,
            names: self.tasks.iter().map(|task| task.name.clone()).collect(),
            prompts: match self.prompts() {
                true => self.tasks.iter().map(|task| task.prompt.clone()).collect(),
                false => Vec::new(),
            },
            alike: true,
            batch_ratio: self.tasks.iter().map(|task| task.batch_ratio).collect(),
        };
        (self.tasks.len() > 1).then(all)
    }

    /// The bottleneck adapter that these options make of `bn`, on a model with these sites.
    pub(super) fn bottleneck(&self, bn: Bn, sites: &Sites) -> Bn {
        let crosses = sites.with_role(Role::SublayerOut).any(|site| site.part == Part::CrossAttention);
        Bn {
            mh_adapter: true,
            output_adapter: true,
            cross_adapter: crosses && self.add_adapter_cross_attn,
            reduction_factor: Reduction::All(f64::from(self.reduction_factor)),
            non_linearity: self.non_linearity.clone(),
            original_ln_before: false,
            original_ln_after: true,
            ln_before: self.add_layer_norm_before_adapter,
            ln_after: self.add_layer_norm_after_adapter,
            init_weights: InitWeights::Bert,
            phm_dim: self.phm_dim as usize,
            shared_phm_rule: self.shared_phm_rule,
            factorized_phm_w: self.factorized_phm_w,
            phm_rank: self.phm_rank as usize,
            ..bn
        }
    }

    /// Refuses widths that do not come out even; `products`: of maps that are sums of Kronecker products.
    pub(super) fn check_width(&self, model: &dyn BackboneConfig, products: bool) -> Result<()> {
        let (by, n) = (self.reduction_factor as usize, self.phm_dim as usize);
        for site in model.sites().with_role(Role::SublayerOut) {
            let (width, path) = (site.dims.output, &site.path);
            if !width.is_multiple_of(by) {
                return Err(refuse("reduction_factor", &format!("{by} does not divide {width}, the width of `{path}`"))
                    .hint("give a divisor of the width"));
            }
            let inner = width / by;
            if products && !(width.is_multiple_of(n) && inner.is_multiple_of(n)) {
                let why = format!("{n} divides not both {width} and {width} / {by} = {inner}, the widths at `{path}`");
                return Err(refuse("phm_dim", &why).hint("give a divisor of both, or another reduction_factor"));
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        for (field, value) in [
            ("reduction_factor", self.reduction_factor),
            ("phm_dim", self.phm_dim),
            ("phm_rank", self.phm_rank),
            ("task_embedding_dim", self.task_embedding_dim),
            ("projected_task_embedding_dim", self.projected_task_embedding_dim),
            ("hidden", self.hidden),
        ] {
            positive(field, value)?;
        }
        Activation::parse("non_linearity", &self.non_linearity)?;
        if self.sampling == Sampling::Balanced {
            let why = "balanced would feed rows of short tasks several times an epoch: this build does not have it";
            return Err(refuse("sampling", why));
        }
        if self.sharing == Sharing::Hyper && (self.add_layer_norm_before_adapter || self.add_layer_norm_after_adapter) {
            return Err(refuse("sharing", "hyper generates adapters without normalisations of their own"));
        }
        if self.tasks.is_empty() {
            return Err(refuse("tasks", "names no task"));
        }
        self.tasks.iter().enumerate().try_for_each(|(index, task)| self.check_task(index, task))
    }

    fn check_task(&self, index: usize, task: &Task) -> Result<()> {
        let (at, before) = (format!("tasks[{index}]"), &self.tasks[..index]);
        if task.name.is_empty() || task.name.contains('.') {
            return Err(refuse(&format!("{at}.name"), "is empty or has a dot, which names of tensors cannot hold"));
        }
        if before.iter().any(|other| other.name == task.name) {
            return Err(refuse(&format!("{at}.name"), &format!("`{}` is there twice", task.name)));
        }
        if !task.prompt.is_empty() && before.iter().any(|other| other.prompt == task.prompt) {
            return Err(refuse(&format!("{at}.prompt"), &format!("`{}` is another task's too", task.prompt)));
        }
        if !(task.batch_ratio.is_finite() && task.batch_ratio > 0.0) {
            return Err(refuse(&format!("{at}.batch_ratio"), "must be a positive number"));
        }
        if task.loss_weight == LossWeight::AnswerScore {
            return Err(refuse(&format!("{at}.loss_weight"), "this build does not have answer_score"));
        }
        Ok(())
    }
}
