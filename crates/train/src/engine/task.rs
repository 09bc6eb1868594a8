//! One task inside the engine: its adapter, optimiser, place in its schedule, and the step under way.

use std::borrow::Cow;

use pleach_base::{Result, TaskName, code};
use pleach_methods::{Adapter, Owner, PlannedTensor, StepInfo};
use pleach_nn::Backbone;
use pleach_spec::job::{Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tch::Tensor;

use super::batch::Ground;
use super::course::Course;
use super::documents::Cut;
use super::objective::Objective;
use super::state::{StateHeader, TaskState};
use crate::flat::FlatLayout;
use crate::gate::Gatekeeper;
use crate::optim::{self, Optimizer, Span};
use crate::schedule;

/// What a task is made of.
pub struct TaskSetup {
    /// Unique in the engine.
    pub name: TaskName,
    /// The adapter, at its initial values.
    pub adapter: Adapter,
    /// Content of `adapter_config.json`.
    pub adapter_config: Value,
    /// The loss.
    pub objective: Objective,
    /// The optimiser.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    pub schedule: ScheduleSpec,
    /// Steps of the whole task: where the schedule ends.
    pub total_steps: u64,
    /// Largest total gradient norm; 0 does not clip.
    pub max_grad_norm: f64,
    /// What to do when something is not finite.
    pub non_finite: NonFinite,
    /// Whether the bits must not depend on the number of ranks.
    pub determinism: Determinism,
    /// Most rows that go through the model at once; all of them when absent.
    pub micro_batch: Option<usize>,
    /// Keep the states between blocks alone, and run blocks again for their gradients.
    pub checkpointing: bool,
    /// Whether the adapter's method does its own part after each update, as it should; not when this repeats a training
    /// that left it out.
    pub own_steps: bool,
}

/// A reduced gradient that waits for its update.
#[derive(Debug)]
pub(super) struct Pending {
    /// `[n]`, the sum over all ranks.
    pub(super) grads: Tensor,
    pub(super) loss: f64,
    pub(super) tokens: u64,
    /// Something was not finite on some rank: the same on all ranks.
    pub(super) broken: bool,
    /// Sample ids of this rank's micro-batches that were not finite.
    pub(super) broken_samples: Vec<u64>,
    /// Lanes of the step, and which of them this rank was fed, with the digest of their ids.
    pub(super) lanes: usize,
    pub(super) fed: Vec<(u32, [u8; 32])>,
    /// Which of the tasks that rows may name have rows in the step, on any rank; empty when rows name none.
    pub(super) present: Vec<bool>,
    /// Seconds of this rank's own work.
    pub(super) compute_seconds: f64,
    /// What the adapter's hooks added to sums over the batch, of all ranks.
    pub(super) sums: Option<Vec<f64>>,
}

/// One task: on its own between generations, in an engine during one.
pub(crate) struct Task {
    pub(super) setup: TaskSetup,
    pub(super) layout: FlatLayout,
    pub(super) optimizer: Box<dyn Optimizer>,
    /// Learning rates over the flat buffer.
    pub(super) spans: Vec<Span>,
    /// Whether some parameters belong to tasks that rows name.
    owned: bool,
    /// Lengths of the phases of its training.
    phases: Vec<u64>,
    /// Where it learns a sequence of tasks.
    pub(super) course: Option<Course>,
    pub(super) gate: Gatekeeper,
    /// Steps done, skipped ones included.
    pub(super) step: u64,
    pub(super) skipped: u64,
    pub(super) pending: Option<Pending>,
    /// [`Task::digest`] of what it holds now.
    pub(super) state_digest: [u8; 32],
    /// False while an update is half applied: should that fail, what it holds is no state.
    pub(super) whole: bool,
    /// Loss of the last step.
    pub(crate) loss: f64,
}

impl Task {
    /// # Errors
    /// `METHOD_CONFIG` when the method cannot be trained like this; `INTERNAL` when the parameters have no digest.
    pub(crate) fn new(setup: TaskSetup) -> Result<Self> {
        possible(&setup)?;
        let params = setup.adapter.params();
        let layout = FlatLayout::new(params.iter().map(|(name, leaf)| (name.to_owned(), leaf.size())).collect());
        let flat = params.flatten();
        let config = setup.adapter.config();
        let owned = setup.adapter.plan().trained().any(|tensor| config.owner(tensor) != Owner::All);
        let partial = config.partial() || owned;
        let optimizer = optim::build(&setup.optimizer, layout.numel(), flat.device(), partial);
        let gate = Gatekeeper::new(&layout, &flat);
        let (plan, config) = (setup.adapter.plan(), setup.adapter.config());
        let spans = Span::of(plan.trained().map(|tensor| (tensor.numel() as i64, config.lr_scale(tensor))));
        let phases = config.phases(setup.total_steps);
        let (step, skipped, pending) = (0, 0, None);
        let mut task = Self {
            setup,
            layout,
            optimizer,
            spans,
            owned,
            phases,
            course: None,
            gate,
            step,
            skipped,
            pending,
            state_digest: [0; 32],
            whole: true,
            loss: f64::NAN,
        };
        task.state_digest = task.digest()?;
        Ok(task)
    }

    /// Makes it learn a sequence of tasks, each in a phase of its own.
    ///
    /// # Errors
    /// `INTERNAL` when the parts of the course do not belong together.
    pub(crate) fn learns(&mut self, course: Course) -> Result<()> {
        course.check()?;
        self.phases.clone_from(&course.phases);
        self.course = Some(course);
        Ok(())
    }

    /// Whether all rows of a step go forward before any goes backward.
    pub(super) fn couples(&self) -> bool {
        self.setup.adapter.config().couples() || self.exchanges()
    }

    /// Whether its hooks give rows to other ranks.
    pub(super) fn exchanges(&self) -> bool {
        self.setup.adapter.config().exchanges()
    }

    /// Where its tensors lie.
    pub(super) fn device(&self) -> tch::Device {
        self.setup.adapter.params().iter().next().map_or(tch::Device::Cpu, |(_, leaf)| leaf.device())
    }

    /// What its rows are laid out for.
    pub(super) fn ground<'a>(&self, model: &'a dyn Backbone) -> Ground<'a> {
        self.ground_at(model, self.step)
    }

    /// The same at a step: draws about rows are the same whenever that is asked for.
    pub(super) fn ground_at<'a>(&self, model: &'a dyn Backbone, step: u64) -> Ground<'a> {
        let (config, key) = (self.setup.adapter.config(), self.setup.adapter.parts().key);
        let cut = config.segments().map(|segments| Cut { segments, key: key.named("windows").with(step) });
        Ground::new(model, config.virtual_tokens(), self.setup.objective).cut(cut)
    }

    /// The tensors that its method changes by itself, in the plan's order.
    pub(super) fn states(&self) -> impl Iterator<Item = (&PlannedTensor, &Tensor)> {
        let adapter = &self.setup.adapter;
        let states = adapter.plan().tensors.iter().filter(|tensor| tensor.moves());
        states.filter_map(|tensor| Some((tensor, adapter.kept().get(&tensor.name)?)))
    }

    /// The gradients that lie on the leaves, in one buffer `[n]`.
    pub(super) fn lent_grads(&self) -> Tensor {
        self.setup.adapter.params().flatten_grads()
    }

    /// Puts a reduced gradient `[n]` back onto the leaves, for the method to see.
    pub(super) fn lend_grads(&self, grads: &Tensor) {
        let params = self.setup.adapter.params();
        for ((_, leaf), (_, grad)) in params.iter().zip(self.layout.pieces(grads)) {
            if !leaf.grad().defined() {
                // The binding cannot set a gradient, only have one made.
                (leaf * 0.0).sum(tch::Kind::Float).backward();
            }
            tch::no_grad(|| leaf.grad().copy_(&grad));
        }
    }

    /// A copy of what it holds; into the memory of `spare` when there is one.
    pub(crate) fn capture(&self, spare: Option<TaskState>) -> TaskState {
        super::state::capture(self, spare)
    }

    /// Steps done and the digest of what it holds, unless that is a half applied update.
    pub(crate) fn whole_state(&self) -> Option<(u64, [u8; 32])> {
        self.whole.then_some((self.step, self.state_digest))
    }

    /// An empty state of its shape, for what another rank sends.
    pub(crate) fn blank(&self, header: &StateHeader) -> TaskState {
        super::state::blank(self, header)
    }

    /// The rate of the next update.
    pub(super) fn learning_rate(&self) -> f64 {
        let next = self.next();
        self.setup.optimizer.lr * schedule::factor(&self.setup.schedule, next.phase_step - 1, next.phase_total)
    }

    /// The step that was made last, of at least one.
    pub(super) fn now(&self) -> StepInfo {
        StepInfo::new(self.step.max(1), self.setup.total_steps, &self.phases)
    }

    /// The step that is made next.
    pub(super) fn next(&self) -> StepInfo {
        StepInfo::new(self.step + 1, self.setup.total_steps, &self.phases)
    }

    /// The flat buffer as the next update takes it, in a step with rows of the tasks in `present`.
    pub(super) fn spans(&self, present: &[bool]) -> Cow<'_, [Span]> {
        let (plan, config) = (self.setup.adapter.plan(), self.setup.adapter.config());
        if !config.partial() && !self.owned {
            return Cow::Borrowed(&self.spans);
        }
        let next = self.next();
        let mut spans = Vec::new();
        for tensor in plan.trained() {
            let (length, scale) = (tensor.numel() as i64, config.lr_scale(tensor));
            let updates = !config.partial() || config.updates(tensor, next) && self.takes_part(tensor);
            let moves = |task: usize| updates && present.get(task).copied().unwrap_or(true);
            match config.owner(tensor) {
                Owner::All => spans.push(Span { length, scale, moves: updates }),
                Owner::Task(task) => spans.push(Span { length, scale, moves: moves(task as usize) }),
                Owner::EachRow => {
                    let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
                    let row = |task| Span { length: length / rows as i64, scale, moves: moves(task) };
                    spans.extend((0..rows).map(row));
                }
            }
        }
        Cow::Owned(Span::join(spans))
    }

    /// The flat buffer as gradients are exchanged: those of tensors that take no part in the next step are not.
    pub(super) fn exchanged(&self) -> Vec<Span> {
        let span = |length, moves| Span { length, scale: 1.0, moves };
        if !self.setup.adapter.config().partial() {
            return vec![span(self.layout.numel(), true)];
        }
        let trained = self.setup.adapter.plan().trained();
        Span::join(trained.map(|tensor| span(tensor.numel() as i64, self.takes_part(tensor))))
    }

    fn takes_part(&self, tensor: &PlannedTensor) -> bool {
        let adapter = &self.setup.adapter;
        adapter.config().takes_part(tensor, self.next(), adapter.parts().key)
    }

    /// What the adapter's hooks added to sums over the batch since the last call, without its graph.
    pub(super) fn take_sums(&self) -> Option<Tensor> {
        let adapter = &self.setup.adapter;
        let shape = adapter.config().sums(adapter.plan())?;
        Some(adapter.board().take_sums(shape)?.detach().to_kind(tch::Kind::Double))
    }

    /// The gradients of all leaves `[n]`, which are zero afterwards.
    pub(super) fn take_grads(&self) -> Tensor {
        let params = self.setup.adapter.params();
        let flat = params.flatten_grads();
        for (_, leaf) in params.iter() {
            let mut grad = leaf.grad();
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
        flat
    }

    /// sha256 of the parameters, and of what the method changes by itself.
    pub(super) fn digest(&self) -> Result<[u8; 32]> {
        let mut text = self.setup.adapter.params().digest();
        if self.states().next().is_some() {
            let mut hash = Sha256::new_with_prefix(text);
            self.states().for_each(|(_, tensor)| hash.update(crate::flat::bytes_of(tensor)));
            text = hex::encode(hash.finalize());
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(&text, &mut digest)
            .map_err(|error| code::INTERNAL.error("the parameters' digest is not a sha256").caused_by(error))?;
        Ok(digest)
    }
}

/// Refuses what a method that looks at all rows of a step cannot do.
fn possible(setup: &TaskSetup) -> Result<()> {
    let config = setup.adapter.config();
    let refuse = |what: &str| Err(code::METHOD_CONFIG.error(format!("task {}: {what}", setup.name)));
    if config.exchanges() && setup.determinism == Determinism::Strict {
        return refuse(
            "expert_parallel: strict mode promises bits, and experts that are shared between ranks round otherwise",
        );
    }
    if (config.couples() || config.exchanges()) && matches!(setup.objective, Objective::Contrastive { .. }) {
        return refuse(
            "the router's losses are not defined for retrieval; set their weights to 0, and expert_parallel off",
        );
    }
    Ok(())
}
