//! The check at the start. A store that accepts a create of an existing key would let two generations both commit a
//! step, and would not say so; that is worse than a store that refuses the header, so it is tried, not assumed.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode, PutOptions};

use pleach_base::{Error, Result, code};

use crate::fault;
use crate::store::Inner;

const LIMIT: Duration = Duration::from_secs(8);

pub(crate) async fn probe(store: &Inner) -> Result<()> {
    let key = store.root.clone().join(format!(".pleach-probe-{}", store.ids.next_id()));
    let checked = tokio::time::timeout(LIMIT, check(store, &key)).await;
    checked.unwrap_or_else(|_| {
        Err(code::STORE_UNREACHABLE
            .error(format!("store `{}`: no answer in {} s", store.url, LIMIT.as_secs()))
            .hint("check the endpoint and the network"))
    })
}

async fn check(store: &Inner, key: &Path) -> Result<()> {
    let sort = |doing: &str, error| fault::sort(&store.url, doing, key.as_ref(), error);
    let first = Bytes::from_static(b"pleach probe 1\n");
    match create(store, key, &first).await {
        // The key is drawn for this call: if it exists, the client repeated a create whose answer was lost.
        Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
        Err(error) => return Err(sort("cannot create", error)),
    }
    let second = create(store, key, &Bytes::from_static(b"pleach probe 2\n")).await;
    let found = match store.objects.get(key).await {
        Ok(found) => found.bytes().await,
        Err(error) => Err(error),
    };
    let cleaned = store.objects.delete(key).await;
    let refused = match second {
        Err(StoreError::AlreadyExists { .. }) => true,
        Ok(_) => false,
        Err(error) => return Err(sort("cannot create", error)),
    };
    let found = found.map_err(|e| sort("cannot read", e))?;
    if !refused || found != first {
        return Err(ignores_create_only(store));
    }
    cleaned.map_err(|e| sort("cannot delete", e))
}

fn ignores_create_only(store: &Inner) -> Error {
    code::STORE_NO_CREATE_ONLY
        .error(format!("store `{}`: it accepted a second create of the same key", store.url))
        .hint("use a store that honours `If-None-Match: *`; behind a gateway, check that it forwards the header")
}

async fn create(store: &Inner, key: &Path, bytes: &Bytes) -> std::result::Result<(), StoreError> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.objects.put_opts(key, bytes.clone().into(), options).await.map(|_| ())
}
