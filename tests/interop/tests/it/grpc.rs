//! A Python client, generated from `proto/`, submits, watches and cancels a job.

use std::process::Command;
use std::time::Duration;

use pleach_testkit::process::{Process, binary};
use serde_json::json;

use crate::support::{llama_job, python, root};

#[test]
fn a_generated_client_submits_watches_and_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("pleach").unwrap());
    command.args(["coordinator", "--listen", "127.0.0.1:0", "--http", "off", "--state", "memory"]);
    let coordinator = Process::start("coordinator", command).unwrap();
    let url = coordinator.wait_for("^http://", Duration::from_secs(30)).unwrap();
    let workers: Vec<Process> = ["worker-0", "worker-1"]
        .map(|name| {
            let mut command = Command::new(binary("pleach-worker").unwrap());
            command.args(["--coordinator", &url, "--name", name, "--threads", "1"]);
            Process::start(name, command).unwrap()
        })
        .into();

    let store = folder.path().join("store");
    let job = llama_job(folder.path(), "interop-grpc", &store.display().to_string(), 100_000);
    let address = url.trim_start_matches("http://");
    let protos = root().join("proto").display().to_string();
    let found = python("grpc_job.py", &[address, &protos, &job.display().to_string()], &[]);
    let all = || workers.iter().map(Process::text).collect::<Vec<_>>().join("\n---\n");

    assert_eq!(found["created"], json!([true, false]), "the second submission is the same job: {found}");
    assert_eq!(found["refused"], json!({"status": "INVALID_ARGUMENT", "pleach-code": "PL0102"}), "{found}");
    assert_eq!(found["state"], "JOB_STATE_CANCELLED", "{found}\n{}", all());
    assert!(found["steps"].as_array().unwrap().len() >= 2, "{found}");
    assert_eq!(found["ordered"], true, "{found}");
    assert_eq!(found["listed"], json!(["interop-grpc"]));
    let states = found["states"].as_array().unwrap();
    assert!(states.contains(&json!("JOB_STATE_RUNNING")), "{found}");
    // The step at which it stopped is in the store.
    assert_eq!(found["durable_step"], found["step"], "{found}");
    assert!(store.join("default/interop-grpc/ids/log").is_dir());
}
