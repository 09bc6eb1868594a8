//! Uploads behind the training thread's back.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pleach_base::{Step, code};
use pleach_store::{LogEntry, Retention, Uploader, UploaderOptions};
use pleach_testkit::s3::{PutFault, S3Options};
use tokio::runtime::Handle;

use crate::backend::{Backend, fence, snapshot};

const LIMIT: Duration = Duration::from_secs(20);

/// The training thread is no async code.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
#[allow(clippy::disallowed_methods)]
async fn submitting_does_not_wait_and_the_newest_wins() {
    let delay = Duration::from_millis(40);
    let backend = Backend::s3(S3Options { delay, ..S3Options::default() }).await;
    let writer = backend.task().fence(fence(1, 1)).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let on_durable = Box::new(move |entry: &LogEntry| told.lock().unwrap().push(entry.step.unwrap().0));
    let options = UploaderOptions { on_durable: Some(on_durable), ..UploaderOptions::default() };
    let uploader = Uploader::start(writer, &Handle::current(), options);
    let uploader = on_thread(move || {
        let start = Instant::now();
        for step in 1..=50 {
            uploader.submit(snapshot(step, 1)).unwrap();
        }
        // One upload takes five delayed writes; fifty would take ten seconds.
        assert!(start.elapsed() < Duration::from_millis(200), "submit waited: {:?}", start.elapsed());
        uploader.wait_idle(LIMIT).unwrap();
        uploader
    })
    .await;
    let status = uploader.status();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.last(), Some(&50));
    assert!(seen.len() <= 3, "{seen:?}");
    assert_eq!(status.coalesced as usize + seen.len(), 50);
    assert_eq!(
        (status.submitted, status.durable, uploader.durable_step()),
        (Some(Step(50)), Some(Step(50)), Some(Step(50)))
    );
    assert_eq!(backend.task().newest().await.unwrap().unwrap().step, Some(Step(50)));
}

#[tokio::test]
async fn a_store_that_comes_back_gets_the_step() {
    let fault = PutFault { nth: 2, times: 30, status: 503, applied: false };
    let backend = Backend::s3(S3Options { put_fault: Some(fault), ..S3Options::default() }).await;
    let writer = backend.task().fence(fence(1, 1)).await.unwrap();
    let options = UploaderOptions { longest_pause: Some(Duration::from_millis(50)), ..UploaderOptions::default() };
    let uploader = Uploader::start(writer, &Handle::current(), options);
    let uploader = on_thread(move || {
        uploader.submit(snapshot(1, 1)).unwrap();
        let error = uploader.wait_idle(Duration::from_millis(10)).expect_err("not yet");
        assert_eq!(error.code(), code::STORE_UNREACHABLE);
        uploader.wait_durable(Step(1), Duration::from_secs(60)).unwrap();
        uploader
    })
    .await;
    assert_eq!(uploader.status().trouble, None);
    assert_eq!(backend.task().entries().await.unwrap().len(), 2);
}

#[tokio::test]
async fn being_fenced_reaches_the_training_thread() {
    let backend = Backend::folder();
    let writer = backend.task().fence(fence(1, 1)).await.unwrap();
    backend.task().fence(fence(1, 2)).await.unwrap();
    let uploader = Uploader::start(writer, &Handle::current(), UploaderOptions::default());
    on_thread(move || {
        uploader.submit(snapshot(1, 1)).unwrap();
        assert_eq!(uploader.wait_idle(LIMIT).expect_err("fenced").code(), code::STORE_FENCED);
        assert_eq!(uploader.submit(snapshot(2, 1)).expect_err("still").code(), code::STORE_FENCED);
    })
    .await;
    assert_eq!(backend.task().newest().await.unwrap(), None);
}

#[tokio::test]
async fn retention_runs_behind_the_uploads() {
    let backend = Backend::folder();
    let writer = backend.task().fence(fence(1, 1)).await.unwrap();
    let retention = Some(Retention { last: 2, best: None, min_age: Duration::ZERO });
    let uploader = Uploader::start(writer, &Handle::current(), UploaderOptions { retention, ..Default::default() });
    on_thread(move || {
        for step in 1..=5 {
            uploader.submit(snapshot(step, 1)).unwrap();
            uploader.wait_idle(LIMIT).unwrap();
        }
    })
    .await;
    let steps = backend.task().steps().await.unwrap();
    assert_eq!(steps.iter().map(|entry| entry.step.unwrap().0).collect::<Vec<_>>(), [4, 5]);
}
