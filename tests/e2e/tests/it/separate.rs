//! A cluster on one machine: coordinator and workers as processes of their own, driven by the command.

use std::path::Path;
use std::process::Command;

use pleach_testkit::process::{Process, binary, free_port};

use crate::support::{Bench, LONG, finished, pleach};

/// A coordinator with its address.
fn coordinator(bench: &Bench) -> (Process, String) {
    let (grpc, http) = (free_port().unwrap(), free_port().unwrap());
    let mut command = pleach();
    command.args(["coordinator", "--listen", &format!("127.0.0.1:{grpc}")]);
    command.args(["--http", &format!("127.0.0.1:{http}"), "--state"]).arg(bench.path("coordinator.redb"));
    let process = Process::start("coordinator", command).unwrap();
    process.wait_for(&grpc.to_string(), LONG).unwrap();
    (process, format!("http://127.0.0.1:{grpc}"))
}

fn worker(address: &str, name: &str) -> Process {
    let mut command = Command::new(binary("pleach-worker").unwrap());
    command.args(["--coordinator", address, "--name", name, "--threads", "1"]);
    Process::start(name, command).unwrap()
}

fn call(address: &str, args: &[&str], paths: &[&Path]) -> Process {
    let mut command = pleach();
    command.args(args).args(paths).env("PLEACH_ADDRESS", address);
    Process::start(args[0], command).unwrap()
}

#[test]
fn a_job_is_submitted_followed_pulled_and_survives_a_death() {
    let bench = Bench::new();
    let (mut coordinator, address) = coordinator(&bench);
    let mut first = worker(&address, "w0");
    let mut second = worker(&address, "w1");

    let job = bench.job("cluster", &bench.spec(150));
    let submit = call(&address, &["submit", "-o", "json"], &[&job]);
    submit.wait_for("step 8/150", LONG).unwrap();
    second.kill().unwrap();
    let ended = finished(submit);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert!(ended["generation"].as_u64().unwrap() >= 2, "{ended}");

    // The same job again is the same job; another one under its name is refused.
    let again = finished(call(&address, &["submit", "-o", "json"], &[&job]));
    assert_eq!(again["created_unix_ms"], ended["created_unix_ms"]);
    let other = bench.job("cluster", &bench.spec(151));
    let mut conflict = call(&address, &["submit"], &[&other]);
    assert!(!conflict.wait(LONG).unwrap().success());
    assert!(conflict.text().contains("PL0703"), "{}", conflict.text());

    let target = bench.path("pulled");
    let mut pull = call(&address, &["pull", "cluster/words", "--to"], &[&target]);
    assert!(pull.wait(LONG).unwrap().success(), "{}", pull.text());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(target.join(name).exists(), "{name}: {}", pull.text());
    }

    first.terminate().unwrap();
    assert!(first.wait(LONG).unwrap().success(), "{}", first.text());
    coordinator.terminate().unwrap();
    assert!(coordinator.wait(LONG).unwrap().success(), "{}", coordinator.text());
}

#[test]
fn a_taken_port_and_an_absent_coordinator_have_their_codes() {
    let bench = Bench::new();
    let (_coordinator, address) = coordinator(&bench);
    let mut command = pleach();
    command.args(["coordinator", "--listen", address.trim_start_matches("http://"), "--state"]);
    command.arg(bench.path("other.redb"));
    let mut twin = Process::start("twin", command).unwrap();
    assert!(!twin.wait(LONG).unwrap().success());
    assert!(twin.text().contains("PL0702"), "{}", twin.text());

    let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
    let mut get = call(&nobody, &["get"], &[]);
    assert_eq!(get.wait(LONG).unwrap().code(), Some(3), "{}", get.text());
    assert!(get.text().contains("PL0701"), "{}", get.text());
}

#[test]
fn what_a_worker_writes_to_a_file_has_no_colour() {
    let mut command = Command::new(binary("pleach-worker").unwrap());
    command.args(["--coordinator", "http://127.0.0.1:9", "--name", "plain", "--device", "tpu:0"]);
    let mut worker = Process::start("worker", command).unwrap();
    assert!(!worker.wait(LONG).unwrap().success());
    assert!(worker.text().contains("PL0103"), "{}", worker.text());
    assert!(!worker.text().contains('\u{1b}'), "{}", worker.text());
}
