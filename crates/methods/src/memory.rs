//! How much memory a worker will need, from the sites alone: no tensor exists yet.
//!
//! What a pass keeps for its backward pass follows from what each site does with its input: a normalisation keeps it,
//! attention keeps queries, keys (as many heads as queries), values and its result, an activation keeps what it was
//! given, a product both factors, and a linear map with a frozen weight nothing, unless an adapter reads the same input.
//! Blocks below the first that an adapter acts on keep nothing. The estimate is for one pass over the longest rows that
//! the job allows, padded.

use pleach_nn::{BackboneConfig, HeadKind, Part, Precision, Role, Site, SiteId};
use pleach_spec::job::{DataTask, Determinism, Job};
use serde::Serialize;

use crate::plan::Plan;

/// Bytes that one worker needs beside the program and its libraries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen weights.
    pub weights: u64,
    /// Parameters of all tasks with gradients, optimiser state and the flat copies of a step.
    pub adapters: u64,
    /// What the blocks keep for backward.
    pub activations: u64,
    /// The end of the model and the loss, or the gradients inside a block, whichever is more.
    pub working: u64,
    /// Buffers of the libraries, program text that is touched by computing, rows in flight.
    pub runtime: u64,
    /// All of it.
    pub peak: u64,
}

/// What computing itself brings in, whatever the job: measured as the growth of a worker that trains a model of a few
/// kilobytes.
const RUNTIME: u64 = 50 << 20;

/// Copies of each trained scalar: value, gradient, two moments, and the flat gradient and its reduction.
const COPIES: u64 = 7;

/// The plan of a job's tasks on a model.
///
/// `tokens` says for each task how many tokens its largest pass has; the longest rows that the job allows where it is
/// not known.
pub(crate) fn plan(
    job: &Job,
    model: &dyn BackboneConfig,
    precision: Precision,
    plans: &[&Plan],
    tokens: &[Option<u64>],
) -> Memory {
    let width: u64 = match precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
    };
    let weights = model.num_params() * width;
    let trained: u64 = plans.iter().map(|plan| plan.params()).sum();
    let adapters = trained * 4 * COPIES;
    let mut memory = Memory { weights, adapters, runtime: RUNTIME, ..Memory::default() };
    for (index, plan) in plans.iter().enumerate() {
        let mut pass = Pass::new(job, index, model, plan, width);
        if let Some(tokens) = tokens.get(index).copied().flatten() {
            pass.tokens = pass.tokens.min(tokens);
        }
        let (activations, working) = pass.bytes(job.spec.train.activation_checkpointing);
        if activations + working > memory.activations + memory.working {
            (memory.activations, memory.working) = (activations, working);
        }
    }
    memory.peak = memory.weights + memory.adapters + memory.activations + memory.working + memory.runtime;
    memory
}

/// One pass of one task.
struct Pass<'a> {
    model: &'a dyn BackboneConfig,
    plan: &'a Plan,
    /// Tokens of the pass, padding included.
    tokens: u64,
    /// Bytes of a hidden scalar.
    width: u64,
}

impl<'a> Pass<'a> {
    fn new(job: &Job, task: usize, model: &'a dyn BackboneConfig, plan: &'a Plan, width: u64) -> Self {
        let (spec, train) = (&job.spec, &job.spec.train);
        let data = spec.tasks.get(task).and_then(|task| task.data.as_ref()).or(spec.data.as_ref());
        let lanes = u64::from(train.lanes.unwrap_or(1).max(1));
        let lane_rows = u64::from(train.global_batch).div_ceil(lanes);
        let of_rank = lane_rows * lanes.div_ceil(u64::from(spec.workers.min.max(1)));
        let together = if train.determinism == Determinism::Strict { lane_rows } else { of_rank };
        let rows = train.micro_batch.map_or(together, |most| together.min(u64::from(most)));
        // Both texts of a pair are embedded before either's gradient is known; rows beside are as many as the task's own.
        let beside = crate::job::parse_adapter(job, task).is_ok_and(|adapter| adapter.beside().is_some());
        let texts = match data.map(|data| data.task) {
            Some(DataTask::Retrieval) if train.micro_batch.is_none() => 2,
            _ if beside && train.micro_batch.is_none() => 2,
            _ => 1,
        };
        let longest = data.map_or(1, |data| data.max_length as usize).min(model.info().max_positions) as u64;
        Self { model, plan, tokens: rows * texts * longest, width }
    }

    /// What blocks keep, and the most that is needed on top of it.
    fn bytes(&self, checkpointing: bool) -> (u64, u64) {
        let blocks = self.model.info().num_blocks as u64;
        let first = self.first_block();
        let acting = blocks.saturating_sub(first);
        let kept: Vec<u64> = (first..blocks).map(|block| self.block(block)).collect();
        let (all, largest) = (kept.iter().sum::<u64>(), kept.iter().copied().max().unwrap_or(0));
        let inside = self.gradients() * self.tokens * self.width;
        let end = self.end();
        if checkpointing {
            let border = self.model.info().hidden_size as u64 * self.tokens * self.width;
            return ((acting + 1) * border, end.max(largest + inside));
        }
        (all, end.max(inside))
    }

    fn acts(&self, id: SiteId) -> bool {
        self.plan.sites.contains(&id) || self.plan.saved.contains(&id)
    }

    fn first_block(&self) -> u64 {
        let mut reached = false;
        for site in self.model.sites().iter() {
            reached |= site.block.is_some();
            if self.acts(site.id) {
                let behind = if reached { self.model.info().num_blocks as u64 } else { 0 };
                return site.block.map_or(behind, u64::from);
            }
        }
        self.model.info().num_blocks as u64
    }

    fn sites_of(&self, block: u64) -> impl Iterator<Item = &Site> {
        self.model.sites().iter().filter(move |site| site.block.map(u64::from) == Some(block) && site.runs)
    }

    /// Bytes that a block keeps.
    fn block(&self, block: u64) -> u64 {
        let mut scalars = 0;
        // Maps of one input keep it once.
        let (mut attention_input, mut inner_input, mut inner) = (0, 0, [0u64; 3]);
        for site in self.sites_of(block) {
            let (input, output) = (site.dims.input as u64, site.dims.output as u64);
            let read = if self.acts(site.id) { input } else { 0 };
            match (site.role, site.part) {
                (Role::Norm, _) => scalars += input,
                (Role::AttnKv, _) => {
                    if let Some(heads) = site.dims.heads {
                        scalars += 4 * (heads.query * heads.dim) as u64;
                    }
                }
                (Role::Linear, Part::Query | Part::Key | Part::Value | Part::Qkv) => {
                    attention_input = read.max(attention_input);
                }
                (Role::Linear, Part::Up) => {
                    inner_input = read.max(inner_input);
                    inner[0] = output;
                }
                (Role::Linear, Part::Gate) => {
                    inner_input = read.max(inner_input);
                    inner[1] = output;
                }
                (Role::Linear, Part::Down) => inner[2] = read,
                // What attention gives is kept by attention itself.
                (Role::Linear, Part::AttnOut) => {}
                (Role::Linear, _) => scalars += read,
                _ => {}
            }
        }
        // Without a gate the activation keeps what it was given; with one the product keeps both factors too.
        let [up, gate, down] = inner;
        scalars += if gate > 0 { 2 * gate + up } else { up } + down + attention_input + inner_input;
        scalars +=
            self.plan.trained().filter(|tensor| self.low_rank(tensor.site, block)).map(smallest).sum::<u64>() / 2;
        scalars * self.tokens * self.width
    }

    fn low_rank(&self, site: SiteId, block: u64) -> bool {
        self.model.sites()[site].block.map(u64::from) == Some(block)
    }

    /// Scalars a token of the gradients that live at once inside a block: those around the widest maps.
    fn gradients(&self) -> u64 {
        let inner = self.model.sites().iter().filter(|site| site.block.is_some() && site.role == Role::Linear);
        let widest = inner.map(|site| site.dims.output.max(site.dims.input)).max().unwrap_or(0) as u64;
        3 * widest + 2 * self.model.info().hidden_size as u64
    }

    /// Bytes of the last normalisation, the head and the loss: logits in float32, their logarithms, and the gradients
    /// of both.
    fn end(&self) -> u64 {
        let info = self.model.info();
        let per_token = match info.head {
            HeadKind::CausalLm | HeadKind::MaskedLm | HeadKind::Seq2SeqLm => 4 * info.vocab_size as u64,
            HeadKind::TokenClassification => 4 * info.num_labels as u64,
            _ => 0,
        };
        per_token * self.tokens * 4 + 2 * info.hidden_size as u64 * self.tokens * self.width
    }
}

/// The smaller side of a factor: what the product of the other factor gives a token.
fn smallest(tensor: &crate::plan::PlannedTensor) -> u64 {
    if tensor.shape.len() < 2 { 0 } else { tensor.shape.iter().copied().min().unwrap_or(0) as u64 }
}
