//! Where checkpoints go, seen from both sides: by the workers, with trouble, and by the reader, without.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use pleach_testkit::s3::{Faults, S3Options, S3Server};
use tokio::runtime::Runtime;

use crate::args::StoreKind;
use crate::workload::TASK;

pub(crate) struct Stores {
    folder: PathBuf,
    /// The one that the workers know, and one over the same folder that has no faults and that only the reader asks.
    servers: Option<(S3Server, S3Server)>,
}

impl Stores {
    pub(crate) fn start(kind: StoreKind, folder: &Path, at: IpAddr, runtime: &Runtime) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let options = |host| S3Options { host, root: Some(folder.to_owned()), ..S3Options::default() };
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let servers = match kind {
            StoreKind::Folder => None,
            StoreKind::S3 => Some((
                runtime.block_on(S3Server::start(options(at)))?,
                runtime.block_on(S3Server::start(options(loopback)))?,
            )),
        };
        Ok(Self { folder: folder.to_owned(), servers })
    }

    pub(crate) fn faults(&self) -> Option<Arc<Faults>> {
        self.servers.as_ref().map(|(server, _)| server.faults())
    }

    /// The job's `checkpoint.store`. The endpoint comes from the environment: workers may have different ways to it.
    pub(crate) fn address(&self, arm: &str) -> String {
        match &self.servers {
            Some((server, _)) => format!("s3://{}/{arm}", server.bucket()),
            None => self.folder.join(arm).display().to_string(),
        }
    }

    /// What a process needs to use the store.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let env = self.servers.iter().flat_map(|(server, _)| server.env());
        env.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// For the reader: everything, and where the task of an arm is in it.
    pub(crate) fn objects(&self, arm: &str, job: &str) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path)> {
        let root = object_store::path::Path::from(format!("{arm}/default/{job}/{TASK}"));
        let objects: Arc<dyn ObjectStore> = match &self.servers {
            Some((_, clean)) => Arc::new(
                AmazonS3Builder::new()
                    .with_endpoint(clean.endpoint())
                    .with_allow_http(true)
                    .with_region("us-east-1")
                    .with_bucket_name(clean.bucket())
                    .with_access_key_id(clean.access_key())
                    .with_secret_access_key(clean.secret_key())
                    .build()?,
            ),
            None => Arc::new(LocalFileSystem::new_with_prefix(&self.folder)?),
        };
        Ok((objects, root))
    }
}
