//! Jobs as users see them.

use pleach_base::{Fence, Generation, Step, Term, code};
use pleach_proto::status::from_status;
use pleach_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{
    DeleteJobRequest, DescribeCheckpointRequest, Drained, EvalRow, JobState, ListCheckpointsRequest, ListJobsRequest,
    StopMode, SubmitJobRequest, TaskStatus, WatchJobResponse,
};
use pleach_store::{Gate, Snapshot, SnapshotFile, Store, StoreOptions};
use tonic::Request;

use crate::cluster::{Cluster, all, states};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_submitted_trained_watched_and_ends() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 2, 2);
    let (job, created) = cluster.submit(spec).await.unwrap();
    assert!(created);
    assert_eq!((job.state(), job.lanes, job.tasks.len()), (JobState::Queued, 2, 1));
    assert!(job.tasks[0].trainable_params > 0, "it was planned: {:?}", job.tasks);
    let watch = tokio::spawn(all(cluster.watch("j", 0).await));

    let mut a = cluster.worker("a", 1).await;
    let mut b = cluster.worker("b", 1).await;
    let (first, second) = (a.assignment().await, b.assignment().await);
    assert_eq!((first.rank, second.rank, first.world, first.rendezvous_port), (0, 1, 2, 4000));
    assert_eq!(first.members[1].lanes, [1]);
    assert!(first.spec_json.contains("\"lanes\":2"), "the resolved spec: {}", first.spec_json);
    a.ready(&first).await;
    b.ready(&second).await;
    cluster.until("j", JobState::Running).await;
    for step in 1..=8 {
        a.step(&first, step, if step == 3 { f64::NAN } else { 1.0 / step as f64 }).await;
        b.step(&second, step, 9.0).await;
        if step % 4 == 0 {
            a.durable(&first, step).await;
        }
    }
    let eval =
        EvalRow { task: "answers".into(), step: 8, metrics: [("mrr".into(), 0.5)].into(), samples: 3, seconds: 0.1 };
    a.report(&first, Report::Eval(eval)).await.unwrap();
    let told = TaskStatus { name: "answers".into(), step: 8, bad_rows: 2, done: true, ..TaskStatus::default() };
    a.report(&first, Report::Task(told)).await.unwrap();
    // The session and the reports are two channels: the last row may come after the report.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    b.finish(&second).await;
    a.finish(&first).await;

    let job = cluster.until("j", JobState::Succeeded).await;
    let task = &job.tasks[0];
    assert_eq!((task.step, task.durable_step, task.bad_rows, task.done), (8, 8, 2, true));
    assert_eq!((task.loss, task.tokens_per_second, task.evals.len()), (0.125, 200.0, 1));
    assert_eq!(task.metrics["router/largest_share"], 0.5);
    assert_eq!(task.durable_folder, "steps/00000008-g0001");
    assert!(job.members.is_empty() && job.error_code.is_empty());

    let seen = watch.await.unwrap();
    assert_eq!(states(&seen), [JobState::Queued, JobState::Starting, JobState::Running, JobState::Succeeded]);
    let seqs: Vec<_> = seen.iter().map(|update| update.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "in order, without gaps");
    let loss = |update: &WatchJobResponse| match &update.update {
        Some(Update::Step(row)) => Some(row.loss),
        _ => None,
    };
    let losses: Vec<f64> = seen.iter().filter_map(loss).collect();
    assert_eq!(losses.len(), 8, "rank 0 alone writes the step log");
    assert!(losses[2].is_nan(), "a loss that is no number travels as it is");

    let after = seqs[seqs.len() / 2];
    let rest = all(cluster.watch("j", after).await).await;
    let again: Vec<_> = rest.iter().map(|update| update.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(again, seqs[seqs.len() / 2 + 1..], "a watcher goes on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn submitting_is_idempotent_and_another_spec_is_a_conflict() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 2);
    assert!(cluster.submit(spec.clone()).await.unwrap().1);
    let spelt_otherwise = spec.replace("{global_batch: 4, max_steps: 8}", "{max_steps: 8, global_batch: 4, lanes: 2}");
    assert_ne!(spec, spelt_otherwise);
    assert!(!cluster.submit(spelt_otherwise).await.unwrap().1, "the same job in other words");
    let other = cluster.spec("j", 1, 4);
    let error = from_status(&cluster.submit(other.clone()).await.unwrap_err());
    assert_eq!(error.code(), code::JOB_EXISTS);
    let named = SubmitJobRequest { spec: other, id: "k".into() };
    let job = cluster.jobs.submit_job(named).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.id, "k");
    assert_eq!(cluster.jobs.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs.len(), 2);
    let running = ListJobsRequest { states: vec![JobState::Running.into()] };
    assert!(cluster.jobs.list_jobs(running).await.unwrap().into_inner().jobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_jobs_are_refused_with_their_codes() {
    let mut cluster = Cluster::start().await;
    let good = cluster.spec("j", 1, 1);
    let model = format!("{}/model", cluster.folder.path().display());
    for (old, new, expected) in [
        ("max_steps", "max_stepz", code::UNKNOWN_KEY),
        ("method: lora", "method: lorra", code::METHOD_UNKNOWN),
        ("[query, value]", "[qwery]", code::TARGET_NOTHING),
        ("r: 4", "r: 0", code::METHOD_CONFIG),
        (model.as_str(), "/nowhere/at/all", code::MODEL_MISSING),
        ("min: 1", "min: 3", code::BAD_VALUE),
        ("name: j}", "name: J!}", code::BAD_VALUE),
        ("pleach.dev/v1", "pleach.dev/v9", code::API_VERSION),
    ] {
        assert!(good.contains(old), "{old}");
        let error = from_status(&cluster.submit(good.replacen(old, new, 1)).await.unwrap_err());
        assert_eq!(error.code(), expected, "{new}: {error:?}");
    }
    let store = good.replace(&format!("{}/store", cluster.folder.path().display()), "ftp://x/y");
    assert_eq!(from_status(&cluster.submit(store).await.unwrap_err()).code(), code::STORE_URL);
    assert_eq!(from_status(&cluster.get("j").await.unwrap_err()).code(), code::JOB_NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_drains_and_an_ended_job_can_be_deleted() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    let at = a.assignment().await;
    a.ready(&at).await;
    let early = cluster.jobs.delete_job(DeleteJobRequest { id: "j".into() }).await.unwrap_err();
    assert_eq!(from_status(&early).code(), code::JOB_STATE);
    let job = cluster.cancel("j").await.unwrap();
    assert_eq!(job.state(), JobState::Stopping);
    let stop = a.stop().await;
    assert_eq!((stop.mode(), stop.generation, stop.term), (StopMode::Drain, at.generation, at.term));
    assert_eq!(cluster.cancel("j").await.unwrap().state(), JobState::Stopping, "asking twice is once");
    a.durable(&at, 3).await;
    a.report(&at, Report::Drained(Drained {})).await.unwrap();
    let job = cluster.until("j", JobState::Cancelled).await;
    assert!(job.reason.contains("a test wants it"), "{}", job.reason);
    cluster.jobs.delete_job(DeleteJobRequest { id: "j".into() }).await.unwrap();
    assert_eq!(from_status(&cluster.get("j").await.unwrap_err()).code(), code::JOB_NOT_FOUND);
    let spec = cluster.spec("j", 1, 1);
    assert!(cluster.submit(spec).await.unwrap().1, "the name is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_other() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    let of = |tenant: &'static str, message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert("pleach-tenant", tenant.parse().unwrap());
        request
    };
    let submit = SubmitJobRequest { spec: spec.clone(), id: String::new() };
    let job = cluster.jobs.submit_job(of("acme", submit)).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.tenant, "acme");
    assert_eq!(from_status(&cluster.get("j").await.unwrap_err()).code(), code::JOB_NOT_FOUND);
    let foreign = spec.replace("{name: j}", "{name: j, tenant: other}");
    let submit = SubmitJobRequest { spec: foreign, id: String::new() };
    let refused = cluster.jobs.submit_job(of("acme", submit)).await.unwrap_err();
    assert_eq!(from_status(&refused).code(), code::BAD_VALUE);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_what_the_store_says() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let url = cluster.folder.path().join("store").display().to_string();
    std::fs::create_dir_all(&url).unwrap();
    let store = Store::open(&url, &StoreOptions::default()).unwrap();
    let task = store.task(&"default".into(), &"j".into(), &"answers".into());
    let mut writer = task.fence(Fence { term: Term(1), generation: Generation(1) }).await.unwrap();
    for step in [4, 8] {
        let files = vec![SnapshotFile::new("adapter_model.safetensors", vec![step as u8; 10])];
        let snapshot = Snapshot {
            step: Step(step),
            files,
            gate: Gate::passed(),
            meta: serde_json::Map::new(),
            ledger: Vec::new(),
        };
        writer.commit(&snapshot).await.unwrap();
    }
    let mut client = CheckpointServiceClient::connect(cluster.url()).await.unwrap();
    let request = ListCheckpointsRequest { job: "j".into(), task: String::new() };
    let listed = client.list_checkpoints(request).await.unwrap().into_inner().checkpoints;
    assert_eq!(listed.iter().map(|c| (c.step, c.generation)).collect::<Vec<_>>(), [(8, 1), (4, 1)]);
    let describe = |task: &str, step| DescribeCheckpointRequest { job: "j".into(), task: task.into(), step };
    let described = client.describe_checkpoint(describe("", Some(4))).await.unwrap().into_inner();
    assert_eq!((described.checkpoint.unwrap().step, described.files[0].bytes), (4, 10));
    assert_eq!(described.files[0].sha256.len(), 64);
    let newest = client.describe_checkpoint(describe("answers", None)).await.unwrap().into_inner();
    assert_eq!(newest.checkpoint.unwrap().step, 8);
    for missing in [describe("answers", Some(5)), describe("anwsers", None)] {
        let refused = client.describe_checkpoint(missing).await.unwrap_err();
        assert_eq!(from_status(&refused).code(), code::CHECKPOINT_NONE);
    }
}
