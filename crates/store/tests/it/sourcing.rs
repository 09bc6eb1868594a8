//! Objects that others wrote: listed, downloaded, and what is said when that fails.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use pleach_base::code;
use pleach_store::{Source, SourceObject, StoreOptions};
use pleach_testkit::s3::{S3Options, S3Server};

fn options(server: &S3Server) -> StoreOptions {
    let env = server.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    StoreOptions { env: Some(env), ..StoreOptions::default() }
}

fn put(server: &S3Server, key: &str, bytes: &[u8]) {
    let path = server.root().join(server.bucket()).join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

async fn served() -> (S3Server, Source) {
    let server = S3Server::start(S3Options::default()).await.unwrap();
    for key in ["rows/a.jsonl", "rows/deep/b #1%20.jsonl", "rowser/c.jsonl", "top.jsonl"] {
        put(&server, key, key.as_bytes());
    }
    let source = Source::open("s3://pleach/rows", &options(&server)).unwrap();
    (server, source)
}

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|found| found.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test]
async fn a_folder_an_object_and_nothing_are_told_apart() {
    let (_server, source) = served().await;
    for (url, keys) in [
        ("s3://pleach/rows", &["rows/a.jsonl", "rows/deep/b #1%20.jsonl"][..]),
        ("s3://pleach/rows/", &["rows/a.jsonl", "rows/deep/b #1%20.jsonl"]),
        ("s3://pleach/rows/a.jsonl", &["rows/a.jsonl"]),
        ("s3://pleach/row", &[]),
        ("s3://pleach/", &["rows/a.jsonl", "rows/deep/b #1%20.jsonl", "rowser/c.jsonl", "top.jsonl"]),
    ] {
        let mut found = source.list(url).await.unwrap();
        found.sort_by(|a, b| a.url.cmp(&b.url));
        let urls: Vec<_> = found.iter().map(|object| object.url.clone()).collect();
        assert_eq!(urls, keys.iter().map(|key| format!("s3://pleach/{key}")).collect::<Vec<_>>(), "{url}");
        assert!(found.iter().all(|object| object.bytes == object.url.len() as u64 - 12), "{found:?}");
    }
    assert!(source.holds("s3://pleach") && !source.holds("s3://pleach2/rows"));
    assert_eq!(source.list("s3://pleach/a//b").await.unwrap_err().code(), code::STORE_URL);
    assert_eq!(source.list("s3://other/rows").await.unwrap_err().code(), code::STORE_URL);
}

#[tokio::test]
async fn a_download_is_whole_or_not_there() {
    let (server, source) = served().await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy");
    let large: Vec<u8> = (0..(65 << 20) + 7).map(|at: u32| (at % 251) as u8).collect();
    for (key, bytes) in [("large", &large[..]), ("rows/deep/b #1%20.jsonl", b"rows/deep/b #1%20.jsonl"), ("none", b"")]
    {
        put(&server, key, bytes);
        let object = source.list(&format!("s3://pleach/{key}")).await.unwrap().remove(0);
        source.fetch(&object, &to).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes, "{key}");
        assert_eq!(files(folder.path()), ["copy"]);
    }
    std::fs::remove_file(&to).unwrap();
    let listed = source.list("s3://pleach/top.jsonl").await.unwrap().remove(0);
    let shorter = SourceObject { bytes: listed.bytes - 1, ..listed.clone() };
    let other = SourceObject { version: "etag \"another\"".to_owned(), ..listed.clone() };
    std::fs::remove_file(server.root().join("pleach/rows/a.jsonl")).unwrap();
    let gone = SourceObject { url: "s3://pleach/rows/a.jsonl".to_owned(), ..listed };
    for object in [shorter, other, gone] {
        let error = source.fetch(&object, &to).await.unwrap_err();
        assert_eq!(error.code(), code::STORE_CORRUPT, "{object:?}: {error:?}");
        assert!(error.message().starts_with(&object.url), "{error}");
        assert!(files(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn another_content_is_another_version() {
    let (server, source) = served().await;
    let version = async || source.list("s3://pleach/rows/a.jsonl").await.unwrap().remove(0).version;
    let before = version().await;
    assert_eq!(version().await, before);
    put(&server, "rows/a.jsonl", b"ROWS/a.jsonl");
    assert_ne!(version().await, before);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let (server, source) = served().await;
    let error = Source::open("gs://key:hush@bucket/x", &options(&server)).unwrap_err();
    assert_eq!(error.code(), code::STORE_URL);
    assert!(!error.chain().contains("hush"), "{error}");
    let nowhere = Source::open("s3://nowhere/x", &options(&server)).unwrap();
    assert_eq!(nowhere.list("s3://nowhere/x").await.unwrap_err().code(), code::STORE_URL);
    let mut wrong = options(&server);
    wrong.env.as_mut().unwrap().insert("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned());
    let denied = Source::open("s3://pleach/x", &wrong).unwrap();
    let error = denied.list("s3://pleach/x").await.unwrap_err();
    assert_eq!(error.code(), code::STORE_DENIED, "{error:?}");
    let object = source.list("s3://pleach/top.jsonl").await.unwrap().remove(0);
    let error = source.fetch(&object, Path::new("/no/such/folder/x")).await.unwrap_err();
    assert_eq!(error.code(), code::IO, "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_found_out_soon() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let env = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
    let env: BTreeMap<_, _> = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = StoreOptions { endpoint: Some(format!("http://{free}")), env: Some(env), ..StoreOptions::default() };
    let source = Source::open("s3://bucket/x", &options).unwrap();
    let listed = tokio::time::timeout(Duration::from_secs(10), source.list("s3://bucket/x")).await.expect("soon");
    let error = listed.unwrap_err();
    assert_eq!(error.code(), code::STORE_UNREACHABLE, "{error:?}");
}
