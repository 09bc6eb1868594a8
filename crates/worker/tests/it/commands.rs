//! The subcommands as people run them: exit codes, standard output, standard error.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity").join(name)
}

fn run(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach-worker"));
    command.args(args.iter().map(|arg| arg.as_ref()));
    command.output().unwrap()
}

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"))
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn diff_ends_with_what_it_found() {
    let (a, b) = (case("llama-lora").join("adapter"), case("llama-lora").join("trained"));
    let same = run(&[&"diff", &a, &a]);
    assert_eq!(same.status.code(), Some(0), "{}", stderr(&same));
    assert!(String::from_utf8_lossy(&same.stdout).starts_with("TENSOR"));
    let other = run(&[&"diff", &a, &b, &"--changed", &"-o", &"json"]);
    assert_eq!(other.status.code(), Some(1), "{}", stderr(&other));
    let rows = json(&other)["tensors"].as_array().unwrap().clone();
    assert!(
        rows.len() > 20 && rows.iter().all(|row| row["state"] == "changed" && row["distance"].as_f64() > Some(0.0))
    );
    let none = run(&[&"diff", &a, &"/nowhere"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("error: /nowhere: neither an adapter folder"), "{}", stderr(&none));
    assert!(stderr(&none).contains("hint: ") && stderr(&none).contains("see: pleach explain PL0404"));
}

#[test]
fn merge_writes_a_model_once() {
    let (case, folder) = (case("llama-lora"), tempfile::tempdir().unwrap());
    let (adapter, base, to) = (case.join("adapter"), case.join("model"), folder.path().join("merged"));
    let merged = run(&[&"merge", &adapter, &"--base", &base, &"--to", &to, &"-o", &"json"]);
    assert_eq!(merged.status.code(), Some(0), "{}", stderr(&merged));
    assert_eq!(json(&merged)["written"]["class"], "LlamaForCausalLM");
    assert!(to.join("config.json").is_file() && to.join("model.safetensors").is_file());
    let again = run(&[&"merge", &adapter, &"--base", &base, &"--to", &to]);
    assert!(again.status.code() == Some(2) && stderr(&again).contains("is not empty"), "{}", stderr(&again));
    let back = folder.path().join("back");
    let unmerged = run(&[&"unmerge", &to, &"--adapter", &adapter, &"--to", &back]);
    assert_eq!(unmerged.status.code(), Some(0), "{}", stderr(&unmerged));
    let near = run(&[&"diff", &back.join("model.safetensors"), &base.join("model.safetensors"), &"--atol", &"1e-6"]);
    assert_eq!(near.status.code(), Some(0), "{}", String::from_utf8_lossy(&near.stdout));
}

#[test]
fn an_imported_adapter_is_bound_to_its_base() {
    let (case, folder) = (case("llama-lora"), tempfile::tempdir().unwrap());
    let (adapter, to) = (case.join("adapter"), folder.path().join("imported"));
    let imported = run(&[&"import", &adapter, &"--to", &to, &"-o", &"json"]);
    assert_eq!(imported.status.code(), Some(0), "the adapter names its base: {}", stderr(&imported));
    assert_eq!((&json(&imported)["method"], &json(&imported)["params"]), (&"lora".into(), &9344.into()));
    let manifest: Value = serde_json::from_slice(&std::fs::read(to.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["meta"]["base_fingerprint"], json(&imported)["base_fingerprint"]);
    assert_eq!(run(&[&"import", &to, &"--base", &case.join("model")]).status.code(), Some(0));

    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(case.join("model").join(file), other.join(file)).unwrap();
    }
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let refused = run(&[&"import", &to, &"--base", &other]);
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains("PL0405"), "{}", stderr(&refused));
}

#[test]
fn export_says_what_it_needs() {
    let (case, folder) = (case("llama-lora"), tempfile::tempdir().unwrap());
    let (adapter, to) = (case.join("adapter"), folder.path().join("x"));
    let merged = run(&[&"export", &adapter, &"--format", &"merged", &"--to", &to]);
    assert!(merged.status.code() == Some(2) && stderr(&merged).contains("--base"), "{}", stderr(&merged));
    let peft = run(&[&"export", &adapter, &"--format", &"peft", &"--to", &to, &"--base-name", &"org/m"]);
    assert_eq!(peft.status.code(), Some(0), "{}", stderr(&peft));
    let config: Value = serde_json::from_slice(&std::fs::read(to.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/m");
}
