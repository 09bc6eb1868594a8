//! A reader of the store that knows only the page `docs/object-layout.md`: it follows the log during the whole run, and every
//! step that the log reaches must be whole, at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(300);

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    pub(crate) log_entries: u64,
    pub(crate) steps_verified: u64,
    /// Steps that the log reached and whose files were missing or had other bytes than their hashes.
    pub(crate) torn: u64,
    /// Log entries with a lower fence than an entry before them, numbers that are missing, and entries that changed.
    pub(crate) log_broken: u64,
    /// What was wrong, in words.
    pub(crate) told: Vec<String>,
    /// sha256 of the adapter of the newest step.
    pub(crate) adapter_sha256: String,
    pub(crate) newest_step: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    seq: u64,
    kind: String,
    term: u64,
    generation: u64,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    folder: String,
    #[serde(default)]
    manifest_sha256: String,
    #[serde(default)]
    removed: Vec<String>,
}

#[derive(Deserialize)]
struct Manifest {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    bytes: u64,
    sha256: String,
}

struct State {
    objects: Arc<dyn ObjectStore>,
    /// Of the task.
    root: Path,
    log: BTreeMap<u64, (String, Entry)>,
    verified: BTreeSet<String>,
    findings: Findings,
}

/// Reads in the background until [`Reader::finish`].
pub(crate) struct Reader {
    state: Arc<Mutex<Option<State>>>,
    reading: JoinHandle<()>,
}

impl Reader {
    pub(crate) fn start(runtime: &Handle, objects: Arc<dyn ObjectStore>, root: Path) -> Self {
        let first =
            State { objects, root, log: BTreeMap::new(), verified: BTreeSet::new(), findings: Findings::default() };
        let state = Arc::new(Mutex::new(Some(first)));
        let shared = Arc::clone(&state);
        let reading = runtime.spawn(async move {
            loop {
                // The state is out only while it is worked on, by this task alone.
                let taken = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(mut state) = taken else { return };
                state.poll().await;
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { state, reading }
    }

    /// Ends the reading, and verifies everything once more that the log reaches now.
    pub(crate) fn finish(self, runtime: &Handle) -> Result<Findings> {
        runtime.block_on(async {
            loop {
                let taken = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(mut state) = taken {
                    self.reading.abort();
                    state.verified.clear();
                    state.findings.steps_verified = 0;
                    state.reread().await;
                    state.poll().await;
                    state.newest().await?;
                    return Ok(state.findings);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl State {
    async fn get(&self, key: &str) -> object_store::Result<Vec<u8>> {
        let path = Path::from(format!("{}/{key}", self.root));
        Ok(self.objects.get(&path).await?.bytes().await?.to_vec())
    }

    fn tell(&mut self, text: String) {
        if self.findings.told.len() < 20 {
            self.findings.told.push(text);
        }
    }

    /// New entries of the log, then the steps that it reaches.
    async fn poll(&mut self) {
        if let Err(error) = self.read_log().await {
            return self.tell(format!("the log cannot be read: {error:#}"));
        }
        for entry in self.reached() {
            if self.verified.contains(&entry.folder) {
                continue;
            }
            if let Err(error) = self.verify(&entry).await {
                // It may have been given up meanwhile: then the log says so by now.
                let given_up =
                    self.read_log().await.is_ok() && !self.reached().iter().any(|e| e.folder == entry.folder);
                if !given_up {
                    self.findings.torn += 1;
                    self.tell(format!("log entry {}: step {} is torn: {error:#}", entry.seq, entry.step));
                }
            }
            self.findings.steps_verified += 1;
            self.verified.insert(entry.folder);
        }
    }

    async fn read_log(&mut self) -> Result<()> {
        let prefix = Path::from(format!("{}/log", self.root));
        let listed: Vec<_> = self.objects.list(Some(&prefix)).try_collect().await?;
        let mut names: Vec<String> =
            listed.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect();
        names.sort();
        for name in names {
            let Some(number) = name.strip_suffix(".json").and_then(|digits| digits.parse::<u64>().ok()) else {
                continue;
            };
            if self.log.contains_key(&number) {
                continue;
            }
            let bytes = self.get(&format!("log/{name}")).await?;
            let entry: Entry = serde_json::from_slice(&bytes).with_context(|| name.clone())?;
            let before = self.log.last_key_value().map(|(at, (_, entry))| (*at, (entry.term, entry.generation)));
            let (last, newest) = before.unwrap_or((0, (0, 0)));
            if entry.seq != number || number != last + 1 || (entry.term, entry.generation) < newest {
                self.findings.log_broken += 1;
                self.tell(format!("log entry {name} comes after number {last} of fence {newest:?}"));
            }
            self.findings.log_entries += 1;
            self.log.insert(number, (sha256(&bytes), entry));
        }
        Ok(())
    }

    /// Entries are created once and never change.
    async fn reread(&mut self) {
        let known: Vec<(u64, String)> = self.log.iter().map(|(at, (hash, _))| (*at, hash.clone())).collect();
        for (number, hash) in known {
            let bytes = self.get(&format!("log/{number:010}.json")).await.unwrap_or_default();
            if sha256(&bytes) != hash {
                self.findings.log_broken += 1;
                self.tell(format!("log entry {number} has changed"));
            }
        }
    }

    /// The steps that count: a step drops all that are not before it, `retain` drops folders.
    fn reached(&self) -> Vec<Entry> {
        let mut steps: Vec<Entry> = Vec::new();
        let removed: BTreeSet<&String> = self.log.values().flat_map(|(_, entry)| &entry.removed).collect();
        for (_, entry) in self.log.values().filter(|(_, entry)| entry.kind == "step") {
            steps.retain(|step| step.step < entry.step);
            steps.push(entry.clone());
        }
        steps.retain(|step| !removed.contains(&step.folder));
        steps
    }

    async fn verify(&self, entry: &Entry) -> Result<()> {
        let manifest = self.get(&format!("{}/manifest.json", entry.folder)).await?;
        if sha256(&manifest) != entry.manifest_sha256 {
            bail!("its manifest has another hash");
        }
        for file in serde_json::from_slice::<Manifest>(&manifest)?.files {
            let bytes = self.get(&format!("{}/{}", entry.folder, file.name)).await?;
            if bytes.len() as u64 != file.bytes || sha256(&bytes) != file.sha256 {
                bail!("{} has other bytes", file.name);
            }
        }
        Ok(())
    }

    async fn newest(&mut self) -> Result<()> {
        let Some(entry) = self.reached().pop() else { return Ok(()) };
        let adapter = self.get(&format!("{}/adapter_model.safetensors", entry.folder)).await?;
        self.findings.adapter_sha256 = sha256(&adapter);
        self.findings.newest_step = entry.step;
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use serde_json::json;

    use super::*;

    async fn put(objects: &InMemory, key: &str, bytes: &[u8]) {
        objects.put(&Path::from(format!("t/{key}")), bytes.to_vec().into()).await.unwrap();
    }

    /// Files, manifest, and the entry that names them.
    async fn step(objects: &InMemory, seq: u64, step: u64, generation: u64) {
        let folder = format!("steps/{step:08}-g{generation:04}");
        let adapter = format!("weights of {step}").into_bytes();
        put(objects, &format!("{folder}/adapter_model.safetensors"), &adapter).await;
        let file = json!({"name": "adapter_model.safetensors", "bytes": adapter.len(), "sha256": sha256(&adapter)});
        let manifest = json!({"files": [file]}).to_string().into_bytes();
        put(objects, &format!("{folder}/manifest.json"), &manifest).await;
        let entry = json!({"seq": seq, "kind": "step", "term": 1, "generation": generation, "step": step, "folder": folder,
            "manifest_sha256": sha256(&manifest)});
        put(objects, &format!("log/{seq:010}.json"), entry.to_string().as_bytes()).await;
    }

    async fn read(objects: InMemory) -> State {
        let objects: Arc<dyn ObjectStore> = Arc::new(objects);
        let mut state = State {
            objects,
            root: Path::from("t"),
            log: BTreeMap::new(),
            verified: BTreeSet::new(),
            findings: Findings::default(),
        };
        state.poll().await;
        state.newest().await.unwrap();
        state
    }

    #[tokio::test]
    async fn a_whole_log_is_verified() {
        let objects = InMemory::new();
        step(&objects, 1, 5, 1).await;
        step(&objects, 2, 10, 1).await;
        let found = read(objects).await.findings;
        assert_eq!((found.log_entries, found.steps_verified, found.torn, found.log_broken), (2, 2, 0, 0), "{found:?}");
        assert_eq!((found.newest_step, found.adapter_sha256), (10, sha256(b"weights of 10")));
    }

    #[tokio::test]
    async fn missing_and_changed_files_are_torn_unless_given_up() {
        let objects = InMemory::new();
        step(&objects, 1, 5, 1).await;
        step(&objects, 2, 10, 1).await;
        step(&objects, 3, 15, 1).await;
        objects.delete(&Path::from("t/steps/00000005-g0001/adapter_model.safetensors")).await.unwrap();
        put(&objects, "steps/00000010-g0001/adapter_model.safetensors", b"weights of xx").await;
        let removed =
            json!({"seq": 4, "kind": "retain", "term": 1, "generation": 1, "removed": ["steps/00000005-g0001"]});
        put(&objects, "log/0000000004.json", removed.to_string().as_bytes()).await;
        let found = read(objects).await.findings;
        assert_eq!((found.torn, found.steps_verified), (1, 2), "{found:?}");
    }

    #[tokio::test]
    async fn a_stale_writer_a_gap_and_a_rewritten_entry_break_the_log() {
        let objects = InMemory::new();
        step(&objects, 1, 5, 2).await;
        step(&objects, 2, 10, 1).await;
        step(&objects, 4, 15, 2).await;
        let mut state = read(objects).await;
        assert_eq!(state.findings.log_broken, 2, "{:?}", state.findings);
        let at = Path::from("t/log/0000000001.json");
        state.objects.put(&at, b"{}".to_vec().into()).await.unwrap();
        state.reread().await;
        assert_eq!(state.findings.log_broken, 3);
    }
}
