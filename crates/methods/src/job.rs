//! What a job will build: the same code for `pleach plan`, the coordinator and the trainer.

use std::sync::Arc;

use pleach_base::{Result, code, human, suggest};
use pleach_nn::{BackboneConfig, HeadKind, HeadOptions, Pooling, Precision, SiteId, Sites};
use pleach_spec::job::{self, DataSpec, DataTask, Job, Section, TaskSpec};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::adapter::AdapterConfig;
use crate::card::MethodKind;
use crate::continual::Sequence;
use crate::memory::{self, Memory};
use crate::options::under;
use crate::plan::Plan;
use crate::registry::find;
use crate::router::{Expert, RouterConfig, is_remote};

/// The head that a job needs: what its data is for, and what `spec.backbone` says of classes and pooling.
///
/// # Errors
/// `BAD_VALUE` when tasks of one job need different heads, or there is no data at all.
pub fn head_options(job: &Job) -> Result<HeadOptions> {
    let mut kind = None;
    for (index, task) in job.spec.tasks.iter().enumerate() {
        let Some(data) = task.data.as_ref().or(job.spec.data.as_ref()) else {
            return Err(
                code::BAD_VALUE.error(format!("spec.tasks[{index}].data: neither the task nor spec.data names any"))
            );
        };
        let wanted = head_of(data.task);
        if kind.is_some_and(|kind| kind != wanted) {
            return Err(code::BAD_VALUE
                .error(format!("spec.tasks[{index}].data.task: needs another head than the task before"))
                .hint("put tasks with different heads into different jobs"));
        }
        kind = Some(wanted);
    }
    let backbone = &job.spec.backbone;
    let pooling = backbone.pooling.map(|pooling| match pooling {
        job::Pooling::Mean => Pooling::Mean,
        job::Pooling::Cls => Pooling::Cls,
        job::Pooling::Last => Pooling::Last,
    });
    Ok(HeadOptions { kind, num_labels: backbone.num_labels.map(|n| n as usize), pooling, normalize: None })
}

fn head_of(task: DataTask) -> HeadKind {
    match task {
        DataTask::CausalLm => HeadKind::CausalLm,
        DataTask::MaskedLm => HeadKind::MaskedLm,
        DataTask::SequenceClassification => HeadKind::SequenceClassification,
        DataTask::Retrieval => HeadKind::Embedding,
    }
}

/// The precision of a job's frozen weights.
#[must_use]
pub fn precision(job: &Job) -> Precision {
    match job.spec.backbone.dtype {
        job::Dtype::Fp32 => Precision::Fp32,
        job::Dtype::Bf16 => Precision::Bf16,
    }
}

/// Types the `adapter` section of a task, and what the job puts around it: its router or its compression, and around that
/// its strategy. The section of a task in which a router learns names the router.
///
/// # Errors
/// `METHOD_UNKNOWN`, `UNKNOWN_KEY` or `METHOD_CONFIG`, with the place in the job file; `ADAPTER_FORMAT` for an expert whose
/// folder cannot be read.
pub fn parse_adapter(job: &Job, index: usize) -> Result<Box<dyn AdapterConfig>> {
    let mut config = match mixture(job, index)? {
        Some(mixture) => mixture,
        None => {
            let (at, section) = (section(index), &job.spec.tasks[index].adapter);
            let method =
                find(MethodKind::Adapter, &section.method).map_err(|error| error.at(format!("{at}.method")))?;
            method.parse(&section.options, &at)?
        }
    };
    let around = [(MethodKind::Compress, &job.spec.compress), (MethodKind::Strategy, &job.spec.strategy)];
    for (kind, section) in around.into_iter().filter_map(|(kind, section)| Some((kind, section.as_ref()?))) {
        let at = format!("spec.{kind}");
        let method = find(kind, &section.method).map_err(|error| error.at(format!("{at}.method")))?;
        if let Some(around) = method.around(&section.options, &at)? {
            config = around.wrap(config).map_err(|error| under(&error, &at))?;
        }
    }
    Ok(config)
}

/// Types what can be typed of a task without the folders and addresses that it names.
///
/// # Errors
/// As [`parse_adapter`], but for what is wrong with an expert.
pub fn check_adapter(job: &Job, index: usize) -> Result<()> {
    match routed(job, index)? {
        Some(Routed { router, .. }) if router.asked().experts.is_some() => Ok(()),
        _ => parse_adapter(job, index).map(drop),
    }
}

/// What the routers of a job name as experts beside its tasks: folders and addresses.
#[must_use]
pub fn expert_addresses(job: &Job) -> Vec<String> {
    let tasks = &job.spec.tasks;
    let listed = (0..tasks.len()).filter_map(|index| routed(job, index).ok().flatten());
    let names = listed.flat_map(|Routed { router, .. }| router.asked().experts.clone().unwrap_or_default());
    names.filter(|name| tasks.iter().all(|task| task.name != *name)).collect()
}

/// Whether some expert of the job lies in a store, from where workers fetch it.
#[must_use]
pub fn remote_experts(job: &Job) -> bool {
    expert_addresses(job).iter().any(|address| is_remote(address))
}

/// The tasks of the job that are experts of the task with this number: it begins when they are done.
#[must_use]
pub fn expert_tasks(job: &Job, index: usize) -> Vec<usize> {
    let Ok(Some(Routed { router, .. })) = routed(job, index) else { return Vec::new() };
    let names = router.asked().experts.clone().unwrap_or_default();
    (0..index).filter(|other| names.contains(&job.spec.tasks[*other].name)).collect()
}

/// The router of a task.
struct Routed {
    router: Box<dyn RouterConfig>,
    /// The section that it is written in.
    at: String,
}

fn routed(job: &Job, index: usize) -> Result<Option<Routed>> {
    let own = &job.spec.tasks[index].adapter;
    // A router over experts has a task of its own, whose section names it.
    let (at, section) = match (find(MethodKind::Router, &own.method), &job.spec.router) {
        (Ok(_), _) => (section(index), own),
        (Err(_), Some(around)) => ("spec.router".to_owned(), around),
        (Err(_), None) => return Ok(None),
    };
    let method = find(MethodKind::Router, &section.method).map_err(|error| error.at(format!("{at}.method")))?;
    let Some(router) = method.router(&section.options, &at)? else { return Ok(None) };
    let list = router.asked().experts.is_some();
    if !list && std::ptr::eq(section, own) {
        return Err(code::METHOD_CONFIG
            .error(format!("{at}.experts: are missing"))
            .hint("name experts here, or put the router into `spec.router` to have copies of each task's adapter"));
    }
    // It gets a task when the job is resolved.
    if list && !std::ptr::eq(section, own) {
        return Ok(None);
    }
    if job.spec.compress.is_some() {
        return Err(code::METHOD_CONFIG.error("spec.compress: a mixture cannot be compressed while it is trained"));
    }
    if let Some(strategy) = &job.spec.strategy {
        let why = format!("spec.strategy: {} does not know a router", strategy.method);
        return Err(code::METHOD_CONFIG.error(why).hint("leave one of the two out"));
    }
    Ok(Some(Routed { router, at }))
}

/// The mixture that a task trains, when there is a router.
fn mixture(job: &Job, index: usize) -> Result<Option<Box<dyn AdapterConfig>>> {
    let Some(Routed { router, at }) = routed(job, index)? else { return Ok(None) };
    let asked = router.asked();
    let experts = match &asked.experts {
        None => {
            let Section { method, options } = &job.spec.tasks[index].adapter;
            // Its own errors are about its own section.
            find(MethodKind::Adapter, method)
                .map_err(|error| error.at(format!("{}.method", section(index))))?
                .parse(options, &section(index))?;
            Expert::copies(method, options, asked.copies())
        }
        Some(names) => {
            let expert = |(number, name): (usize, &String)| {
                let expert = match job.spec.tasks.iter().take(index).find(|task| task.name == *name) {
                    Some(task) => Ok(Expert::of_task(&task.name, &task.adapter.method, &task.adapter.options)),
                    None => Expert::of_address(number, name),
                };
                expert.map_err(|error| error.at(format!("{at}.experts[{number}]")))
            };
            names.iter().enumerate().map(expert).collect::<Result<_>>()?
        }
    };
    router.combine(experts).map(Some).map_err(|error| under(&error, &at))
}

fn section(index: usize) -> String {
    format!("spec.tasks[{index}].adapter")
}

/// What a task will train at one site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteRow {
    /// Module path.
    pub path: String,
    /// Kind of the site.
    pub role: String,
    /// Width of the input.
    pub input: usize,
    /// Width of the output.
    pub output: usize,
    /// Parts and shapes, such as `lora_A [8, 384]`.
    pub tensors: Vec<String>,
    /// Trainable parameters.
    pub params: u64,
}

/// What a task will train.
#[derive(Clone, Debug, Serialize)]
pub struct TaskPlan {
    /// Name of the task.
    pub task: String,
    /// Name of the method.
    pub method: &'static str,
    /// Sites in the model's order.
    pub sites: Vec<SiteRow>,
    /// Trainable parameters.
    pub trainable: u64,
    /// Those and the frozen ones.
    pub all: u64,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// The typed options.
    #[serde(skip)]
    pub config: Arc<dyn AdapterConfig>,
    /// The plan itself.
    #[serde(skip)]
    pub plan: Arc<Plan>,
}

impl TaskPlan {
    /// PEFT's line about parameters.
    #[must_use]
    pub fn trainable_line(&self) -> String {
        let share = 100.0 * self.trainable as f64 / self.all.max(1) as f64;
        let (trainable, all) = (human::count(self.trainable), human::count(self.all));
        format!("trainable params: {trainable} || all params: {all} || trainable%: {share:.4}")
    }
}

/// What a job will build.
#[derive(Clone, Debug, Serialize)]
pub struct JobPlan {
    /// Class of the backbone, such as `LlamaForCausalLM`.
    pub class: String,
    /// Parameters of the frozen model.
    pub frozen: u64,
    /// Bytes of the frozen weights in memory.
    pub frozen_bytes: u64,
    /// What a worker will need.
    pub memory: Memory,
    /// One entry a task, in the job's order.
    pub tasks: Vec<TaskPlan>,
}

impl JobPlan {
    /// The same with the memory that passes of these sizes need: tokens of the largest pass of each task, where known.
    #[must_use]
    pub fn with_tokens(mut self, job: &Job, model: &dyn BackboneConfig, tokens: &[Option<u64>]) -> Self {
        let plans: Vec<&Plan> = self.tasks.iter().map(|task| task.plan.as_ref()).collect();
        self.memory = memory::plan(job, model, precision(job), &plans, tokens);
        self
    }
}

/// Plans every task of a job on a model.
///
/// # Errors
/// Those of [`parse_adapter`] and of the method's plan, with the task's place in the job file; `METHOD_UNKNOWN` for
/// sections of kinds that have no methods yet.
pub fn plan_job(job: &Job, model: &dyn BackboneConfig) -> Result<JobPlan> {
    let spec = &job.spec;
    let sections: [(MethodKind, Option<&Section>); 2] =
        [(MethodKind::Router, spec.router.as_ref()), (MethodKind::Attention, spec.attention.as_ref())];
    for (kind, section) in sections {
        if let Some(section) = section {
            find(kind, &section.method).map_err(|error| error.at(format!("spec.{kind}.method")))?;
        }
    }
    let tasks: Vec<TaskPlan> =
        spec.tasks.iter().enumerate().map(|(index, task)| plan_task(job, index, task, model)).collect::<Result<_>>()?;
    let frozen = model.num_params();
    let width = match precision(job) {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
    };
    let plans: Vec<&Plan> = tasks.iter().map(|task| task.plan.as_ref()).collect();
    let memory = memory::plan(job, model, precision(job), &plans, &[]);
    Ok(JobPlan { class: model.info().class.clone(), frozen, frozen_bytes: frozen * width, memory, tasks })
}

fn plan_task(job: &Job, index: usize, task: &TaskSpec, model: &dyn BackboneConfig) -> Result<TaskPlan> {
    let config = parse_adapter(job, index)?;
    let here = |error| under(&error, &section(index));
    let plan = config.plan(model).map_err(here)?;
    if let Some(total) = job.spec.train.max_steps {
        config.fits(total).map_err(here)?;
    }
    if let Some(data) = task.data.as_ref().or(job.spec.data.as_ref()) {
        two_windows(config.as_ref(), data.max_length).map_err(here)?;
    }
    every_target_matches(&task.adapter.options, model.sites()).map_err(here)?;
    if let Some(sequence) = config.sequence() {
        sequence_fits(job, task, sequence)?;
    }
    if config.of_language() {
        learns_language(task.data.as_ref().or(job.spec.data.as_ref()))?;
    }
    let trainable = plan.params();
    if trainable == 0 {
        let message = format!("{}: nothing of the model would be trained", section(index));
        return Err(code::TARGET_NOTHING.error(message).hint("see what `pleach plan` lists"));
    }
    Ok(TaskPlan {
        task: task.name.clone(),
        method: config.card().name,
        sites: rows(&plan, model.sites()),
        trainable,
        all: model.num_params() + trainable,
        notes: plan.notes.clone(),
        config: config.into(),
        plan: Arc::new(plan),
    })
}

/// Refuses reconstruction of documents that are never longer than one segment.
///
/// # Errors
/// `METHOD_CONFIG`.
fn two_windows(config: &dyn AdapterConfig, max_length: u32) -> Result<()> {
    match config.segments() {
        Some(segments) if segments.reconstruction && segments.window * 2 > max_length as usize => {
            let why =
                format!("window: documents of at most {max_length} tokens have no two windows of {}", segments.window);
            Err(code::METHOD_CONFIG
                .error(why)
                .hint("reconstruction needs two: raise spec.data.max_length or lower window"))
        }
        _ => Ok(()),
    }
}

/// What learns from texts alone has no use for labels.
fn learns_language(data: Option<&DataSpec>) -> Result<()> {
    match data {
        Some(data) if !data.task.is_language() => Err(code::BAD_VALUE
            .error("spec.data.task: the adapter learns from texts without labels")
            .hint("use masked_lm or causal_lm, whichever the model was trained for")),
        _ => Ok(()),
    }
}

/// A sequence of tasks is of classes, and takes the epochs that the job says.
fn sequence_fits(job: &Job, task: &TaskSpec, sequence: &dyn Sequence) -> Result<()> {
    let data = task.data.as_ref().or(job.spec.data.as_ref());
    if data.is_some_and(|data| data.task != DataTask::SequenceClassification) {
        return Err(code::BAD_VALUE
            .error("spec.data.task: a sequence of tasks is of classes")
            .hint("use sequence_classification, or leave `spec.strategy` out"));
    }
    match job.spec.train.epochs {
        Some(epochs) if epochs != sequence.epochs() => Err(code::BAD_VALUE
            .error(format!(
                "spec.train.epochs: is {epochs}, but each task of spec.strategy takes {}",
                sequence.epochs()
            ))
            .hint("give both the same number")),
        _ => Ok(()),
    }
}

/// PEFT takes a list of targets when any of them is there; a name that matches nothing is a slip of the pen all the same,
/// and the job would train less than it says. Adapters that are read from files may list such names.
fn every_target_matches(options: &Map<String, Value>, sites: &Sites) -> Result<()> {
    let names = options.get("target_modules").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in names {
        let below = format!(".{name}");
        if !sites.iter().any(|site| site.path == name || site.path.ends_with(&below)) {
            let last = sites.iter().map(|site| site.path.rsplit('.').next().unwrap_or_default());
            let near = suggest::nearest_few(name, last.collect::<Vec<_>>(), 1).join("");
            return Err(code::TARGET_NOTHING
                .error(format!("target_modules: `{name}` matches no site of the model, though others do"))
                .hint(if near.is_empty() { format!("remove `{name}`") } else { format!("did you mean `{near}`?") }));
        }
    }
    Ok(())
}

fn rows(plan: &Plan, sites: &Sites) -> Vec<SiteRow> {
    let own = plan.trained().map(|tensor| tensor.site);
    let mut ids: Vec<SiteId> = plan.sites.iter().chain(&plan.saved).copied().chain(own).collect();
    ids.sort_unstable();
    ids.dedup();
    let row = |id: SiteId| {
        let site = &sites[id];
        let own = || plan.trained().filter(move |tensor| tensor.site == id);
        SiteRow {
            path: site.path.clone(),
            role: site.role.to_string(),
            input: site.dims.input,
            output: site.dims.output,
            tensors: own().map(|tensor| format!("{} {:?}", tensor.part, tensor.shape)).collect(),
            params: own().map(crate::plan::PlannedTensor::numel).sum(),
        }
    };
    ids.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests;
