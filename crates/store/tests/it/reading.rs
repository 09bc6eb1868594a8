//! Readers believe nothing, and pull all or nothing.

use std::path::Path;

use pleach_base::{Step, code};
use pleach_store::{Gate, MANIFEST, Manifest};
use rstest::rstest;
use sha2::{Digest, Sha256};

use crate::backend::{Backend, Kind, fence, snapshot};

const STEP: &str = "acme/desk/tone/steps/00000001-g0001";

fn sorted_names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[rstest]
#[case::longer("adapter_model.safetensors", |bytes: &mut Vec<u8>| bytes.push(0))]
#[case::shorter("adapter_model.safetensors", |bytes: &mut Vec<u8>| bytes.truncate(10))]
#[case::changed("trainer_state.safetensors", |bytes: &mut Vec<u8>| bytes[5] ^= 1)]
#[case::config("adapter_config.json", |bytes: &mut Vec<u8>| bytes[2] ^= 1)]
#[case::manifest("manifest.json", |bytes: &mut Vec<u8>| { let last = bytes.len() - 1; bytes[last] = b' '; })]
#[tokio::test]
async fn damage_is_found_and_named(
    #[case] name: &str,
    #[case] damage: fn(&mut Vec<u8>),
    #[values(Kind::Folder, Kind::S3)] kind: Kind,
) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let entry = task.fence(fence(1, 1)).await.unwrap().commit(&snapshot(1, 1)).await.unwrap();
    let path = backend.root.join(STEP).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    damage(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join("adapter_config.json"), "old").unwrap();
    for error in [
        task.read(&entry).await.map(|_| ()).expect_err("damaged"),
        task.pull(&entry, to.path()).await.map(|_| ()).expect_err("damaged"),
    ] {
        assert_eq!(error.code(), code::STORE_CORRUPT, "{error:?}");
        assert!(error.message().contains(&format!("00000001-g0001/{name}")), "{error}");
    }
    assert_eq!(sorted_names(to.path()), ["adapter_config.json"], "nothing half pulled is left");
    assert_eq!(std::fs::read(to.path().join("adapter_config.json")).unwrap(), b"old");
}

#[rstest]
#[tokio::test]
async fn a_missing_object_is_named(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let entry = task.fence(fence(1, 1)).await.unwrap().commit(&snapshot(1, 1)).await.unwrap();
    std::fs::remove_file(backend.root.join(STEP).join("adapter_model.safetensors")).unwrap();
    let error = task.read(&entry).await.expect_err("missing");
    assert_eq!(error.code(), code::STORE_CORRUPT, "{error:?}");
    assert!(error.message().contains("adapter_model.safetensors"), "{error}");
}

#[tokio::test]
async fn a_gap_in_the_log_and_a_foreign_entry_are_found() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    for step in 1..=3 {
        writer.commit(&snapshot(step, 1)).await.unwrap();
    }
    let log = backend.root.join("acme/desk/tone/log");
    let entry = std::fs::read(log.join("0000000003.json")).unwrap();
    std::fs::remove_file(log.join("0000000003.json")).unwrap();
    let error = task.entries().await.expect_err("a gap");
    assert_eq!(error.code(), code::STORE_CORRUPT);
    assert!(error.message().contains("0000000003.json"), "{error}");
    std::fs::write(log.join("0000000003.json"), &entry).unwrap();
    std::fs::write(log.join("0000000005.json"), &entry).unwrap();
    assert_eq!(task.newest().await.expect_err("a copy").code(), code::STORE_CORRUPT);
}

#[rstest]
#[tokio::test]
async fn a_pulled_folder_is_the_step(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    let good = writer.commit(&snapshot(1, 1)).await.unwrap();
    let mut bad = snapshot(2, 1);
    bad.gate = Gate { publishable: false, findings: vec!["loss is NaN".to_owned()] };
    let newest = writer.commit(&bad).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    let into = to.path().join("a/b");
    let (entry, files) = task.pull_newest(&into).await.unwrap();
    assert_eq!(entry, good, "only what passed its gate is pulled");
    assert_eq!(task.newest().await.unwrap(), Some(newest), "resume takes whatever is newest");
    assert_eq!(
        sorted_names(&into),
        ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "trainer_state.safetensors"]
    );
    for file in files {
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!((bytes.len() as u64, hex::encode(Sha256::digest(&bytes))), (file.bytes, file.sha256));
    }
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(into.join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest, task.manifest(&good).await.unwrap());
    assert_eq!(good.bytes, manifest.files.iter().map(|file| file.bytes).sum::<u64>());
}

#[tokio::test]
async fn asking_for_what_is_not_there_says_what_is() {
    let backend = Backend::folder();
    let task = backend.task();
    let to = tempfile::tempdir().unwrap();
    assert_eq!(task.pull_newest(to.path()).await.expect_err("nothing").code(), code::CHECKPOINT_NONE);
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    writer.commit(&snapshot(4, 1)).await.unwrap();
    let error = task.find(Step(5)).await.expect_err("no such step");
    assert_eq!(error.code(), code::CHECKPOINT_NONE);
    assert!(error.hint_text().unwrap().contains("from 4 to 4"), "{error:?}");
    let fence_entry = task.entries().await.unwrap().remove(0);
    assert_eq!(task.read(&fence_entry).await.expect_err("a fence").code(), code::CHECKPOINT_NONE);
}

/// A manifest names files; a hostile one names files elsewhere. Its hash is right, so only the names give it away.
#[tokio::test]
async fn a_manifest_cannot_lead_out_of_its_folder() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut entry = task.fence(fence(1, 1)).await.unwrap().commit(&snapshot(1, 1)).await.unwrap();
    let path = backend.root.join(STEP).join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap().replace("adapter_config.json", "../../escaped");
    std::fs::write(&path, &text).unwrap();
    entry.manifest_sha256 = Some(hex::encode(Sha256::digest(text.as_bytes())));
    let to = tempfile::tempdir().unwrap();
    let error = task.pull(&entry, &to.path().join("x/y")).await.expect_err("hostile");
    assert_eq!(error.code(), code::STORE_CORRUPT);
    assert!(error.message().contains("not a plain file name"), "{error}");
}
