//! A coordinator on loopback, a tiny model folder, and a client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pleach_base::shutdown::Shutdown;
use pleach_coordinator::{Config, Running, Settings, StateStore, serve};
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{
    CancelJobRequest, GetJobRequest, Job, JobState, SubmitJobRequest, WatchJobRequest, WatchJobResponse,
};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::worker::Worker;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) running: Option<Running>,
    pub(crate) folder: TempDir,
    pub(crate) jobs: JobServiceClient<Channel>,
    settings: Settings,
}

pub(crate) fn fast() -> Settings {
    Settings {
        lease_ttl: Duration::from_millis(900),
        stall_grace: Duration::from_secs(5),
        settle: Duration::from_millis(300),
        retry: Duration::from_millis(50),
        retry_max: Duration::from_secs(1),
        drain_timeout: Duration::from_secs(20),
        ..Settings::default()
    }
}

pub(crate) fn config(state: StateStore) -> Config {
    Config { settings: fast(), tick: Duration::from_millis(20), ..Config::embedded(state) }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(fast()).await
    }

    /// A client of a coordinator that was started elsewhere, with a folder for jobs.
    pub(crate) async fn at(running: Running) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model(&folder.path().join("model"));
        let jobs = JobServiceClient::connect(running.url()).await.unwrap();
        Self { running: Some(running), folder, jobs, settings: fast() }
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model(&folder.path().join("model"));
        let (running, jobs) = up(&folder.path().join("state.redb"), &settings).await;
        Self { running: Some(running), folder, jobs, settings }
    }

    /// Stops the coordinator and starts another one on its state; the address is a new one.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let (running, jobs) = up(&self.folder.path().join("state.redb"), &self.settings).await;
        self.running = Some(running);
        self.jobs = jobs;
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop("a test").await.unwrap();
        }
    }

    pub(crate) fn url(&self) -> String {
        self.running.as_ref().unwrap().url()
    }

    /// A job file for `min` to `max` workers.
    pub(crate) fn spec(&self, name: &str, min: u32, max: u32) -> String {
        let folder = self.folder.path().display();
        format!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  \
             backbone: {{path: {folder}/model}}\n  workers: {{min: {min}, max: {max}, restarts: 3}}\n  \
             data: {{source: {folder}/train.jsonl, task: retrieval, text: '{{q}}', text_pair: '{{p}}'}}\n  \
             train: {{global_batch: 4, max_steps: 8}}\n  tasks:\n    \
             - {{name: answers, adapter: {{method: lora, r: 4, target_modules: [query, value]}}}}\n  \
             checkpoint: {{store: {folder}/store, every: 4}}\n"
        )
    }

    pub(crate) async fn submit(&mut self, spec: impl Into<String>) -> Result<(Job, bool), Status> {
        let request = SubmitJobRequest { spec: spec.into(), id: String::new() };
        let answer = self.jobs.submit_job(request).await?.into_inner();
        Ok((answer.job.unwrap(), answer.created))
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<Job, Status> {
        Ok(self.jobs.get_job(GetJobRequest { id: id.into() }).await?.into_inner().job.unwrap())
    }

    pub(crate) async fn cancel(&mut self, id: &str) -> Result<Job, Status> {
        let request = CancelJobRequest { id: id.into(), reason: "a test wants it".into() };
        Ok(self.jobs.cancel_job(request).await?.into_inner().job.unwrap())
    }

    pub(crate) async fn watch(&mut self, id: &str, after_seq: u64) -> Streaming<WatchJobResponse> {
        self.jobs.watch_job(WatchJobRequest { id: id.into(), after_seq }).await.unwrap().into_inner()
    }

    pub(crate) async fn worker(&self, name: &str, incarnation: u64) -> Worker {
        Worker::join(&self.url(), name, incarnation).await.unwrap()
    }

    /// Waits until a job is in a state.
    pub(crate) async fn until(&mut self, id: &str, state: JobState) -> Job {
        let mut last = None;
        for _ in 0..LIMIT.as_millis() / 20 {
            let job = self.get(id).await.unwrap();
            if job.state() == state {
                return job;
            }
            last = Some(job);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{id} did not become {state:?}: {last:?}");
    }
}

async fn up(state: &Path, settings: &Settings) -> (Running, JobServiceClient<Channel>) {
    let config = Config { settings: settings.clone(), ..config(StateStore::File(PathBuf::from(state))) };
    let running = serve(config, Shutdown::default()).await.unwrap();
    let jobs = JobServiceClient::connect(running.url()).await.unwrap();
    (running, jobs)
}

/// Reads a watch until its end.
pub(crate) async fn all(mut updates: Streaming<WatchJobResponse>) -> Vec<WatchJobResponse> {
    let mut seen = Vec::new();
    while let Some(update) = tokio::time::timeout(LIMIT, updates.message()).await.expect("an update").unwrap() {
        seen.push(update);
    }
    seen
}

pub(crate) fn states(updates: &[WatchJobResponse]) -> Vec<JobState> {
    let state = |update: &WatchJobResponse| match &update.update {
        Some(Update::Job(job)) => Some(job.state()),
        _ => None,
    };
    let mut states: Vec<_> = updates.iter().filter_map(state).collect();
    states.dedup();
    states
}

/// A BERT folder with a configuration and a weights file that holds next to nothing: planning reads no weights.
fn model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend([0; 4]);
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}
