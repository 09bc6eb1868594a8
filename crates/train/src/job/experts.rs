//! The experts of routers: published steps that are fetched before anything is planned, and tasks of the job, whose
//! adapters a router's task takes over when they are done.

use std::path::Path;

use pleach_base::{Result, ResultExt as _, code};
use pleach_data::Fetch as _;
use pleach_methods::router::{fetched, is_remote};

use super::ready::Preparation;
use super::remote::Remote;
use super::task::JobTask;
use crate::engine::Engine;

/// Files of a step folder that an expert needs; a folder that others wrote has no manifest.
const FILES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"];

/// Fetches the experts of the job that lie in a store, unless they were fetched before: a published step never changes.
///
/// # Errors
/// `METHOD_CONFIG` for an address that names no step; those of the store, with the expert's address.
pub(super) fn fetch(cx: &Preparation) -> Result<()> {
    let addresses = pleach_methods::expert_addresses(&cx.job);
    let remote = Remote::of(cx);
    for address in addresses.iter().filter(|address| is_remote(address)) {
        let folder = fetched(address)?;
        if folder.is_dir() {
            continue;
        }
        download(&remote, address, &folder).map_err(|error| error.at(address))?;
    }
    Ok(())
}

/// Into a folder beside, which is renamed when all is there, so that nobody reads half of it.
fn download(remote: &Remote, address: &str, folder: &Path) -> Result<()> {
    let partial = folder.with_extension(format!("{}.partial", std::process::id()));
    let io = |what: &str| format!("{}: {what}", partial.display());
    std::fs::create_dir_all(&partial).or_code(code::IO, || io("cannot be made"))?;
    let mut found = 0;
    for file in remote.list(address.trim_end_matches('/'))? {
        let name = file.url.rsplit('/').next().unwrap_or_default().to_owned();
        if FILES.contains(&name.as_str()) {
            remote.fetch(&file, &partial.join(&name))?;
            found += usize::from(name != FILES[2]);
        }
    }
    if found < 2 {
        return Err(code::ADAPTER_FORMAT.error(format!("no adapter: {} and {} are not both there", FILES[0], FILES[1])));
    }
    match std::fs::rename(&partial, folder) {
        // Another worker of this machine was faster.
        Err(_) if folder.is_dir() => std::fs::remove_dir_all(&partial).or_code(code::IO, || io("cannot be removed")),
        done => done.or_code(code::IO, || io("cannot be renamed")),
    }
}

/// Gives a task the adapters of the tasks that are its experts, once a generation; says whether it may make steps. What it
/// trains of them is theirs only before its first step.
///
/// # Errors
/// `INTERNAL` when the mixture is not one of these tasks.
pub(super) fn take(engine: &mut Engine<'_>, tasks: &mut [JobTask], index: usize) -> Result<bool> {
    let task = &tasks[index];
    if task.has_experts || task.experts.is_empty() {
        return Ok(true);
    }
    let mut from = Vec::with_capacity(task.experts.len());
    for expert in task.experts.iter().map(|expert| &tasks[*expert]) {
        if !expert.is_done(engine.step(&expert.name)?) {
            return Ok(false);
        }
        from.push(expert.name.clone());
    }
    let first = engine.step(&task.name)? == 0;
    engine.take_experts(&task.name, &from, first)?;
    tasks[index].has_experts = true;
    Ok(true)
}
