//! What needs no coordinator.

use std::io::Write;
use std::process::Stdio;

use crate::{pleach, run};

/// Both streams and the code, for snapshots.
fn all(args: &[&str]) -> String {
    let (code, out, err) = run(&mut pleach(args));
    format!("exit {code}\n--- stdout\n{out}--- stderr\n{err}")
}

#[test]
fn help_lists_the_commands_and_the_exit_codes() {
    insta::assert_snapshot!(all(&["--help"]));
}

#[test]
fn help_of_submit_tells_every_option() {
    insta::assert_snapshot!(all(&["submit", "--help"]));
}

#[test]
fn without_arguments_help_goes_to_standard_error_as_bad_input() {
    let (code, out, err) = run(&mut pleach(&[]));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("Usage: pleach"));
}

#[test]
fn errors_carry_hint_and_page_and_leave_standard_output_alone() {
    let lines = [
        all(&["submit", "no-such-file.yaml"]),
        all(&["submit", "docs/jobs/lora-retrieval.yaml", "--set", "spec.train.learning_rate=1"]),
        all(&["submit", "docs/jobs/lora-retrieval.yaml", "--set", "spec.train"]),
        all(&["explain", "PL0120"]),
        all(&["trian"]),
        all(&["pull", "demo", "--to", "x"]),
        all(&["get", "--address", "nowhere"]),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_coordinator_that_is_not_there_ends_with_three() {
    // Port 1 of this machine is nobody's.
    let text = all(&["get", "--address", "http://127.0.0.1:1"]);
    assert!(text.starts_with("exit 3\n"), "{text}");
    assert!(text.contains("no coordinator answers at http://127.0.0.1:1"), "{text}");
    assert!(text.contains("hint: start one with `pleach coordinator`") && text.contains("see: pleach explain PL0701"));
}

#[test]
fn a_bad_job_is_refused_before_anybody_is_called() {
    let set = "spec.workers.min=9";
    let (code, _, err) =
        run(&mut pleach(&["submit", "docs/jobs/lora-retrieval.yaml", "--set", set, "--address", "http://127.0.0.1:1"]));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("spec.workers.max: 2 is below workers.min = 9"), "{err}");
}

#[test]
fn explain_prints_the_page_of_a_code_in_any_case() {
    let (code, out, err) = run(&mut pleach(&["explain", "pl0102"]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("# PL0102: "), "{out}");
}

#[test]
fn the_schema_is_json_and_names_the_version() {
    let (code, out, _) = run(&mut pleach(&["schema"]));
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(schema["title"], "Job");
    assert!(schema["$defs"]["TrainSpec"]["properties"]["global_batch"].is_object());
}

#[test]
fn version_has_forms_for_people_and_scripts() {
    let (_, table, _) = run(&mut pleach(&["version"]));
    assert_eq!(table, concat!("pleach ", env!("CARGO_PKG_VERSION"), "\n"));
    let (_, json, _) = run(&mut pleach(&["version", "-o", "json"]));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["version"], env!("CARGO_PKG_VERSION"));
    let (_, yaml, _) = run(&mut pleach(&["version", "-o", "yaml"]));
    assert!(yaml.contains(concat!("version: \"", env!("CARGO_PKG_VERSION"), "\"\n")), "{yaml}");
}

#[test]
fn completions_exist_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(&mut pleach(&["completions", shell]));
        assert_eq!(code, 0);
        assert!(out.contains("describe") && out.contains("pleach"), "{shell}");
    }
}

#[test]
fn colour_is_for_terminals_only() {
    let (_, _, err) = run(pleach(&["explain", "PL0120"]).env("CLICOLOR_FORCE", "1"));
    assert!(err.contains("\u{1b}["), "forced colour is there: {err:?}");
    let (_, _, err) = run(pleach(&["explain", "PL0120"]).env("NO_COLOR", "1"));
    assert!(!err.contains('\u{1b}'), "{err:?}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = pleach(&["schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_job_may_come_from_standard_input_and_its_errors_say_so() {
    let mut child = pleach(&["submit", "-", "--address", "http://127.0.0.1:1"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(b"apiVersion: pleach.dev/v1\nkind: Job\nspce: {}\n").expect("written");
    let ended = child.wait_with_output().expect("ends");
    let err = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2));
    assert!(err.contains("stdin:3:1: spce: unknown key\nhint: did you mean `spec`?"), "{err}");
}

#[test]
fn handing_over_runs_the_worker_with_its_arguments_and_the_connection() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let script = folder.path().join("pleach-worker");
    std::fs::write(&script, "#!/bin/sh\necho \"$PLEACH_ADDRESS $PLEACH_TOKEN $@\"; exit 5\n").expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let hand = |args: &[&str]| run(pleach(args).env("PLEACH_WORKER_BINARY", &script));
    let (code, out, _) = hand(&["--address", "http://h:1", "--token", "t", "worker", "--device", "cpu", "--help"]);
    assert_eq!((code, out.as_str()), (5, "http://h:1 t --device cpu --help\n"));
    let (code, out, _) = hand(&["merge", "--to", "x"]);
    assert_eq!((code, out.as_str()), (5, "  merge --to x\n"));
    let (code, _, err) = run(pleach(&["merge"]).env("PLEACH_WORKER_BINARY", "/nowhere/pleach-worker"));
    assert_eq!(code, 1);
    assert!(err.contains("PL0902"), "{err}");
}

#[test]
fn every_command_is_documented() {
    let page = include_str!("../../../../docs/cli.md");
    let (_, help, _) = run(&mut pleach(&["--help"]));
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list");
    let names: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 17, "{names:?}");
    for name in names.iter().filter(|name| **name != "help") {
        assert!(page.contains(&format!("`pleach {name}")), "docs/cli.md lacks `pleach {name}`");
    }
}
