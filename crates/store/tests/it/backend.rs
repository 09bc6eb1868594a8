//! The two kinds of store, behind one face.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use pleach_base::{Fence, Generation, ManualClock, Step, Term};
use pleach_store::{
    ADAPTER_CONFIG, ADAPTER_MODEL, Gate, Snapshot, SnapshotFile, Store, StoreOptions, TRAINER_STATE, TaskStore,
};
use pleach_testkit::s3::{S3Options, S3Server};
use serde_json::json;

/// Which store a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    S3,
}

/// A store that lives as long as the test.
pub(crate) struct Backend {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    /// The local folder behind the store's root.
    pub(crate) root: PathBuf,
    _folder: Option<tempfile::TempDir>,
    pub(crate) server: Option<S3Server>,
}

impl Backend {
    pub(crate) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Folder => Self::folder(),
            Kind::S3 => Self::s3(S3Options::default()).await,
        }
    }

    pub(crate) fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a store");
        let clock = ManualClock::starting_at(1_000_000);
        let options = StoreOptions { clock: Some(Arc::<ManualClock>::clone(&clock)), ..StoreOptions::default() };
        let store = Store::open(root.to_str().unwrap(), &options).unwrap();
        Self { store, clock, root, _folder: Some(folder), server: None }
    }

    pub(crate) async fn s3(options: S3Options) -> Self {
        let server = S3Server::start(options).await.unwrap();
        let clock = ManualClock::starting_at(1_000_000);
        let store = open_s3(&server, server.secret_key(), Some(Arc::clone(&clock))).unwrap();
        let root = server.root().join(server.bucket()).join("pre/fix");
        Self { store, clock, root, _folder: None, server: Some(server) }
    }

    /// The address for another process, which takes credentials from the environment.
    pub(crate) fn address(&self) -> String {
        self.store.url().to_owned()
    }

    pub(crate) fn task(&self) -> TaskStore {
        task_of(&self.store)
    }

    /// The bytes of every object of the task, by key below the task's folder.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let root = self.root.join("acme/desk/tone");
        let mut found = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                    match std::fs::read(&path) {
                        Ok(bytes) => drop(found.insert(key, bytes)),
                        // A live writer renamed or removed it since the listing.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => panic!("{key}: {error}"),
                    }
                }
            }
        }
        found
    }
}

pub(crate) fn open_s3(server: &S3Server, secret: &str, clock: Option<Arc<ManualClock>>) -> pleach_base::Result<Store> {
    let mut env: BTreeMap<_, _> = server.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    env.insert("AWS_SECRET_ACCESS_KEY".to_owned(), secret.to_owned());
    let clock = clock.map(|clock| clock as pleach_base::SharedClock);
    let options = StoreOptions { clock, env: Some(env), ..StoreOptions::default() };
    Store::open(&format!("s3://{}/pre/fix", server.bucket()), &options)
}

pub(crate) fn task_of(store: &Store) -> TaskStore {
    store.task(&"acme".into(), &"desk".into(), &"tone".into())
}

pub(crate) fn fence(term: u64, generation: u64) -> Fence {
    Fence { term: Term(term), generation: Generation(generation) }
}

/// A step whose bytes depend on `step` and `flavour`.
pub(crate) fn snapshot(step: u64, flavour: u8) -> Snapshot {
    let meta = json!({"loss": 1.5, "epoch": 0, "metrics": {"eval/loss": 1.0 / (step as f64 + 1.0)}});
    Snapshot {
        step: Step(step),
        files: vec![
            SnapshotFile::new(ADAPTER_CONFIG, br#"{"peft_type": "LORA"}"#.to_vec()),
            SnapshotFile::new(ADAPTER_MODEL, [step as u8, flavour].repeat(3_000)),
            SnapshotFile::new(TRAINER_STATE, vec![flavour; 64]),
        ],
        gate: Gate::passed(),
        meta: meta.as_object().unwrap().clone(),
        ledger: Vec::new(),
    }
}
