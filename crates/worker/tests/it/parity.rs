//! `pleach parity` as it is called: what it prints, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity").join(name)
}

/// Exit code, standard output, standard error.
fn parity(arguments: &[&Path]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach-worker"));
    let output = command.arg("parity").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A copy of a case that is then changed.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let to = folder.join(name);
    copy(&fixture("bert-lora"), &to);
    let path = to.join("case.json");
    let mut case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut case);
    std::fs::write(&path, case.to_string()).unwrap();
    to
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_case_is_one_row_and_files_are_passed_over() {
    let (code, out, err) = parity(&[&fixture("README.md"), &fixture("bert-lora"), &fixture("llama-lora")]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("bert-lora") && out.contains("llama-lora") && out.contains("2 of 2 within"), "{out}");
    assert!(err.contains("README.md is a file"), "{err}");
}

#[test]
fn what_is_outside_or_unreadable_is_told_by_the_exit_code_and_the_others_still_run() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = changed(folder.path(), "narrow", |case| case["tolerance"]["loss_rel"] = json!(1e-12));
    let (code, out, err) = parity(&[&narrow, &fixture("bert-lora")]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("outside") && out.contains("1 of 2 within") && err.contains("losses off by"), "{out}{err}");

    let unknown = changed(folder.path(), "unknown", |case| case["tolerance"]["logits_rel"] = json!(1.0));
    let module = changed(folder.path(), "module", |case| case["kind"] = json!("snnk"));
    let (code, out, err) = parity(&[&unknown, &module, &folder.path().join("nowhere"), &fixture("bert-lora")]);
    assert_eq!(code, 2, "{out}{err}");
    assert!(out.contains("1 of 4 within tolerance, 3 not read"), "{out}");
    assert!(err.contains("logits_rel") && err.contains("`page`") && err.contains("nowhere"), "{err}");
}

#[test]
fn json_holds_every_measure() {
    let (code, out, err) = parity(&[Path::new("-o"), Path::new("json"), &fixture("bert-lora")]);
    assert_eq!(code, 0, "{err}");
    let all: Value = serde_json::from_str(&out).unwrap();
    let case = &all["cases"][0];
    assert_eq!((all["within"].as_u64(), case["steps"].as_u64()), (Some(1), Some(12)));
    for measure in ["base_logits", "adapted_logits", "losses", "grad_norm", "trained"] {
        let found = case[measure]["deviation"].as_f64().unwrap();
        assert!(found <= case[measure]["tolerance"].as_f64().unwrap(), "{measure}: {found}");
    }
    assert!(case["trained"]["at"].as_str().unwrap().contains("base_model.model."));
}
