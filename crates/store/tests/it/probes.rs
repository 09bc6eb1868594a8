//! What is found out at the start.

use std::net::TcpListener;
use std::time::Duration;

use pleach_base::code;
use pleach_store::{Store, StoreOptions};
use pleach_testkit::s3::{S3Options, S3Server};
use rstest::rstest;

use crate::backend::{Backend, Kind, open_s3};

#[rstest]
#[tokio::test]
async fn a_good_store_passes_and_nothing_is_left(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    backend.store.probe().await.unwrap();
    let left: Vec<_> = std::fs::read_dir(&backend.root).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_store_that_ignores_create_only_is_refused() {
    let backend = Backend::s3(S3Options { ignore_conditions: true, ..S3Options::default() }).await;
    let error = backend.store.probe().await.expect_err("two creates were accepted");
    assert_eq!(error.code(), code::STORE_NO_CREATE_ONLY);
    assert!(error.hint_text().is_some());
}

#[tokio::test]
async fn wrong_credentials_are_named() {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let error = open_s3(&server, "wrong", None).unwrap().probe().await.expect_err("wrong secret");
    assert_eq!(error.code(), code::STORE_DENIED, "{error:?}");
    let mut env: std::collections::BTreeMap<_, _> =
        server.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    env.insert("AWS_ACCESS_KEY_ID".to_owned(), "nobody".to_owned());
    let options = StoreOptions { env: Some(env), ..StoreOptions::default() };
    let error = Store::open("s3://pleach/x", &options).unwrap().probe().await.expect_err("wrong key");
    assert_eq!(error.code(), code::STORE_DENIED, "{error:?}");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    let env = server.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = StoreOptions { env: Some(env), ..StoreOptions::default() };
    let error = Store::open("s3://nowhere/x", &options).unwrap().probe().await.expect_err("no bucket");
    assert_eq!(error.code(), code::STORE_URL, "{error:?}");
}

fn s3_at(endpoint: String) -> Store {
    let env = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = StoreOptions { endpoint: Some(endpoint), env: Some(env), ..StoreOptions::default() };
    Store::open("s3://bucket/x", &options).unwrap()
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_is_found_out_soon() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let probe = s3_at(format!("http://{free}"));
    let error = tokio::time::timeout(Duration::from_secs(6), probe.probe()).await.expect("soon").expect_err("nobody");
    assert_eq!(error.code(), code::STORE_UNREACHABLE, "{error:?}");
    assert_eq!(error.kind().exit_code(), 3);
}

/// It accepts the connection and never says a word.
#[tokio::test]
async fn an_endpoint_that_is_silent_is_found_out_soon() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let probe = s3_at(format!("http://{}", silent.local_addr().unwrap()));
    let error = tokio::time::timeout(Duration::from_secs(12), probe.probe()).await.expect("soon").expect_err("silent");
    assert_eq!(error.code(), code::STORE_UNREACHABLE, "{error:?}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere but into the kernel's own file systems.
    let root_writes = std::fs::create_dir(folder.path().join("x")).is_ok();
    let place = if root_writes { std::path::Path::new("/sys/kernel") } else { folder.path() };
    let store = Store::open(place.to_str().unwrap(), &StoreOptions::default()).unwrap();
    let error = store.probe().await.expect_err("read-only");
    assert_eq!(error.code(), code::STORE_DENIED, "{error:?}");
}

#[tokio::test]
async fn a_file_on_the_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let below = folder.path().join("file/below");
    let store = Store::open(below.to_str().unwrap(), &StoreOptions::default()).unwrap();
    let error = store.probe().await.expect_err("a file is no folder");
    assert_eq!(error.code(), code::STORE_URL, "{error:?}");
}
