//! Processes that write and read: this test binary, started again with a role.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use pleach_base::{Result, code};
use pleach_store::{
    ADAPTER_CONFIG, ADAPTER_MODEL, LogEntry, Retention, Snapshot, SnapshotFile, Store, StoreOptions, TRAINER_STATE,
    TaskStore, Uploader, UploaderOptions,
};
use pleach_testkit::process::Process;
use tokio::runtime::Handle;

use crate::backend::{Backend, fence, snapshot, task_of};
use crate::gate::Gate;

const ROLE: &str = "PLEACH_STORE_ROLE";
/// For what a healthy process does on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// What a writing process commits before it ends.
pub(crate) const STEPS: u64 = 3;

/// What a process is to do; travels as `ROLE ARGUMENT ...`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Takes the task over with this generation, resumes, and uploads [`STEPS`] steps of `kib` each; stops before the
    /// write `gate` (0: never).
    Uploader { generation: u64, gate: u64, kib: u64 },
    /// Reads all the time until the file `stop` appears.
    Reader,
    /// Takes part in so many races for one step.
    Racer { rounds: u64, number: u64 },
}

/// Starts a process on the store of `backend`.
pub(crate) fn start(backend: &Backend, role: Role) -> Process {
    let words = match role {
        Role::Uploader { generation, gate, kib } => format!("uploader {generation} {gate} {kib}"),
        Role::Reader => format!("reader {}", stop_file(backend).display()),
        Role::Racer { rounds, number } => format!("racer {rounds} {number} {}", stop_file(backend).display()),
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["actors::actor_process", "--exact", "--ignored", "--nocapture"]);
    command.env(ROLE, format!("{}\n{words}", backend.address()));
    if let Some(server) = &backend.server {
        command.envs(server.env());
    }
    Process::start(words, command).unwrap()
}

/// Readers end when it is there; racers look for `FILE.ROUND`.
pub(crate) fn stop_file(backend: &Backend) -> std::path::PathBuf {
    let beside = backend.server.as_ref().map(|server| server.root().join("stop"));
    beside.unwrap_or_else(|| backend.root.with_file_name("stop"))
}

/// Not a test: the body of a process.
#[test]
#[ignore = "started by other tests as a process"]
fn actor_process() {
    let Ok(given) = std::env::var(ROLE) else { return };
    let (address, words) = given.split_once('\n').unwrap();
    let words: Vec<&str> = words.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let store = Store::open(address, &StoreOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    match words[0] {
        "uploader" => {
            let gated = store.decorated(|objects| Gate::before(objects, number(2)) as Arc<dyn ObjectStore>);
            match upload(&task_of(&gated), &handle, number(1), number(3)) {
                Ok(step) => println!("@ done {step}"),
                Err(error) => println!("@ ended {} {error}", error.code().id),
            }
        }
        "reader" => runtime.block_on(read_on(&task_of(&store), words[1])),
        _ => runtime.block_on(crate::races::race(&task_of(&store), number(1), number(2), words[3])),
    }
}

/// A step of `kib` KiB whose bytes depend on `step` and `flavour`.
pub(crate) fn sized(step: u64, flavour: u8, kib: u64) -> Snapshot {
    let mut made = snapshot(step, flavour);
    made.files[1] = SnapshotFile::new(ADAPTER_MODEL, [step as u8, flavour].repeat(kib as usize * 512));
    made
}

fn upload(task: &TaskStore, handle: &Handle, generation: u64, kib: u64) -> Result<u64> {
    let (writer, from) = handle.block_on(async {
        let writer = task.fence(fence(1, generation)).await?;
        let newest = task.newest().await?;
        Ok::<_, pleach_base::Error>((writer, newest.and_then(|entry| entry.step).map_or(0, |step| step.0)))
    })?;
    let retention = Some(Retention { last: 1, best: None, min_age: Duration::ZERO });
    let uploader = Uploader::start(writer, handle, UploaderOptions { retention, ..UploaderOptions::default() });
    for step in from + 1..=from + STEPS {
        uploader.submit(sized(step, generation as u8, kib))?;
        uploader.wait_idle(PATIENCE)?;
    }
    Ok(from + STEPS)
}

/// Whether what was read is one step of one writer: the hashes are checked by the store, this looks at the content.
pub(crate) fn is_one_step(entry: &LogEntry, read: &Snapshot) -> bool {
    let flavour = entry.fence.generation.0 as u8;
    let step = entry.step.unwrap_or_default().0;
    let bytes = |name: &str| read.file(name).cloned().unwrap_or_default();
    let same = |bytes: Bytes, pattern: &[u8]| !bytes.is_empty() && bytes.chunks(pattern.len()).all(|c| c == pattern);
    read.step.0 == step
        && read.files.len() == 3
        && same(bytes(ADAPTER_MODEL), &[step as u8, flavour])
        && same(bytes(TRAINER_STATE), &[flavour])
        && bytes(ADAPTER_CONFIG) == snapshot(1, 1).files[0].bytes
}

/// Follows the log and reads whatever it reaches. Says `@ torn` and ends at the first thing that is not whole.
async fn read_on(task: &TaskStore, stop: &str) {
    let pulled = tempfile::tempdir().unwrap();
    let (mut reads, mut gone, mut newest) = (0u64, 0u64, 0);
    let mut steps = BTreeSet::new();
    while !std::path::Path::new(stop).exists() {
        let found = look(task, pulled.path()).await;
        match found {
            Ok(entries) => {
                let last = entries.iter().map(|entry| entry.seq).max().unwrap_or(newest);
                if last < newest {
                    return println!("@ torn: the log went back from {newest} to {last}");
                }
                newest = last;
                reads += entries.len() as u64;
                steps.extend(entries.iter().filter_map(|entry| entry.step));
            }
            // Retention took it meanwhile, and the log says so.
            Err(error) if error.code() == code::CHECKPOINT_NONE => gone += 1,
            Err(error) => return println!("@ torn: {} {}", error.code().id, error.chain()),
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    println!("@ read {reads} entries of {} steps; {gone} were given up meanwhile", steps.len());
}

async fn look(task: &TaskStore, pulled: &std::path::Path) -> Result<Vec<LogEntry>> {
    let mut seen = Vec::new();
    for entry in task.steps().await?.into_iter().chain(task.newest().await?) {
        let read = task.read(&entry).await?;
        if !is_one_step(&entry, &read) {
            return Err(code::STORE_CORRUPT.error(format!("entry {} mixes steps", entry.seq)));
        }
        seen.push(entry);
    }
    if !seen.is_empty() {
        let (entry, _) = task.pull_newest(pulled).await?;
        let model = std::fs::read(pulled.join(ADAPTER_MODEL)).unwrap();
        if model[..2] != [entry.step.unwrap_or_default().0 as u8, entry.fence.generation.0 as u8] {
            return Err(code::STORE_CORRUPT.error(format!("entry {} was pulled with another step's file", entry.seq)));
        }
        seen.push(entry);
    }
    Ok(seen)
}
