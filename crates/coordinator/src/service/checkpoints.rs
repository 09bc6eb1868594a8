//! `CheckpointService`: what the store says now. Nothing is taken from the coordinator's own memory but the job file.

use pleach_base::{Result, ResultExt, Step, TaskName, code, suggest};
use pleach_proto::v1::checkpoint_service_server::CheckpointService;
use pleach_proto::v1::{
    Checkpoint, CheckpointFile, DescribeCheckpointRequest, DescribeCheckpointResponse, ListCheckpointsRequest,
    ListCheckpointsResponse,
};
use pleach_sched::JobKey;
use pleach_spec::Job;
use pleach_store::{LogEntry, TaskStore};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{Shared, status};
use crate::admit::open_store;
use crate::caller;

pub(crate) struct Checkpoints {
    shared: Shared,
}

/// A job and its open store.
struct Opened {
    key: JobKey,
    job: Job,
    store: pleach_store::Store,
}

impl Opened {
    fn task(&self, name: &str) -> TaskStore {
        self.store.task(&self.key.tenant, &self.key.job, &TaskName::from(name))
    }

    fn names(&self) -> Vec<&str> {
        self.job.spec.tasks.iter().map(|task| task.name.as_str()).collect()
    }

    fn checkpoint(&self, task: &str, entry: &LogEntry) -> Checkpoint {
        Checkpoint {
            task: task.to_owned(),
            step: entry.step.unwrap_or_default().0,
            term: entry.fence.term.0,
            generation: entry.fence.generation.0,
            store: self.task(task).url(),
            folder: entry.folder.clone().unwrap_or_default(),
            manifest_sha256: entry.manifest_sha256.clone().unwrap_or_default(),
            bytes: entry.bytes,
            publishable: entry.publishable,
            log_seq: entry.seq,
        }
    }
}

impl Checkpoints {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    async fn open(&self, metadata: &MetadataMap, id: &str) -> Result<Opened> {
        let key = JobKey::new(caller::tenant(metadata)?, id);
        let wanted = key.clone();
        let spec = self.shared.actor.ask(move |actor| actor.spec(&wanted)).await?;
        let job: Job = serde_json::from_str(&spec)
            .or_code(code::STATE_CORRUPT, || format!("job {key}: its stored file is damaged"))?;
        let store = open_store(&job)?;
        Ok(Opened { key, job, store })
    }

    async fn list(&self, metadata: &MetadataMap, request: &ListCheckpointsRequest) -> Result<Vec<Checkpoint>> {
        let opened = self.open(metadata, &request.job).await?;
        let tasks = match request.task.as_str() {
            "" => opened.names(),
            name => vec![known(&opened, name)?],
        };
        let mut all = Vec::new();
        for name in tasks {
            let steps = opened.task(name).steps().await?;
            all.extend(steps.iter().rev().map(|entry| opened.checkpoint(name, entry)));
        }
        Ok(all)
    }

    async fn describe(
        &self,
        metadata: &MetadataMap,
        request: &DescribeCheckpointRequest,
    ) -> Result<DescribeCheckpointResponse> {
        let opened = self.open(metadata, &request.job).await?;
        let name = match (request.task.as_str(), opened.names().as_slice()) {
            ("", [only]) => *only,
            (name, _) => known(&opened, name)?,
        };
        let task = opened.task(name);
        let entry = match request.step {
            Some(step) => task.find(Step(step)).await?,
            None => task.newest_publishable().await?.ok_or_else(|| {
                code::CHECKPOINT_NONE.error(format!("task `{name}` has no checkpoint that passed its checks yet"))
            })?,
        };
        let manifest = task.manifest(&entry).await?;
        let files = manifest.files.iter();
        Ok(DescribeCheckpointResponse {
            checkpoint: Some(opened.checkpoint(name, &entry)),
            files: files
                .map(|file| CheckpointFile { name: file.name.clone(), bytes: file.bytes, sha256: file.sha256.clone() })
                .collect(),
            manifest_json: serde_json::to_string(&manifest)
                .or_code(code::INTERNAL, || "the manifest cannot be written as JSON".into())?,
        })
    }
}

fn known<'a>(opened: &'a Opened, name: &str) -> Result<&'a str> {
    let names = opened.names();
    names.iter().find(|known| **known == name).copied().ok_or_else(|| {
        code::CHECKPOINT_NONE
            .error(format!("job `{}` has no task `{name}`", opened.key.job))
            .hint(suggest::did_you_mean(name, names))
    })
}

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let checkpoints = self.list(request.metadata(), request.get_ref()).await.map_err(status)?;
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn describe_checkpoint(
        &self,
        request: Request<DescribeCheckpointRequest>,
    ) -> Result<Response<DescribeCheckpointResponse>, Status> {
        self.describe(request.metadata(), request.get_ref()).await.map(Response::new).map_err(status)
    }
}
