//! Creating an object that must not exist yet, when answers can get lost on the way.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

/// What came of a create.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// This call created it.
    Fresh,
    /// It was there with the same bytes: an earlier try whose answer was lost, or somebody who wrote the same.
    Same,
    /// It was there with these other bytes.
    Theirs(Bytes),
}

/// A create whose outcome is unknown is repeated this often, waiting a little longer each time.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Creates `key`. A refused create reads what is there.
pub(crate) async fn create(objects: &dyn ObjectStore, key: &Path, bytes: &Bytes) -> Result<Created, StoreError> {
    let mut wait = FIRST_WAIT;
    let mut tried = 1;
    loop {
        let error = match create_once(objects, key, bytes).await {
            Ok(created) => return Ok(created),
            Err(error) => error,
        };
        if tried == TRIES || !may_pass(&error) {
            return Err(error);
        }
        tracing::debug!(%key, tried, %error, "creating an object failed, trying again");
        tokio::time::sleep(wait).await;
        wait *= 2;
        tried += 1;
    }
}

async fn create_once(objects: &dyn ObjectStore, key: &Path, bytes: &Bytes) -> Result<Created, StoreError> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match objects.put_opts(key, bytes.clone().into(), options).await {
        Ok(_) => Ok(Created::Fresh),
        Err(StoreError::AlreadyExists { .. }) => {
            let found = objects.get(key).await?.bytes().await?;
            Ok(if found == bytes { Created::Same } else { Created::Theirs(found) })
        }
        Err(error) => Err(error),
    }
}

/// Lost answers and servers in trouble may pass. So may an object that was refused as existing and then not found:
/// S3 answers 409 while another create of the key is under way, and that one may fail.
fn may_pass(error: &StoreError) -> bool {
    let missing_bucket = || format!("{error:?}").contains("NoSuchBucket");
    match error {
        StoreError::Generic { .. } => true,
        StoreError::NotFound { .. } => !missing_bucket(),
        _ => false,
    }
}
