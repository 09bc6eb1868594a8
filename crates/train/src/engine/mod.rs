//! The engine of operations on one rank: add a task, forward and backward, optimiser step, save, load, evaluate, remove
//! a task. Several tasks share one frozen model: they take turns, or share its passes
//! ([`Engine::forward_backward_together`]); each keeps its own adapter, optimiser and schedule.
//!
//! All ranks of a gang call the same operations with the same tasks in the same order. The job loop
//! ([`crate::run_job`]) is the first client. Not here: where examples come from, when to evaluate or to save.

mod batch;
mod blockwise;
mod coupled;
mod course;
mod documents;
mod experts;
mod front;
mod in_step;
mod objective;
mod packed;
mod pass;
mod peers;
mod reload;
mod save;
mod state;
mod step;
mod task;
mod together;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;
use pleach_base::{Error, Result, SharedClock, TaskName, code};
use pleach_comm::Collective;
use pleach_nn::Backbone;
use pleach_store::{Gate, SnapshotFile};

pub use batch::StepBatch;
pub(crate) use batch::{Ground, MicroBatch, lay_out};
pub use course::{Course, CourseRows, Labelled};
pub(crate) use front::with_virtual;
pub use objective::Objective;
pub(crate) use objective::wrong_head;
pub use pass::{Mode, PassInput, forward};
pub(crate) use save::own_parameters;
pub(crate) use state::{StateHeader, TaskState};
pub(crate) use task::Task;
pub use task::TaskSetup;
pub use update::{StepResult, Word};

use crate::eval::{EvalSet, Metric};
use crate::observer::{EvalRow, Observer};
use crate::phase::Phase;
use crate::stop::Wish;
use crate::times::{Stage, Stopwatch};
use step::Machine;

/// Trains several adapters on one frozen model, as one rank of a gang.
pub struct Engine<'a> {
    model: &'a dyn Backbone,
    group: &'a dyn Collective,
    observer: Arc<dyn Observer>,
    clock: SharedClock,
    watch: Arc<Stopwatch>,
    tasks: IndexMap<TaskName, Task>,
}

/// A task's state as files, with the gate's judgement.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `adapter_config.json`, `adapter_model.safetensors`, `trainer_state.safetensors`.
    pub files: Vec<SnapshotFile>,
    /// Whether the adapter may be given to others.
    pub gate: Gate,
}

/// The loss of a step whose update is still to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forwarded {
    /// Loss of the global batch.
    pub loss: f64,
    /// Real tokens of the global batch.
    pub tokens: u64,
}

impl<'a> Engine<'a> {
    /// An engine without tasks.
    #[must_use]
    pub fn new(
        model: &'a dyn Backbone,
        group: &'a dyn Collective,
        observer: Arc<dyn Observer>,
        clock: SharedClock,
    ) -> Self {
        let watch = Arc::new(Stopwatch::new(Arc::clone(&clock)));
        Self { model, group, observer, clock, watch, tasks: IndexMap::new() }
    }

    /// Measures what the operations do, once it is started.
    #[must_use]
    pub fn stopwatch(&self) -> Arc<Stopwatch> {
        Arc::clone(&self.watch)
    }

    /// Adds a task at step 0.
    ///
    /// # Errors
    /// `INTERNAL` when the name is taken, `DIGEST_MISMATCH` when the ranks hold different initial values.
    pub fn add_task(&mut self, setup: TaskSetup) -> Result<()> {
        let name = setup.name.clone();
        if self.tasks.contains_key(&name) {
            return Err(code::INTERNAL.error(format!("task {name} is there already")));
        }
        let task = Task::new(setup)?;
        self.agree_on(&task)?;
        self.tasks.insert(name, task);
        Ok(())
    }

    /// Adds a task that was made before, as it is, without a word to the other ranks.
    pub(crate) fn adopt(&mut self, task: Task) {
        self.tasks.insert(task.setup.name.clone(), task);
    }

    /// Gives all tasks away, as they are, in their order.
    pub(crate) fn release(self) -> Vec<Task> {
        self.tasks.into_values().collect()
    }

    /// Removes a task and its state.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn remove_task(&mut self, name: &TaskName) -> Result<()> {
        self.tasks.shift_remove(name).map(drop).ok_or_else(|| unknown(name))
    }

    /// Names of the tasks in the order in which they were added.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskName> {
        self.tasks.keys()
    }

    /// Steps done by a task, skipped ones included.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn step(&self, name: &TaskName) -> Result<u64> {
        Ok(self.task(name)?.step)
    }

    /// Numbers that a task trains.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn trainable_params(&self, name: &TaskName) -> Result<u64> {
        Ok(self.task(name)?.layout.numel() as u64)
    }

    /// Computes the gradient of one global batch and reduces it over all ranks. A collective call.
    ///
    /// # Errors
    /// `INTERNAL` for an unknown task or examples of another kind; those of [`Collective`].
    pub fn forward_backward(&mut self, name: &TaskName, batch: &StepBatch) -> Result<Forwarded> {
        let machine = self.machine();
        let pending = step::forward_backward(&machine, self.task(name)?, batch)?;
        let forwarded = Forwarded { loss: pending.loss, tokens: pending.tokens };
        self.task_mut(name)?.pending = Some(pending);
        Ok(forwarded)
    }

    /// Why a task makes its passes by itself; `None` when it can share them with others that can.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn apart(&self, name: &TaskName) -> Result<Option<&'static str>> {
        Ok(together::apart(self.model, self.task(name)?))
    }

    /// [`Engine::forward_backward`] of several tasks that share their passes through the model, in an order that is the same
    /// on all ranks.
    ///
    /// # Errors
    /// As there, and `INTERNAL` for a task that makes its passes by itself ([`Engine::apart`]).
    pub fn forward_backward_together(&mut self, batches: &[(&TaskName, &StepBatch)]) -> Result<Vec<Forwarded>> {
        let machine = self.machine();
        let mut parts = Vec::with_capacity(batches.len());
        for (name, batch) in batches {
            if let Some(why) = self.apart(name)? {
                return Err(code::INTERNAL.error(format!("task {name} shares no pass: {why}")));
            }
            parts.push((self.task(name)?, *batch));
        }
        let all = together::forward_backward(&machine, &parts)?;
        let mut forwarded = Vec::with_capacity(all.len());
        for ((name, _), pending) in batches.iter().zip(all) {
            forwarded.push(Forwarded { loss: pending.loss, tokens: pending.tokens });
            self.task_mut(name)?.pending = Some(pending);
        }
        Ok(forwarded)
    }

    /// [`Engine::forward_backward`] of rows that are laid out already: as many on every rank. `labels` are of tokens, shaped
    /// as they lie, or one a row, whatever the objective wants.
    ///
    /// # Errors
    /// As there.
    pub fn forward_backward_rows(
        &mut self,
        name: &TaskName,
        input: PassInput,
        labels: &tch::Tensor,
    ) -> Result<Forwarded> {
        let (machine, task) = (self.machine(), self.task(name)?);
        let rows = MicroBatch::of(&task.ground(self.model), input, labels);
        let pending = step::forward_backward_rows(&machine, task, rows)?;
        let forwarded = Forwarded { loss: pending.loss, tokens: pending.tokens };
        self.task_mut(name)?.pending = Some(pending);
        Ok(forwarded)
    }

    /// What the model gives with a task's adapter, its virtual tokens in front, without a graph.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn output(&self, name: &TaskName, input: PassInput) -> Result<pleach_nn::Output> {
        let adapter = &self.task(name)?.setup.adapter;
        let input = with_virtual(input, adapter.config().virtual_tokens(), &self.model.config().info().reads);
        Ok(tch::no_grad(|| forward(self.model, adapter, &input, Mode::EVAL)))
    }

    /// Applies the reduced gradient, unless it is not finite, and agrees with all ranks on the result. A collective call.
    /// `drain` asks all ranks to stop after this step; the result says whether any rank asked.
    ///
    /// # Errors
    /// `NON_FINITE` on every rank, with the step and the sample ids, when the task is to stop then; `DIGEST_MISMATCH`;
    /// `LANE_MISMATCH` when a lane was not fed once;
    /// `INTERNAL` without a preceding [`Engine::forward_backward`]; those of [`Collective`].
    pub fn optim_step(&mut self, name: &TaskName, drain: bool) -> Result<StepResult> {
        let wish = if drain { Wish::Drain } else { Wish::GoOn };
        self.optim_step_saying(name, Word { wish, ..Word::default() })
    }

    /// [`Engine::optim_step`] with more to say: the result says what comes of what all ranks said.
    ///
    /// # Errors
    /// As there.
    pub fn optim_step_saying(&mut self, name: &TaskName, word: Word) -> Result<StepResult> {
        self.watch.enter(Stage::Optimiser);
        self.observer.phase(Phase::BeforeCommit);
        let (observer, clock, watch) = (Arc::clone(&self.observer), Arc::clone(&self.clock), self.stopwatch());
        let (model, group, waited) = (self.model, self.group, Default::default());
        let machine = Machine { model, group, observer: observer.as_ref(), clock: &clock, watch: &watch, waited };
        update::optim_step(&machine, self.task_mut(name)?, word)
    }

    /// Gives a task the tensors of other tasks' adapters, which are its experts: what it does not train of them, and with
    /// `trained` the rest too. Not a collective call.
    pub(crate) fn take_experts(&mut self, name: &TaskName, from: &[TaskName], trained: bool) -> Result<()> {
        for expert in from {
            experts::take(self.task(name)?, expert, self.task(expert)?, trained)?;
        }
        let task = self.task_mut(name)?;
        task.state_digest = task.digest()?;
        Ok(())
    }

    /// Agrees with all ranks that they hold the same. A collective call.
    pub(crate) fn check(&self, name: &TaskName) -> Result<()> {
        self.agree_on(self.task(name)?)
    }

    /// Goes on from a state, whatever the task held before. Not a collective call.
    pub(crate) fn restore(&mut self, name: &TaskName, state: &TaskState) -> Result<()> {
        state::restore(self.task_mut(name)?, state)
    }

    /// The task's state as files.
    ///
    /// # Errors
    /// `INTERNAL` when there is none of this name.
    pub fn save(&self, name: &TaskName) -> Result<Saved> {
        save::save(self.model, self.task(name)?)
    }

    /// Goes on from what [`Engine::save`] gave, and agrees with all ranks that they hold the same. A collective call.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` or `SAFETENSORS` when the files are of another adapter or damaged, `DIGEST_MISMATCH`.
    pub fn load(&mut self, name: &TaskName, files: &BTreeMap<String, bytes::Bytes>) -> Result<()> {
        save::load(self.task_mut(name)?, files)?;
        self.agree_on(self.task(name)?)
    }

    /// Makes a task learn a sequence of tasks, each in a phase of its own, before its first step.
    ///
    /// # Errors
    /// `INTERNAL` for an unknown task, or when the parts of the course do not belong together.
    pub fn learns(&mut self, name: &TaskName, course: Course) -> Result<()> {
        self.task_mut(name)?.learns(course)
    }

    /// Where a sequence of tasks has come to: accuracies on the tasks that have begun, and at the end of one the measures
    /// of the sequence. `None` for a task that learns no sequence. A collective call.
    ///
    /// # Errors
    /// `INTERNAL` for an unknown task; those of reading rows and of [`Collective`].
    pub fn evaluate_sequence(&self, name: &TaskName) -> Result<Option<EvalRow>> {
        let task = self.task(name)?;
        let begun = self.clock.elapsed();
        let row = |metrics| EvalRow {
            task: name.clone(),
            step: task.step,
            metrics,
            samples: 0,
            time: self.clock.elapsed().saturating_sub(begun),
        };
        Ok(course::metrics(&self.machine(), task)?.map(row))
    }

    /// The accuracies of the tasks of a sequence that are done, a row each.
    ///
    /// # Errors
    /// `INTERNAL` for an unknown task.
    pub fn accuracies(&self, name: &TaskName) -> Result<Vec<Vec<f64>>> {
        let adapter = &self.task(name)?.setup.adapter;
        adapter.config().sequence().map_or_else(|| Ok(Vec::new()), |sequence| sequence.accuracies(&adapter.parts()))
    }

    /// Whether the last step that was made ended a task of a sequence.
    pub(crate) fn ended_task(&self, name: &TaskName) -> Result<bool> {
        let task = self.task(name)?;
        Ok(task.course.is_some() && task.step > 0 && task.now().ends_phase())
    }

    /// Evaluates a task's adapter on `set`, rows shared between the ranks, each counted once. A collective call; the
    /// metrics are the same on every rank.
    ///
    /// # Errors
    /// `INTERNAL` for an unknown task; those of [`Collective`].
    pub fn evaluate(&self, name: &TaskName, set: &EvalSet, metrics: &[Metric]) -> Result<EvalRow> {
        let task = self.task(name)?;
        let begun = self.clock.elapsed();
        let machine = self.machine();
        let scored = crate::eval::score(
            &crate::eval::Scorer {
                model: machine.model,
                group: machine.group,
                observer: machine.observer,
                hooks: &task.setup.adapter,
                ground: task.ground_at(self.model, 0),
            },
            set,
            metrics,
        )?;
        Ok(EvalRow {
            task: name.clone(),
            step: task.step,
            metrics: scored.metrics,
            samples: scored.samples,
            time: self.clock.elapsed().saturating_sub(begun),
        })
    }

    fn machine(&self) -> Machine<'_> {
        let waited = Default::default();
        Machine {
            model: self.model,
            group: self.group,
            observer: self.observer.as_ref(),
            clock: &self.clock,
            watch: &self.watch,
            waited,
        }
    }

    fn agree_on(&self, task: &Task) -> Result<()> {
        let (digest, word) = (task.state_digest, Word::default());
        let mine = crate::agree::Said { step: task.step, digest, word, fed: Vec::new() };
        crate::agree::commit(self.group, task.setup.name.as_str(), 0, &mine).map(drop)
    }

    pub(crate) fn task(&self, name: &TaskName) -> Result<&Task> {
        self.tasks.get(name).ok_or_else(|| unknown(name))
    }

    fn task_mut(&mut self, name: &TaskName) -> Result<&mut Task> {
        self.tasks.get_mut(name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &TaskName) -> Error {
    code::INTERNAL.error(format!("the engine has no task {name}"))
}
