//! boto3 reads a checkpoint from an S3 server, and every hash of the manifest matches.

use std::process::Command;
use std::time::Duration;

use pleach_testkit::process::{Process, binary};
use serde_json::{Value, json};

use crate::support::{llama_job, python, train};

#[test]
fn boto3_pulls_what_a_job_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (key, secret) = ("interop-key", "interop-secret");
    let mut command = Command::new(binary("pleach-s3d").unwrap());
    command.args(["--port", "0", "--bucket", "checkpoints", "--access-key", key, "--secret-key", secret, "--root"]);
    command.arg(folder.path().join("s3"));
    std::fs::create_dir(folder.path().join("s3")).unwrap();
    let server = Process::start("pleach-s3d", command).unwrap();
    let line = server.wait_for(r#""endpoint""#, Duration::from_secs(20)).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let endpoint = line["endpoint"].as_str().unwrap();

    let env = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "us-east-1"),
    ];
    let job = llama_job(folder.path(), "interop-s3", "s3://checkpoints/adapters", 3);
    let task = train(folder.path(), &job, &env);
    assert_eq!(task["durable_step"], 3, "{task}");

    let to = folder.path().join("pulled");
    let prefix = "adapters/default/interop-s3/ids";
    let found = python("s3_pull.py", &[endpoint, "checkpoints", prefix, &to.display().to_string()], &env);
    assert_eq!(found["step"], 3, "{found}");
    let files = json!(["adapter_config.json", "adapter_model.safetensors", "trainer_state.safetensors"]);
    assert_eq!(found["files"], files);
    let log: Vec<u64> = serde_json::from_value(found["log"].clone()).unwrap();
    assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>(), "the log has no gap");
    // What another program fetched is an adapter that Pleach itself takes.
    pleach_methods::import(&to).unwrap();
}
