//! An adapter that learns a sequence of tasks, each with classes of its own: what the strategies of continual learning
//! have alike. A strategy is a [`Recipe`]; [`Continual`] is the adapter that it makes of another one.
//!
//! The head grows: each task has rows of its own, and classes of tasks that have not begun score nothing. Copies of the
//! module's tensors, such as averages or those of older tasks, are tensors of the adapter with a name in front; in
//! evaluation the number of the pass says whose turn it is, 0 being the module in training.

use std::fmt::Debug;

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Init, Role, Site, SiteId};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::adapter::common::refuse;
use crate::adapter::{AdapterConfig, Export, HasCard, StepInfo, Virtual};
use crate::around::{AroundOptions, wrapped_config};
use crate::card::Card;
use crate::plan::{Keep, Plan, PlannedTensor};

/// What a tensor that is trained is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The module.
    Module,
    /// The head's rows of this task.
    Head(usize),
}

/// A strategy of continual learning.
pub(crate) trait Recipe: AroundOptions + Clone + PartialEq + Serialize {
    /// The classes of every task on a model with so many.
    fn splits(&self, classes: u32) -> Result<Vec<Vec<u32>>>;

    /// Passes over the rows of each task.
    fn epochs(&self) -> u32;

    /// Names of the copies of the module.
    fn copies(&self, _tasks: usize) -> Vec<String> {
        Vec::new()
    }

    /// Whether classes of older tasks do not compete in training.
    #[cfg(feature = "torch")]
    fn local_loss(&self) -> bool;

    /// How the head's rows begin, for features of this width.
    fn head_init(&self, width: usize) -> Init;

    /// Tensors of the recipe's own.
    fn tensors(&self, _head: &Site, _classes: usize) -> Vec<PlannedTensor> {
        Vec::new()
    }

    /// Whether the update of a step moves a piece.
    fn updates(&self, piece: Piece, step: StepInfo) -> bool;

    /// A piece's rate, as a multiple of the task's.
    fn lr_scale(&self, _piece: Piece) -> f64 {
        1.0
    }

    /// Whether the loss of a row depends on those beside it, so that lanes are computed one by one.
    fn couples_rows(&self) -> bool {
        false
    }

    /// What is done after every step.
    #[cfg(feature = "torch")]
    fn after_step(&self, _view: &super::view::View<'_>, _step: StepInfo) -> Result<()> {
        Ok(())
    }

    /// What is done after the last step of a task.
    #[cfg(feature = "torch")]
    fn end_task(&self, _view: &super::view::View<'_>, _task: usize) -> Result<()> {
        Ok(())
    }

    /// Passes at the end of a task whose features it wants of the task's rows; see [`Recipe::shows_features`].
    #[cfg(feature = "torch")]
    fn surveys(&self, _task: usize) -> Vec<u32> {
        Vec::new()
    }

    /// What it makes of those: moments by pass and class. Gives what somebody should look at.
    #[cfg(feature = "torch")]
    fn surveyed(&self, _view: &super::view::View<'_>, _task: usize, _found: &Survey) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Whether the head lets the features through, in evaluation in place of logits and in training behind them.
    #[cfg(feature = "torch")]
    fn shows_features(&self, _train: bool, _pass: u32) -> bool {
        false
    }

    /// What is added to the loss of rows, as a sum over them, for their features.
    #[cfg(feature = "torch")]
    fn more_loss(&self, _view: &super::view::View<'_>, _features: &tch::Tensor) -> Result<Option<tch::Tensor>> {
        Ok(None)
    }

    /// Scores `[n, classes]` of rows: `run` gives what the model gives in a pass.
    #[cfg(feature = "torch")]
    fn scores(&self, view: &super::view::View<'_>, run: &dyn Fn(u32) -> Result<tch::Tensor>) -> Result<tch::Tensor>;
}

/// Moments of features, by pass and class.
#[cfg(feature = "torch")]
pub type Survey = std::collections::BTreeMap<(u32, u32), super::align::Moments>;

/// What the trainer asks of an adapter that learns a sequence of tasks.
pub trait Sequence {
    /// The classes of every task.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for classes that the model does not have.
    fn splits(&self, model: &dyn BackboneConfig) -> Result<Vec<Vec<u32>>>;

    /// Passes over the rows of each task.
    fn epochs(&self) -> u32;

    /// Whether lanes have to be computed one by one.
    fn couples_rows(&self) -> bool;

    /// The sum over rows of the loss of what the model gave in training, `[n, ..]`, for their classes.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn loss(&self, parts: &crate::Parts<'_>, output: &tch::Tensor, classes: &tch::Tensor) -> Result<tch::Tensor>;

    /// Scores `[n, classes]` of rows: `run` gives what the model gives for them in a pass of this number. Classes of
    /// tasks that have not begun score less than all others.
    ///
    /// # Errors
    /// Those of `run`; `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn scores(&self, parts: &crate::Parts<'_>, run: &dyn Fn(u32) -> Result<tch::Tensor>) -> Result<tch::Tensor>;

    /// Passes at the end of a task whose outputs over the task's rows are wanted, class by class.
    #[cfg(feature = "torch")]
    fn surveys(&self, task: usize) -> Vec<u32>;

    /// Takes them, and gives what somebody should look at.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn surveyed(&self, parts: &crate::Parts<'_>, task: usize, found: &Survey) -> Result<Vec<String>>;

    /// Goes on to the next task, after this one has reached these accuracies on the tasks so far. Those that were not
    /// measured are NaN.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn advance(&self, parts: &crate::Parts<'_>, task: usize, accuracies: &[f64]) -> Result<()>;

    /// The accuracies of the tasks that are done, a row each; without rows that were not measured.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    #[cfg(feature = "torch")]
    fn accuracies(&self, parts: &crate::Parts<'_>) -> Result<Vec<Vec<f64>>>;
}

/// The adapter that a recipe makes of another one.
#[derive(Debug)]
pub(crate) struct Continual<R> {
    pub(crate) recipe: R,
    pub(crate) inner: Box<dyn AdapterConfig>,
}

/// Names of the tensors that every recipe has: the task in training, how many have begun, how many are done; and the
/// accuracy matrix, of which unmeasured entries are negative.
pub(crate) const AT: &str = "continual.at";
pub(crate) const ACCURACY: &str = "continual.accuracy";

/// Name of a part of a task's rows of the head.
pub(crate) fn head_name(task: usize, part: &str) -> String {
    format!("classifier.{task}.{part}")
}

/// The map that makes the model's class logits.
///
/// # Errors
/// `METHOD_CONFIG` for a model that tells no classes apart.
pub(crate) fn head_site(model: &dyn BackboneConfig) -> Result<&Site> {
    let classes = model.info().num_labels;
    let fits = |site: &&Site| site.dims.output == classes && site.runs && classes > 0;
    let head = model.sites().with_role(Role::Head).filter(fits).last();
    let class = &model.info().class;
    head.ok_or_else(|| refuse("tasks", &format!("{class} has no head that tells classes apart")))
}

impl<R: Recipe> Continual<R> {
    /// Around `inner`.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for an adapter that already learns a sequence, or sets a course of its own.
    pub(crate) fn boxed(recipe: &R, inner: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        if inner.sequence().is_some() {
            return Err(refuse("tasks", "the adapter learns a sequence already"));
        }
        if crate::adapter::compose::sets_the_course(inner.as_ref()) {
            return Err(refuse("tasks", "the adapter sets the course of its own training"));
        }
        Ok(Box::new(Self { recipe: recipe.clone(), inner }))
    }

    fn piece(tensor: &PlannedTensor) -> Piece {
        let task = tensor.name.strip_prefix("classifier.").and_then(|rest| rest.split('.').next()?.parse().ok());
        task.map_or(Piece::Module, Piece::Head)
    }

    fn heads(&self, head: &Site, splits: &[Vec<u32>]) -> Vec<PlannedTensor> {
        let width = head.dims.input;
        let rows = |(task, classes): (usize, &Vec<u32>)| {
            let planned = |part, shape: Vec<usize>, init| {
                PlannedTensor::trained(head_name(task, part), head.id, "continual_head", shape, init)
            };
            let weight = planned("weight", vec![classes.len(), width], self.recipe.head_init(width));
            [weight, planned("bias", vec![classes.len()], Init::Zeros)]
        };
        splits.iter().enumerate().flat_map(rows).collect()
    }
}

/// The module's plan without the head, whose rows are the sequence's.
fn without_head(mut own: Plan, head: SiteId) -> Plan {
    if own.saved.contains(&head) {
        own.saved.retain(|site| *site != head);
        own.tensors.retain(|tensor| tensor.site != head);
    }
    own
}

/// The module's own tensors that are trained: modules that are trained whole are not copied.
#[cfg(feature = "torch")]
pub(crate) fn module(own: &Plan) -> impl Iterator<Item = &PlannedTensor> {
    own.trained().filter(|tensor| !own.saved.contains(&tensor.site))
}

/// The plan of a copy: its trained tensors under names of their own.
fn copy(own: &Plan, name: &str) -> Plan {
    let mut copy = own.clone();
    let saved = copy.saved.clone();
    let trained = |tensor: &&mut PlannedTensor| tensor.keep == Keep::Trained && !saved.contains(&tensor.site);
    for tensor in copy.tensors.iter_mut().filter(trained) {
        tensor.name = format!("{name}.{}", tensor.name);
        (tensor.keep, tensor.init) = (Keep::Moving, Init::Zeros);
    }
    copy
}

impl<R: Recipe> HasCard for Continual<R> {
    fn card(&self) -> &'static Card {
        R::CARD
    }
}

impl<R: Recipe> AdapterConfig for Continual<R> {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let head = head_site(model)?;
        let splits = self.splits(model)?;
        let own = without_head(self.inner.plan(model)?, head.id);
        if own.sites.contains(&head.id) {
            return Err(refuse("tasks", &format!("the adapter acts on `{}`, whose rows are the tasks'", head.path)));
        }
        let mut plan = Plan { notes: own.notes.clone(), saved: own.saved.clone(), ..Plan::default() };
        plan.sites = own.sites.iter().copied().chain([head.id]).collect();
        plan.sites.sort_unstable();
        plan.tensors.extend(own.tensors.iter().cloned());
        plan.tensors.extend(self.heads(head, &splits));
        let copies: Vec<_> = self.recipe.copies(splits.len()).iter().map(|name| copy(&own, name)).collect();
        for copy in &copies {
            plan.tensors.extend(copy.tensors.iter().filter(|tensor| tensor.keep == Keep::Moving).cloned());
        }
        plan.tensors.extend(self.recipe.tensors(head, model.info().num_labels));
        let tasks = splits.len();
        for (name, shape) in [(AT, vec![3]), (ACCURACY, vec![tasks, tasks])] {
            let tensor = PlannedTensor::trained(name.to_owned(), head.id, "continual_state", shape, Init::Zeros);
            plan.tensors.push(tensor.keep(Keep::Moving));
        }
        plan.children = std::iter::once(own).chain(copies).collect();
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let own = plan.children.first().unwrap_or(plan);
        let mut fields = wrapped_config(&self.recipe, self.inner.adapter_config(model, own, export), model, export);
        if let Ok(splits) = self.splits(model) {
            fields.insert("tasks".to_owned(), json!(splits));
        }
        fields
    }

    fn virtual_tokens(&self) -> Virtual {
        self.inner.virtual_tokens()
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        match Self::piece(tensor) {
            Piece::Module => self.inner.lr_scale(tensor) * self.recipe.lr_scale(Piece::Module),
            head => self.recipe.lr_scale(head),
        }
    }

    fn partial(&self) -> bool {
        true
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        self.recipe.updates(Self::piece(tensor), step)
    }

    fn sequence(&self) -> Option<&dyn Sequence> {
        Some(self)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::Parts<'_>) -> Result<crate::Hooks> {
        super::view::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        self.inner.initial(tensor, base, key)
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &crate::Parts<'_>) -> Option<tch::Tensor> {
        let own = parts.plan.children.first()?;
        self.inner.regulariser(&parts.under(own, parts.key))
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::Parts<'_>, step: StepInfo) -> Result<()> {
        let view = super::view::View::of(&self.recipe, parts)?;
        self.inner.after_step(&parts.under(view.own, parts.key), step)?;
        view.begin(step.phase);
        self.recipe.after_step(&view, step)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &crate::Parts<'_>, step: StepInfo) -> Result<()> {
        let view = super::view::View::of(&self.recipe, parts)?;
        // The first step of a task may have been skipped.
        view.begin(step.phase);
        view.end(step.phase);
        self.recipe.end_task(&view, step.phase)
    }

    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &crate::Parts<'_>) -> Result<Map<String, Value>> {
        let matrix = self.accuracies(parts)?;
        let mut found = json!({"accuracy_matrix": matrix});
        if let (Some(measures), Some(fields)) = (super::measures::measures(&matrix), found.as_object_mut()) {
            fields.insert("average_accuracy".to_owned(), json!(measures.average));
            fields.insert("average_incremental_accuracy".to_owned(), json!(measures.incremental));
            fields.insert("forgetting".to_owned(), json!(measures.forgetting));
        }
        Ok(Map::from_iter([("continual".to_owned(), found)]))
    }
}

impl<R: Recipe> Sequence for Continual<R> {
    fn splits(&self, model: &dyn BackboneConfig) -> Result<Vec<Vec<u32>>> {
        self.recipe.splits(u32::try_from(model.info().num_labels).unwrap_or(u32::MAX))
    }

    fn epochs(&self) -> u32 {
        self.recipe.epochs()
    }

    fn couples_rows(&self) -> bool {
        self.recipe.couples_rows()
    }

    #[cfg(feature = "torch")]
    fn loss(&self, parts: &crate::Parts<'_>, output: &tch::Tensor, classes: &tch::Tensor) -> Result<tch::Tensor> {
        super::view::loss(&self.recipe, parts, output, classes)
    }

    #[cfg(feature = "torch")]
    fn scores(&self, parts: &crate::Parts<'_>, run: &dyn Fn(u32) -> Result<tch::Tensor>) -> Result<tch::Tensor> {
        self.recipe.scores(&super::view::View::of(&self.recipe, parts)?, run)
    }

    #[cfg(feature = "torch")]
    fn surveys(&self, task: usize) -> Vec<u32> {
        self.recipe.surveys(task)
    }

    #[cfg(feature = "torch")]
    fn surveyed(&self, parts: &crate::Parts<'_>, task: usize, found: &Survey) -> Result<Vec<String>> {
        self.recipe.surveyed(&super::view::View::of(&self.recipe, parts)?, task, found)
    }

    #[cfg(feature = "torch")]
    fn advance(&self, parts: &crate::Parts<'_>, task: usize, accuracies: &[f64]) -> Result<()> {
        super::view::View::of(&self.recipe, parts)?.advance(task, accuracies)
    }

    #[cfg(feature = "torch")]
    fn accuracies(&self, parts: &crate::Parts<'_>) -> Result<Vec<Vec<f64>>> {
        super::view::View::of(&self.recipe, parts)?.accuracies()
    }
}
