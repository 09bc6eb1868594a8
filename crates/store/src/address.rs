//! From the text of `spec.checkpoint.store` to an object store and a prefix.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use pleach_base::{Error, Result, ResultExt, code};

/// A connection that does not open in this time is not going to.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// One request, the upload of a whole file included.
const REQUEST_LIMIT: Duration = Duration::from_secs(300);
/// Repeats of one request and the time after which none is begun any more.
const RETRIES: usize = 4;
const RETRY_LIMIT: Duration = Duration::from_secs(30);

/// An opened address.
pub(crate) struct Opened {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    /// Without credentials.
    pub(crate) url: String,
    pub(crate) is_local: bool,
}

/// Opens `address`; `env` looks a variable up. Nothing is read or written yet.
pub(crate) fn open(
    address: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    env: &BTreeMap<String, String>,
) -> Result<Opened> {
    match address.split_once("://") {
        Some(("s3" | "s3a", _)) => s3(address, endpoint, region, env),
        Some(("file", _)) => {
            let path = Url::parse(address).ok().and_then(|url| url.to_file_path().ok());
            folder(address, &path.ok_or_else(|| bad(address, "not an absolute file URL"))?)
        }
        Some((scheme, _)) => Err(bad(address, &format!("`{scheme}` stores are not supported"))),
        None if address.trim().is_empty() => Err(bad(address, "the address is empty")),
        None => folder(address, std::path::Path::new(address)),
    }
}

fn bad(address: &str, why: &str) -> Error {
    code::STORE_URL
        .error(format!("store `{}`: {why}", without_userinfo(address)))
        .hint("a store is `s3://bucket/prefix`, `file:///folder` or a folder")
}

/// The address as it may be shown: whatever stands before an `@` of the host may be a secret.
fn without_userinfo(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://***@{}", &rest[at + 1..]),
        None => address.to_owned(),
    }
}

fn folder(address: &str, path: &std::path::Path) -> Result<Opened> {
    let path = std::path::absolute(path).map_err(|e| bad(address, "not a path").caused_by(e))?;
    if path.exists() && !path.is_dir() {
        return Err(bad(address, "it is a file, not a folder"));
    }
    let root = Path::from_absolute_path(&path).map_err(|e| bad(address, "not a usable path").caused_by(e))?;
    // Every write is flushed with its folder before it counts: a log entry must not outlive its blobs in a power cut.
    let objects = LocalFileSystem::new().with_fsync(true);
    Ok(Opened { objects: Arc::new(objects), root, url: path.display().to_string(), is_local: true })
}

fn s3(address: &str, endpoint: Option<&str>, region: Option<&str>, env: &BTreeMap<String, String>) -> Result<Opened> {
    let url = Url::parse(address).map_err(|e| bad(address, "not a URL").caused_by(e))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(address, "credentials do not belong into the address")
            .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
    }
    let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad(address, "no bucket"))?;
    let root = Path::from_url_path(url.path()).map_err(|e| bad(address, "not a usable prefix").caused_by(e))?;
    let objects = s3_builder(address, bucket, endpoint, region, env)?
        .build()
        .or_code(code::STORE_URL, || format!("store `{address}`: the S3 client refuses its settings"))?;
    let shown = format!("s3://{bucket}/{root}");
    Ok(Opened { objects: Arc::new(objects), root, url: shown.trim_end_matches('/').to_owned(), is_local: false })
}

fn s3_builder(
    address: &str,
    bucket: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    env: &BTreeMap<String, String>,
) -> Result<AmazonS3Builder> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("AWS_")) {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    let named = |names: &[&str]| names.iter().find_map(|name| env.get(*name)).cloned();
    let endpoint = endpoint.map(str::to_owned).or_else(|| named(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let region = region.map(str::to_owned).or_else(|| named(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    let http = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if let Some(endpoint) = &endpoint {
        check_endpoint(address, endpoint, env)?;
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    let client =
        ClientOptions::new().with_connect_timeout(CONNECT_LIMIT).with_timeout(REQUEST_LIMIT).with_allow_http(http);
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    Ok(builder
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
        .with_client_options(client)
        .with_allow_http(http)
        .with_retry(RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_LIMIT })
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true))
}

/// A server that is not Amazon's has no instance metadata to fall back to: missing keys are an error at once, not
/// after a minute of asking 169.254.169.254.
fn check_endpoint(address: &str, endpoint: &str, env: &BTreeMap<String, String>) -> Result<()> {
    let shown = without_userinfo(endpoint);
    let url = Url::parse(endpoint)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| bad(address, &format!("endpoint `{shown}` is not an http:// or https:// URL")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(address, &format!("endpoint `{shown}`: credentials do not belong into it")));
    }
    const SOURCES: [&str; 5] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ];
    if SOURCES.iter().any(|name| env.contains_key(*name)) {
        return Ok(());
    }
    Err(code::STORE_DENIED
        .error(format!("store `{address}` at {shown}: no credentials in the environment"))
        .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn bad_addresses_are_refused_and_secrets_are_not_repeated() {
        let none = env(&[]);
        for bad in ["", "  ", "gs://bucket", "s3://", "s3:///x", "file://relative/x", "s3://key:hush@bucket/x"] {
            let error = open(bad, None, None, &none).map(|_| ()).expect_err(bad);
            assert_eq!(error.code(), code::STORE_URL, "{bad}: {error}");
            assert!(!error.chain().contains("hush"), "{error}");
        }
        let keys = env(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
        for bad in ["localhost:9000", "ftp://host", "http://key:hush@host"] {
            let error = open("s3://bucket", Some(bad), None, &keys).map(|_| ()).expect_err(bad);
            assert_eq!(error.code(), code::STORE_URL, "{bad}: {error}");
            assert!(!error.chain().contains("hush"), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = open(file.path().to_str().unwrap(), None, None, &none).map(|_| ()).expect_err("a file");
        assert_eq!(error.code(), code::STORE_URL);
    }

    #[test]
    fn a_server_of_ones_own_needs_keys_at_once() {
        let error = open("s3://b/p", Some("http://127.0.0.1:1"), None, &env(&[])).map(|_| ()).expect_err("no keys");
        assert_eq!(error.code(), code::STORE_DENIED);
    }

    #[test]
    fn the_url_shows_where_things_are() {
        let keys =
            env(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_ENDPOINT_URL", "http://h:1/")]);
        let opened = open("s3://bucket/a/b/", None, None, &keys).unwrap();
        assert_eq!((opened.url.as_str(), opened.root.as_ref()), ("s3://bucket/a/b", "a/b"));
        assert_eq!(open("s3://bucket", None, None, &keys).unwrap().url, "s3://bucket");
        let here = std::env::current_dir().unwrap();
        assert_eq!(open("out", None, None, &keys).unwrap().url, here.join("out").display().to_string());
        assert_eq!(open("file:///some/where", None, None, &keys).unwrap().url, "/some/where");
    }
}
