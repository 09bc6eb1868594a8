//! `pleach pull`: straight from the store, every byte checked against the manifest.

use pleach_base::{Error, JobId, Result, Step, TaskName, Tenant, code, human};
use pleach_store::{PulledFile, Store, StoreOptions, TaskStore};
use serde_json::{Value, json};

use crate::args::{Global, Pull};
use crate::out;

pub(super) async fn run(global: &Global, args: &Pull) -> Result<()> {
    let (job, task) =
        args.target.split_once('/').filter(|(job, task)| !job.is_empty() && !task.is_empty()).ok_or_else(|| {
            code::BAD_VALUE.error(format!("{}: expected JOB/TASK", args.target)).hint("for example demo/answers")
        })?;
    let (store, step) = match &args.store {
        Some(url) => (at(global, url, &StoreOptions::default(), job, task)?, args.step),
        None => located(global, job, task, args.step).await?,
    };
    out::note(format!("reading {}", store.url()));
    let (entry, files) = match step {
        Some(step) => {
            let entry = store.find(Step(step)).await?;
            if !entry.publishable && !args.unpublishable {
                let findings = store.manifest(&entry).await?.gate.findings;
                return Err(not_passed(step, &findings));
            }
            let files = store.pull(&entry, &args.to).await?;
            (entry, files)
        }
        None => store.pull_newest(&args.to).await?,
    };
    let step = entry.step.unwrap_or_default();
    if !entry.publishable {
        out::note(format!("step {step} has not passed its gate: its manifest.json says why"));
    }
    let value = json!({
        "job": job, "task": task, "step": step, "publishable": entry.publishable,
        "manifest_sha256": entry.manifest_sha256, "files": files.iter().map(file).collect::<Vec<_>>(),
    });
    out::emit(args.output.output, &value, || table(&files))?;
    out::note(format!("step {step} of {job}/{task} is in {}, verified", args.to.display()));
    Ok(())
}

fn not_passed(step: u64, findings: &[String]) -> Error {
    let why = if findings.is_empty() { "no reason is recorded".to_owned() } else { findings.join("; ") };
    code::ADAPTER_GATE
        .error(format!("step {step} did not pass its gate: {why}"))
        .hint("leave out `--step` for the newest that did, or add `--unpublishable`")
}

/// Where the coordinator says that the step is. Without a step the newest is decided by the store itself.
async fn located(global: &Global, job: &str, task: &str, step: Option<u64>) -> Result<(TaskStore, Option<u64>)> {
    let mut client = super::connect(global).await?;
    let found = client.checkpoint(job, task, step).await?;
    let stored = client.get(job).await?;
    let spec: Value = serde_json::from_str(&stored.spec_json).unwrap_or(Value::Null);
    let checkpoint = &spec["spec"]["checkpoint"];
    let text = |key: &str| checkpoint[key].as_str().map(str::to_owned);
    let options = StoreOptions { endpoint: text("endpoint"), region: text("region"), ..StoreOptions::default() };
    // The address as the job has it: the coordinator's is for show.
    let url = text("store").unwrap_or(found.store);
    Ok((at(global, &url, &options, job, task)?, step))
}

fn at(global: &Global, url: &str, options: &StoreOptions, job: &str, task: &str) -> Result<TaskStore> {
    let tenant = Tenant::from(global.tenant.as_deref().unwrap_or("default"));
    Ok(Store::open(url, options)?.task(&tenant, &JobId::from(job), &TaskName::from(task)))
}

fn file(file: &PulledFile) -> Value {
    json!({"name": file.name, "path": file.path, "bytes": file.bytes, "sha256": file.sha256})
}

fn table(files: &[PulledFile]) -> String {
    let rows = files.iter().map(|file| [file.name.clone(), human::bytes(file.bytes), file.sha256.clone()]);
    out::table(["FILE", "SIZE", "SHA256"], rows)
}
