//! `pleach plan`: what a job would train, by the same code that the coordinator and the trainer use.

use std::fmt::Write;
use std::path::Path;

use pleach_base::{Error, Result, human};
use pleach_methods::{JobPlan, TaskPlan, head_options, plan_job};
use pleach_nn::ModelDir;
use pleach_spec::{Job, Loaded};

use crate::args::{Global, Plan};
use crate::out;

pub(super) fn run(global: &Global, args: &Plan) -> Result<()> {
    let Loaded { job, places } = super::submit::load(global, &args.job)?;
    let job = job.resolve();
    let plan = plan(&job).map_err(|error| places.locate(error))?;
    out::emit(args.output.output, &plan, || page(&job, &plan))
}

/// Shapes come from `config.json` alone, so that a job can be planned before its weights are here.
fn plan(job: &Job) -> Result<JobPlan> {
    let path = &job.spec.backbone.path;
    let folder = Path::new(path.strip_prefix("file://").unwrap_or(path));
    let here = |error: Error| error.at("spec.backbone.path");
    let dir = ModelDir::config_only(folder).map_err(here)?;
    let model = pleach_nn::configure(&dir, &head_options(job)?).map_err(here)?;
    if let Err(error) = ModelDir::open(folder) {
        out::note(format!("planned from config.json alone: {}", error.chain()));
    }
    let tokens = super::lengths::largest(job, folder, model.as_ref());
    Ok(plan_job(job, model.as_ref())?.with_tokens(job, model.as_ref(), &tokens))
}

fn page(job: &Job, plan: &JobPlan) -> String {
    let train = &job.spec.train;
    let mut text = format!(
        "{}: {} with {} frozen parameters ({})\n{} rows a step in {} lanes for up to {} workers\n",
        job.metadata.name,
        plan.class,
        human::count(plan.frozen),
        human::bytes(plan.frozen_bytes),
        train.global_batch,
        train.lanes.unwrap_or(1),
        job.spec.workers.max,
    );
    let memory = &plan.memory;
    let _ = writeln!(
        text,
        "memory of a worker: {} (weights {}, adapters {}, activations {}, loss and gradients {}, libraries {})",
        human::bytes(memory.peak),
        human::bytes(memory.weights),
        human::bytes(memory.adapters),
        human::bytes(memory.activations),
        human::bytes(memory.working),
        human::bytes(memory.runtime),
    );
    for task in &plan.tasks {
        let _ = write!(text, "\n{} ({})\n{}", task.task, task.method, sites(task));
        for note in &task.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let _ = writeln!(text, "{}", task.trainable_line());
    }
    text
}

fn sites(task: &TaskPlan) -> String {
    let rows = task.sites.iter().map(|site| {
        [
            site.path.clone(),
            site.role.clone(),
            site.input.to_string(),
            site.output.to_string(),
            site.tensors.join("  "),
            human::count(site.params),
        ]
    });
    out::table(["SITE", "ROLE", "IN", "OUT", "TENSORS", "PARAMS"], rows)
}
