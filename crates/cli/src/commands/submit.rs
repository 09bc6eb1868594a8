//! `pleach submit`.

use std::path::Path;
use std::process::ExitCode;

use pleach_base::Result;
use pleach_spec::{Job, Loaded};

use super::watch::{adapters, follow_until_ctrl_c, shown};
use crate::args::{Global, JobFile, Submit};
use crate::client::Client;
use crate::follow::{Follower, Stream};
use crate::{out, view};

pub(super) async fn run(global: &Global, args: Submit) -> Result<ExitCode> {
    let Loaded { mut job, places } = load(global, &args.job)?;
    if is_local(&global.address) {
        absolute_paths(&mut job);
    }
    let id = args.id.unwrap_or_else(|| job.metadata.name.clone());
    let mut client = Client::connect(global, &job.metadata.tenant).await?;
    let (stored, created) = client.submit(job.canonical_json(), &id).await.map_err(|error| places.locate(error))?;
    let what = if created { "submitted" } else { "was submitted before" };
    out::note(format!("{} {what}, {}: {}", stored.id, view::state(&stored), stored.reason));
    if args.no_wait {
        out::emit(args.output.output, &view::job(&stored), || stored.id.clone())?;
        return Ok(ExitCode::SUCCESS);
    }
    let code = follow_until_ctrl_c(&mut client, &stored, Follower::new(Stream::Err, shown(global))).await?;
    let last = client.get(&id).await?;
    out::emit(args.output.output, &view::job(&last), || adapters(&last))?;
    Ok(code)
}

/// Reads the job file; `--tenant` stands above the file's own.
pub(super) fn load(global: &Global, file: &JobFile) -> Result<Loaded> {
    let mut sets = file.sets.clone();
    if let Some(tenant) = &global.tenant {
        sets.push(format!("metadata.tenant={tenant:?}"));
    }
    pleach_spec::read(&file.file, &sets)
}

/// Whether the coordinator runs on this machine, and so sees the same folders.
fn is_local(address: &str) -> bool {
    let host = address.split("://").nth(1).unwrap_or(address);
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}

/// Makes relative paths absolute: another process has another working directory.
pub(super) fn absolute_paths(job: &mut Job) {
    let spec = &mut job.spec;
    absolute(&mut spec.backbone.path);
    absolute(&mut spec.checkpoint.store);
    if let Some(eval) = &mut spec.eval {
        absolute(&mut eval.source);
        eval.candidates.iter_mut().for_each(absolute);
    }
    let datas = spec.data.iter_mut().chain(spec.tasks.iter_mut().filter_map(|task| task.data.as_mut()));
    for data in datas {
        absolute(&mut data.source);
        data.tokenizer.iter_mut().for_each(absolute);
    }
    spec.tasks.iter_mut().filter_map(|task| task.init_from.as_mut()).for_each(absolute);
}

fn absolute(path: &mut String) {
    if path.contains("://") {
        return;
    }
    if let Ok(whole) = std::path::absolute(Path::new(path.as_str())) {
        *path = whole.display().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_become_absolute_and_addresses_stay() {
        let text = include_str!("../../../../docs/jobs/lora-classification.yaml");
        let mut job = pleach_spec::parse(text, "sample").unwrap();
        absolute_paths(&mut job);
        let here = std::env::current_dir().unwrap();
        assert_eq!(job.spec.backbone.path, here.join("models/all-MiniLM-L6-v2").display().to_string());
        assert_eq!(job.spec.data.unwrap().source, here.join("data/tickets.parquet").display().to_string());
        assert_eq!(job.spec.checkpoint.store, "s3://checkpoints/support");
    }

    #[test]
    fn only_loopback_is_this_machine() {
        assert!(is_local("http://127.0.0.1:7700") && is_local("https://localhost:1") && is_local("http://[::1]:1"));
        assert!(!is_local("http://10.0.0.1:7700") && !is_local("https://pleach.example"));
    }
}
