//! The store makes no difference, and one that cannot be trusted is refused.

use pleach_testkit::s3::{S3Options, S3Server};
use tokio::runtime::Runtime;

use crate::support::{Bench, LONG, adapter};

fn server(options: S3Options) -> (Runtime, S3Server) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(S3Server::start(options)).unwrap();
    (runtime, server)
}

#[test]
fn a_folder_and_s3_hold_the_same_bytes() {
    let bench = Bench::new();
    let folder = bench.trained(&bench.job("same", &bench.spec(10)), &[]);

    let (_runtime, s3) = server(S3Options::default());
    let mut spec = bench.spec(10);
    spec["checkpoint"]["store"] = format!("s3://{}/adapters", s3.bucket()).into();
    spec["checkpoint"]["endpoint"] = s3.endpoint().into();
    let remote = bench.trained(&bench.job("same-s3", &spec), &s3.env());

    let bucket = s3.root().join(s3.bucket()).join("adapters");
    assert!(adapter(&bench.path("store"), &folder) == adapter(&bucket, &remote));
    for name in ["adapter_config.json", "trainer_state.safetensors"] {
        let read = |root: &std::path::Path, job: &serde_json::Value| {
            std::fs::read(root.join(job["tasks"][0]["durable_folder"].as_str().unwrap()).join(name)).unwrap()
        };
        assert!(read(&bench.path("store"), &folder) == read(&bucket, &remote), "{name} differs");
    }
}

/// Trains against a server and returns the error's text; the command must fail.
fn refused(bench: &Bench, store: &str, endpoint: &str, env: &[(&str, String)]) -> String {
    let mut spec = bench.spec(10);
    spec["checkpoint"]["store"] = store.into();
    if !endpoint.is_empty() {
        spec["checkpoint"]["endpoint"] = endpoint.into();
    }
    let mut train = bench.train(&bench.job("refused", &spec), env);
    let status = train.wait(LONG).unwrap();
    assert!(!status.success(), "{}", train.text());
    train.text()
}

#[test]
fn a_store_without_create_only_writes_is_refused() {
    let (_runtime, s3) = server(S3Options { ignore_conditions: true, ..S3Options::default() });
    let text = refused(&Bench::new(), &format!("s3://{}/x", s3.bucket()), &s3.endpoint(), &s3.env());
    assert!(text.contains("PL0603"), "{text}");
}

#[test]
fn wrong_credentials_are_refused() {
    let (_runtime, s3) = server(S3Options::default());
    let mut env = s3.env();
    for (name, value) in &mut env {
        if *name == "AWS_SECRET_ACCESS_KEY" {
            *value = "not-the-secret".to_owned();
        }
    }
    let text = refused(&Bench::new(), &format!("s3://{}/x", s3.bucket()), &s3.endpoint(), &env);
    assert!(text.contains("PL0602"), "{text}");
}

#[test]
fn an_unreachable_store_is_named() {
    let env = [("AWS_ACCESS_KEY_ID", "k".to_owned()), ("AWS_SECRET_ACCESS_KEY", "s".to_owned())];
    let text = refused(&Bench::new(), "s3://bucket/x", "http://127.0.0.1:9", &env);
    assert!(text.contains("PL0601"), "{text}");
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    // Nobody, not even root, makes folders there.
    let text = refused(&Bench::new(), "/sys/pleach-cannot-be-here", "", &[]);
    assert!(text.contains("PL0602") || text.contains("PL0601"), "{text}");
}
