//! What a submitted job must pass before it is stored: the same checks as `pleach plan`, and a usable store address.

use std::path::Path;

use pleach_base::{Result, Tenant, code};
use pleach_methods::{JobPlan, check_adapter, head_options, plan_job, remote_experts};
use pleach_proto::v1;
use pleach_sched::{JobKey, Needs};
use pleach_spec::Job;
use pleach_spec::job::is_remote;
use pleach_store::{Store, StoreOptions};

/// A job that may be stored.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) key: JobKey,
    /// The resolved job, canonical JSON.
    pub(crate) spec: String,
    pub(crate) needs: Needs,
    pub(crate) tasks: Vec<v1::TaskStatus>,
}

/// Checks a job file. `tenant` is the caller's, if it named one; `local` says that workers run on this machine and see
/// the same folders.
pub(crate) fn admit(request: &v1::SubmitJobRequest, tenant: Option<&Tenant>, local: bool) -> Result<Admitted> {
    let mut job = pleach_spec::parse(&request.spec, "job")?;
    if !request.id.is_empty() {
        job.metadata.name.clone_from(&request.id);
        job.validate()?;
    }
    if let Some(tenant) = tenant {
        // A file that says nothing belongs to whoever submits it.
        if job.metadata.tenant != tenant.as_str() && job.metadata.tenant != crate::caller::DEFAULT_TENANT {
            let theirs = &job.metadata.tenant;
            return Err(
                code::BAD_VALUE.error(format!("metadata.tenant: it is `{theirs}`, the call is made for `{tenant}`"))
            );
        }
        job.metadata.tenant = tenant.to_string();
        job.validate()?;
    }
    let job = job.resolve();
    open_store(&job)?;
    let plan = plan(&job, local)?;
    Ok(Admitted {
        key: JobKey::new(job.metadata.tenant.as_str(), job.metadata.name.as_str()),
        spec: job.canonical_json(),
        needs: needs(&job),
        tasks: tasks(&job, plan.as_ref()),
    })
}

/// The store of a job.
pub(crate) fn open_store(job: &Job) -> Result<Store> {
    let checkpoint = &job.spec.checkpoint;
    let options = StoreOptions {
        endpoint: checkpoint.endpoint.clone(),
        region: checkpoint.region.clone(),
        ..StoreOptions::default()
    };
    Store::open(&checkpoint.store, &options).map_err(|error| error.at("spec.checkpoint.store"))
}

fn needs(job: &Job) -> Needs {
    let workers = &job.spec.workers;
    Needs {
        min_workers: workers.min,
        max_workers: workers.max,
        lanes: job.spec.train.lanes.unwrap_or(1),
        restarts: workers.restarts,
        priority: workers.priority,
    }
}

/// Plans the job when the model can be read from here; otherwise only the method sections are checked, and the first
/// worker that loads the model finds what is wrong with it.
fn plan(job: &Job, local: bool) -> Result<Option<JobPlan>> {
    let path = &job.spec.backbone.path;
    let folder = Path::new(path.strip_prefix("file://").unwrap_or(path));
    if is_remote(path) || !(local || folder.exists()) || remote_experts(job) {
        for index in 0..job.spec.tasks.len() {
            check_adapter(job, index)?;
        }
        return Ok(None);
    }
    let (_, model) = pleach_nn::open(folder, &head_options(job)?).map_err(|error| error.at("spec.backbone.path"))?;
    plan_job(job, model.as_ref()).map(Some)
}

fn tasks(job: &Job, plan: Option<&JobPlan>) -> Vec<v1::TaskStatus> {
    let planned = |name: &str| plan.and_then(|plan| plan.tasks.iter().find(|task| task.task == name));
    let status = |task: &pleach_spec::job::TaskSpec| v1::TaskStatus {
        name: task.name.clone(),
        method: task.adapter.method.clone(),
        total_steps: job.spec.train.max_steps.unwrap_or_default(),
        trainable_params: planned(&task.name).map_or(0, |plan| plan.trainable),
        all_params: planned(&task.name).map_or(0, |plan| plan.all),
        ..v1::TaskStatus::default()
    };
    job.spec.tasks.iter().map(status).collect()
}
