//! Adapters: trained on a frozen backbone, saved in PEFT's layout. One file a method; a new one is one word in the
//! registry below.

#[cfg(feature = "torch")]
mod board;
#[cfg(feature = "torch")]
mod built;
pub mod common;
pub mod compose;
pub(crate) mod prelude;
mod program;
mod prompting;
#[cfg(feature = "torch")]
mod room;
mod rotation;
pub(crate) mod saved;
#[cfg(feature = "torch")]
mod written;
// What `cargo xtask new-method` begins a file with: compiled and tested here, and no method of the registry.
#[cfg(test)]
#[expect(unreachable_pub, reason = "a method of the registry is public")]
mod template;

use std::fmt::Debug;
use std::marker::PhantomData;

use pleach_base::Result;
use pleach_nn::BackboneConfig;
use pleach_spec::job::{Masking, RowTasks};
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[cfg(feature = "torch")]
pub use board::{Board, Crossing};
#[cfg(feature = "torch")]
pub use built::{Adapter, Hooks, Parts, SiteMethod};
#[cfg(feature = "torch")]
pub use program::symmetric_kl;
pub use program::{Passes, StepInfo};
#[cfg(feature = "torch")]
pub use room::Room;
#[cfg(feature = "torch")]
pub use written::{Context, Feeding, Written};

use crate::card::Card;
use crate::options::{Later, typed, under};
use crate::plan::{Plan, PlannedTensor};
use crate::registry::Method;

/// Declares the files of this folder and their list.
macro_rules! registry {
    ($($method:ident),* $(,)?) => {
        $(pub mod $method;)*
        pub(crate) static METHODS: &[&dyn Method] = &[$(&Typed::<$method::Config>::NEW),*];
    };
}

registry! {
    adalora,
    adaptformer,
    average,
    boft,
    bottleneck,
    compacter,
    domain,
    fourierft,
    fuse,
    generative,
    hra,
    hydra,
    ia3,
    invertible,
    lae_pet,
    ln_tuning,
    loha,
    lokr,
    lora,
    lt_sft,
    oft,
    p_adapter,
    p_tuning,
    parallel,
    pill,
    poly,
    prefix,
    prompt,
    randlora,
    snnk,
    stack,
    trainable_tokens,
    vera,
    visual_adapter,
}

/// The options of one method, typed: what its file implements.
pub trait Options: AdapterConfig + DeserializeOwned + JsonSchema + 'static {
    /// What the method is.
    const CARD: &'static Card;

    /// Options of PEFT's that this build does not have.
    const LATER: &'static [Later] = &[];

    /// Options for tests on tiny models, as JSON, where the defaults do not do.
    const EXAMPLE: &'static str = "{}";

    /// The options of an adapter that is read from a file rather than made new.
    #[must_use]
    fn imported(self) -> Self {
        self
    }

    /// The same where PEFT's training depends on the `task_type` of the file.
    #[must_use]
    fn imported_for(self, _task_type: Option<&str>) -> Self {
        self.imported()
    }

    /// Refuses values that no model could use.
    ///
    /// # Errors
    /// `METHOD_CONFIG`; the message begins with the option's name.
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// Tokens that an adapter puts in front of every sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Virtual {
    /// Rows in front of every sequence's hidden states: the batch has placeholder ids there, which the hook at the token
    /// table fills. They count as tokens in everything but the labels.
    pub prompt: usize,
    /// Keys and values in front of every sequence's own: real positions begin at this number.
    pub prefix: usize,
}

/// How a row becomes a document of segments that are sequences of their own: see [`AdapterConfig::segments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Most tokens of a segment.
    pub window: usize,
    /// Chunks are predicted, but for the first.
    pub completion: bool,
    /// For every chunk a drawn window of it and those before it is appended, and predicted.
    pub reconstruction: bool,
}

impl Segments {
    /// The chunks of `length` tokens: as few as their most tokens allow, of equal length, the last perhaps shorter.
    pub fn chunks(&self, length: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let number = length.div_ceil(self.window.max(1)).max(1);
        let most = length.div_ceil(number).max(1);
        (0..length).step_by(most).map(move |start| start..(start + most).min(length))
    }
}

/// Kinds of tokens that an adapter tells apart: see [`AdapterConfig::modalities`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modalities {
    /// Tokens of one item of each kind, by its number; 0 where any number will do, as of text, whose number is 0.
    pub tokens: Vec<usize>,
    /// Width of the features that come with tokens of other kinds than text.
    pub width: usize,
}

/// Which half of a bottleneck a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The map to the inner width.
    Down,
    /// The map from it.
    Up,
}

impl Half {
    /// The half that has `part` among its names.
    pub(crate) fn of(part: &str, down: &[&str], up: &[&str]) -> Option<Self> {
        if down.contains(&part) { Some(Self::Down) } else { up.contains(&part).then_some(Self::Up) }
    }
}

/// Whose a parameter is, among the tasks that rows name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// All rows'.
    #[default]
    All,
    /// The rows' of this task: a step without any leaves the parameter as it is.
    Task(u32),
    /// Row `i` of the first axis is that of task `i`.
    EachRow,
}

/// What an `adapter_config.json` says beside the method's own fields.
#[derive(Clone, Debug)]
pub struct Export<'a> {
    /// `base_model_name_or_path`.
    pub base: &'a str,
}

/// What the sums of a step say of what an adapter chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Names, such as `router/largest_share`, and values.
    pub metrics: Vec<(String, f64)>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// What has a card: every method's options.
pub trait HasCard {
    /// What the method is.
    fn card(&self) -> &'static Card;
}

impl<C: Options> HasCard for C {
    fn card(&self) -> &'static Card {
        C::CARD
    }
}

/// A method's configuration: plans on a model, and with tensors makes hooks.
pub trait AdapterConfig: HasCard + Debug + Send + std::marker::Sync {
    /// Which sites, which tensors.
    ///
    /// # Errors
    /// `TARGET_NOTHING` when nothing is selected, `METHOD_CONFIG` for options that this model cannot have.
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan>;

    /// `adapter_config.json`, keys in order: PEFT's fields when PEFT knows the method.
    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value>;

    /// Its options as AdapterHub's bottleneck adapter, if it is one.
    fn bottleneck(&self) -> Option<bottleneck::Bn> {
        None
    }

    /// Called on the configuration of an adapter that is read from a file, with the shapes of the file's tensors: what
    /// they say counts more than the options do.
    fn see_file(&mut self, _shapes: &std::collections::BTreeMap<String, Vec<usize>>) {}

    /// Tokens that it puts in front of every sequence.
    fn virtual_tokens(&self) -> Virtual {
        Virtual::default()
    }

    /// How rows are cut into segments of a document; `None` when a row is one sequence.
    fn segments(&self) -> Option<Segments> {
        None
    }

    /// The kinds of tokens that rows may have; `None` when all are text.
    fn modalities(&self) -> Option<Modalities> {
        None
    }

    /// Which half of a bottleneck a parameter belongs to, for strategies that treat them differently.
    fn half(&self, _tensor: &PlannedTensor) -> Option<Half> {
        None
    }

    /// The name under which the first value of a tensor is drawn: tensors with one name, init and shape begin alike.
    fn drawn_as<'t>(&self, tensor: &'t PlannedTensor) -> &'t str {
        &tensor.name
    }

    /// The same adapter with another inner width, another factor of its result, another share that is dropped, where it
    /// has these three.
    fn sized(&self, _dim: Option<u32>, _scale: Option<f64>, _dropout: Option<f64>) -> Option<Box<dyn AdapterConfig>> {
        None
    }

    /// The tasks that rows must name: hooks find them in [`pleach_nn::Layout::tasks`]. `None` when rows are all alike.
    fn row_tasks(&self) -> Option<RowTasks> {
        None
    }

    /// A second source of rows, read as the task's own are: in training as many of them go through the model in every step
    /// as of the task's own. Hooks find 1 for them in [`pleach_nn::Layout::tasks`], and 0 for the task's own; none of
    /// their tokens is predicted. `None` when there are none.
    fn beside(&self) -> Option<&str> {
        None
    }

    /// How tokens of masked language modelling are drawn.
    fn masking(&self) -> Masking {
        Masking::default()
    }

    /// Whether it learns from texts alone: data whose rows have labels is then refused.
    fn of_language(&self) -> bool {
        false
    }

    /// Whose a parameter is. What has a single owner is not changed by a step without rows of that task: neither value,
    /// decay nor moments.
    fn owner(&self, _tensor: &PlannedTensor) -> Owner {
        Owner::All
    }

    /// The learning rate of a parameter, as a multiple of the task's.
    fn lr_scale(&self, _tensor: &PlannedTensor) -> f64 {
        1.0
    }

    /// Lengths in steps of the parts of a training of `total` steps, which they add up to. Each part begins with a new
    /// optimiser and at the start of the schedule.
    fn phases(&self, total: u64) -> Vec<u64> {
        vec![total]
    }

    /// Refuses a training of `total` steps that the options about its phases do not go with.
    ///
    /// # Errors
    /// `METHOD_CONFIG`; the message begins with the option's name.
    fn fits(&self, _total: u64) -> Result<()> {
        Ok(())
    }

    /// Whether some updates leave some tensors alone: then [`AdapterConfig::updates`] is asked, and every tensor counts
    /// its own updates.
    fn partial(&self) -> bool {
        false
    }

    /// Whether the update of a step moves a tensor: if not there is no decay, its moments stay, nothing is counted.
    fn updates(&self, _tensor: &PlannedTensor, _step: StepInfo) -> bool {
        true
    }

    /// Whether any pass of a step runs through a tensor: if not it has no gradient, which is not exchanged, and the update
    /// leaves it alone. `key` is the task's: what is drawn from it is the same on all ranks. Asked where
    /// [`AdapterConfig::partial`] says so.
    fn takes_part(&self, _tensor: &PlannedTensor, _step: StepInfo, _key: pleach_base::rng::Key) -> bool {
        true
    }

    /// Whether [`AdapterConfig::before_update`] is to be called.
    fn shapes_gradients(&self) -> bool {
        false
    }

    /// The forward passes of a training batch.
    fn passes(&self) -> Passes {
        Passes::default()
    }

    /// Whether its file holds the planned tensors in another form, of which [`AdapterConfig::decoded`] makes them.
    fn encodes(&self) -> bool {
        false
    }

    /// What it says of the sequence of tasks that it learns, if it does.
    fn sequence(&self) -> Option<&dyn crate::continual::sequence::Sequence> {
        None
    }

    /// Rows and width of the sums over the global batch that its hooks add to in training ([`Board::add`]); `None` when
    /// they add to none.
    fn sums(&self, _plan: &Plan) -> Option<[usize; 2]> {
        None
    }

    /// Whether its loss has a term that depends on those sums: then all rows of the global batch go forward before any of
    /// them goes backward.
    fn couples(&self) -> bool {
        false
    }

    /// Whether its hooks give rows to other ranks in training ([`pleach_nn::Peers`]): then ranks go through the model in
    /// step, block by block.
    fn exchanges(&self) -> bool {
        false
    }

    /// What the sums of a step say, `[rows width]`.
    fn routing(&self, _plan: &Plan, _sums: &[f64]) -> Option<Routing> {
        None
    }

    /// Whether a pass without gradient goes before every pass, whose last hidden states [`AdapterConfig::score`] sees.
    fn scores(&self) -> bool {
        false
    }

    /// The hooks over these tensors, which are the plan's.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &Parts<'_>) -> Result<Hooks>;

    /// The first value of a tensor that is planned with [`pleach_nn::Init::Derived`], in its planned shape. `key` is
    /// the tensor's own.
    ///
    /// # Errors
    /// `INTERNAL` by default: a method that plans such a tensor works it out.
    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        _base: &dyn pleach_nn::Backbone,
        _key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        Err(pleach_base::code::INTERNAL.error(format!("tensor `{}` has no value to begin with", tensor.name)))
    }

    /// A term of the loss that depends on the parameters alone: a float32 scalar, counted once a step.
    #[cfg(feature = "torch")]
    fn regulariser(&self, _parts: &Parts<'_>) -> Option<tch::Tensor> {
        None
    }

    /// The term of the loss that depends on the sums over the global batch `[rows, width]`: a scalar, counted once a step.
    #[cfg(feature = "torch")]
    fn batch_loss(&self, _sums: &tch::Tensor) -> Option<tch::Tensor> {
        None
    }

    /// What it makes of the last hidden states of a scoring pass, for the pass that follows.
    #[cfg(feature = "torch")]
    fn score(&self, _parts: &Parts<'_>, _pass: &pleach_nn::ScoredPass<'_>, _hidden: &tch::Tensor) {}

    /// What the method does to its tensors, in place, after the optimiser's update; gradients are still there and the
    /// same on all ranks.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn after_step(&self, _parts: &Parts<'_>, _step: StepInfo) -> Result<()> {
        Ok(())
    }

    /// Changes the reduced gradients, which lie on the parameters and are the same on all ranks, in place before they
    /// are clipped. Called where [`AdapterConfig::shapes_gradients`] says so.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn before_update(&self, _parts: &Parts<'_>, _step: StepInfo) -> Result<()> {
        Ok(())
    }

    /// What the method does to its tensors, in place, when the last step of a phase is done, whether that step was
    /// skipped or not.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn end_phase(&self, _parts: &Parts<'_>, _step: StepInfo) -> Result<()> {
        Ok(())
    }

    /// Reads a context with the model and writes another adapter, for methods that generate them.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for all other methods, and for a context that cannot be read in this way; `ADAPTER_FORMAT` for
    /// states of another generator.
    #[cfg(feature = "torch")]
    fn write(&self, _parts: &Parts<'_>, _base: &dyn pleach_nn::Backbone, _context: &Context<'_>) -> Result<Written> {
        let why = format!("method: {} writes no adapters", self.card().name);
        Err(pleach_base::code::METHOD_CONFIG.error(why).hint("`generative` does"))
    }

    /// Fields of `adapter_config.json` that depend on tensors: they stand in for those of
    /// [`AdapterConfig::adapter_config`].
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn exported_config(&self, _parts: &Parts<'_>) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }

    /// The tensors of `adapter_model.safetensors`, when they are not the planned ones.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn exported(&self, _parts: &Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        Ok(None)
    }

    /// The planned tensors of such a file, when they are not in it as they are. Called where
    /// [`AdapterConfig::encodes`] says so.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` naming the tensor that is damaged.
    #[cfg(feature = "torch")]
    fn decoded(
        &self,
        _plan: &Plan,
        _file: &std::collections::BTreeMap<String, tch::Tensor>,
    ) -> Result<Option<std::collections::BTreeMap<String, tch::Tensor>>> {
        Ok(None)
    }
}

/// The registry entry of a method with options `C`.
struct Typed<C>(PhantomData<fn() -> C>);

impl<C: Options> Typed<C> {
    const NEW: Self = Self(PhantomData);

    fn in_file(config: &Map<String, Value>) -> Result<C> {
        let options = config.iter().filter(|(key, _)| !ABOUT.contains(&key.as_str()));
        let options = options.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self::checked(&options, "adapter_config.json")
    }

    fn checked(options: &Map<String, Value>, at: &str) -> Result<C> {
        let config: C = typed(options, at, C::LATER)?;
        config.validate().map_err(|error| under(&error, at))?;
        Ok(config)
    }
}

/// Fields of `adapter_config.json` that say nothing about the method's options.
pub(crate) const ABOUT: &[&str] = &[
    "peft_type",
    "pleach_method",
    "continual",
    "peft_version",
    "base_model_name_or_path",
    "task_type",
    "inference_mode",
    "revision",
    "auto_mapping",
];

impl<C: Options> Method for Typed<C> {
    fn card(&self) -> &'static Card {
        C::CARD
    }

    fn example(&self) -> &'static str {
        C::EXAMPLE
    }

    fn schema(&self) -> Schema {
        schema_for!(C)
    }

    fn parse(&self, options: &Map<String, Value>, at: &str) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Self::checked(options, at)?))
    }

    fn import(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Self::in_file(config)?.imported_for(config.get("task_type").and_then(Value::as_str))))
    }

    fn made_new(&self, config: &Map<String, Value>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Self::in_file(config)?))
    }
}
