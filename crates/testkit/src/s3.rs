//! A real S3 server over a local folder: HTTP, signatures (SigV4), multipart, conditional PUT.
//!
//! The file server below it tests a condition and only then writes, so two creates of one key could both win; `guard`
//! puts a lock around that. Also here: the ways in which servers misbehave, as [`S3Options`]. Not here: bucket
//! policies, versions, TLS.

mod faults;
mod guard;
mod socket;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

pub use faults::{Faults, Trouble};
use guard::Guard;
use socket::Socket;

/// A PUT that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutFault {
    /// Which one, counted from 1 over all PUTs of the server.
    pub nth: u64,
    /// How many in a row.
    pub times: u64,
    /// 500 or 503.
    pub status: u16,
    /// Whether the object is stored before the failure is reported: an answer that got lost.
    pub applied: bool,
}

/// How a server is set up and how it misbehaves.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Where it listens.
    pub host: IpAddr,
    /// 0 takes any free port.
    pub port: u16,
    /// The folder of the buckets; a temporary one when absent.
    pub root: Option<PathBuf>,
    /// The bucket that is created at the start.
    pub bucket: String,
    /// The one access key that is known.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Behaves like a server that does not know `If-None-Match` and `If-Match` on PUT and says nothing.
    pub ignore_conditions: bool,
    /// PUTs that fail.
    pub put_fault: Option<PutFault>,
    /// Waits so long before each request is carried out.
    pub delay: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            root: None,
            bucket: "pleach".to_owned(),
            access_key: "pleach-access".to_owned(),
            secret_key: "pleach-secret".to_owned(),
            ignore_conditions: false,
            put_fault: None,
            delay: Duration::ZERO,
        }
    }
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    options: S3Options,
    root: PathBuf,
    guard: Guard,
    accepting: JoinHandle<()>,
    _temporary: Option<tempfile::TempDir>,
}

impl S3Server {
    /// Starts a server with its bucket.
    ///
    /// # Errors
    /// When the folder cannot be made or the port is taken.
    pub async fn start(options: S3Options) -> anyhow::Result<Self> {
        let temporary = options.root.is_none().then(tempfile::tempdir).transpose()?;
        let root = match (&options.root, &temporary) {
            (Some(root), _) => root.clone(),
            (None, Some(folder)) => folder.path().to_path_buf(),
            (None, None) => anyhow::bail!("no folder"),
        };
        let bucket = root.join(&options.bucket);
        std::fs::create_dir_all(&bucket).with_context(|| format!("cannot create {}", bucket.display()))?;
        let files = s3s_fs::FileSystem::new(&root).map_err(|e| anyhow::anyhow!("cannot serve the folder: {e:?}"))?;
        let guard = Guard::new(files, &root, &options);
        let mut service = S3ServiceBuilder::new(guard.clone());
        service.set_auth(SimpleAuth::from_single(options.access_key.clone(), options.secret_key.clone()));
        let listener = TcpListener::bind((options.host, options.port))
            .await
            .with_context(|| format!("cannot listen on port {}", options.port))?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, service.build(), guard.faults()));
        Ok(Self { address, options, root, guard, accepting, _temporary: temporary })
    }

    /// `http://HOST:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket that exists from the start.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.options.bucket
    }

    /// The access key.
    #[must_use]
    pub fn access_key(&self) -> &str {
        &self.options.access_key
    }

    /// The secret key.
    #[must_use]
    pub fn secret_key(&self) -> &str {
        &self.options.secret_key
    }

    /// The folder of the buckets: an object `k` of bucket `b` is the file `b/k`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The switch for trouble at run time.
    #[must_use]
    pub fn faults(&self) -> Arc<Faults> {
        self.guard.faults()
    }

    /// PUTs seen so far, failed ones included.
    #[must_use]
    pub fn puts(&self) -> u64 {
        self.guard.puts()
    }

    /// Whether the body of a PUT is arriving at this moment.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.guard.bodies().0 > 0
    }

    /// PUTs whose body broke off: the client died, or the connection.
    #[must_use]
    pub fn cut_puts(&self) -> u64 {
        self.guard.bodies().1
    }

    /// The environment that points an S3 client here.
    #[must_use]
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", self.options.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.options.secret_key.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// Runs until the server is dropped or its listener fails.
    pub async fn run(&mut self) {
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves connections until aborted; the set of connections goes with the task.
async fn accept(listener: TcpListener, service: S3Service, faults: Arc<Faults>) {
    let http = Arc::new(Builder::new(TokioExecutor::new()));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    let (http, service) = (Arc::clone(&http), service.clone());
                    let socket = Socket::new(socket, Arc::clone(&faults));
                    connections.spawn(async move {
                        if let Err(error) = http.serve_connection(TokioIo::new(socket), service).await {
                            tracing::debug!(%error, "a connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
