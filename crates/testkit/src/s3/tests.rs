use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};

use super::*;

fn client(server: &S3Server, secret: &str) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(server.bucket())
        .with_access_key_id(server.access_key())
        .with_secret_access_key(secret)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .unwrap()
}

async fn create(client: &AmazonS3, key: &str, bytes: Vec<u8>) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    client.put_opts(&Path::from(key), bytes.into(), options).await.map(|_| ())
}

/// Without the lock of `guard` several of these win.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_racing_creates_exactly_one_wins() {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let client = Arc::new(client(&server, server.secret_key()));
    for round in 0..3 {
        let key = format!("round/{round}");
        let racers = (0..100_u32).map(|racer| {
            let (client, key) = (Arc::clone(&client), key.clone());
            tokio::spawn(
                async move { (racer, create(&client, &key, racer.to_string().into_bytes().repeat(9_000)).await) },
            )
        });
        let results = futures::future::join_all(racers).await;
        let mut winners = Vec::new();
        for result in results {
            match result.unwrap() {
                (racer, Ok(())) => winners.push(racer),
                (_, Err(Error::AlreadyExists { .. })) => {}
                (racer, Err(error)) => panic!("racer {racer}: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?} all won");
        let stored = client.get(&Path::from(key)).await.unwrap().bytes().await.unwrap();
        assert_eq!(stored, winners[0].to_string().into_bytes().repeat(9_000));
    }
}

#[tokio::test]
async fn wrong_secrets_are_refused() {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let error = create(&client(&server, "wrong"), "k", vec![1]).await.expect_err("refused");
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
}

#[tokio::test]
async fn faults_come_when_asked_for() {
    let fault = PutFault { nth: 2, times: 2, status: 503, applied: false };
    let server = S3Server::start(S3Options { put_fault: Some(fault), ..S3Options::default() }).await.unwrap();
    let client = client(&server, server.secret_key());
    let mut outcomes = Vec::new();
    for n in 0..4 {
        outcomes.push(create(&client, &format!("k{n}"), vec![n]).await.is_ok());
    }
    assert_eq!(outcomes, [true, false, false, true]);
    assert_eq!(server.puts(), 4);
    assert!(matches!(client.get(&Path::from("k1")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_lost_answer_leaves_the_object() {
    let fault = PutFault { nth: 1, times: 1, status: 500, applied: true };
    let server = S3Server::start(S3Options { put_fault: Some(fault), ..S3Options::default() }).await.unwrap();
    let client = client(&server, server.secret_key());
    create(&client, "k", vec![7]).await.expect_err("the answer is lost");
    assert_eq!(client.get(&Path::from("k")).await.unwrap().bytes().await.unwrap(), vec![7]);
}

#[tokio::test]
async fn conditions_can_be_ignored() {
    let server = S3Server::start(S3Options { ignore_conditions: true, ..S3Options::default() }).await.unwrap();
    let client = client(&server, server.secret_key());
    create(&client, "k", vec![1]).await.unwrap();
    create(&client, "k", vec![2]).await.unwrap();
    assert_eq!(std::fs::read(server.root().join(server.bucket()).join("k")).unwrap(), [2]);
}

#[tokio::test]
async fn trouble_comes_and_goes_while_the_server_runs() {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let client = client(&server, server.secret_key());
    let faults = server.faults();
    faults.set(Trouble::Errors { percent: 100, status: 503 });
    assert!(create(&client, "a", b"x".to_vec()).await.is_err());
    assert!(client.get(&Path::from("a")).await.is_err());
    faults.set(Trouble::Cut { after: 10_000 });
    assert!(create(&client, "big", vec![1; 200_000]).await.is_err());
    assert!(!server.root().join(server.bucket()).join("big").exists(), "half an upload is seen");
    assert!(faults.hit() >= 3, "{}", faults.hit());
    faults.set(Trouble::Slow(Duration::from_millis(20)));
    create(&client, "slow", b"x".to_vec()).await.unwrap();
    faults.set(Trouble::None);
    create(&client, "big", vec![1; 200_000]).await.unwrap();
}
