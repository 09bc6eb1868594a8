//! Two views of one store whose operations are carried out one at a time, in an order given beforehand.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug)]
struct Order {
    turns: VecDeque<bool>,
    gone: [bool; 2],
}

/// One of the two views.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    inner: Arc<dyn ObjectStore>,
    order: Arc<Mutex<Order>>,
    right: bool,
}

impl Turns {
    pub(crate) fn pair(inner: &Arc<dyn ObjectStore>, turns: Vec<bool>) -> (Arc<Self>, Arc<Self>) {
        let order = Arc::new(Mutex::new(Order { turns: turns.into(), gone: [false; 2] }));
        let view = |right| Arc::new(Self { inner: Arc::clone(inner), order: Arc::clone(&order), right });
        (view(false), view(true))
    }

    /// This side does nothing more: the other one goes on alone.
    pub(crate) fn leave(&self) {
        self.order.lock().unwrap().gone[usize::from(self.right)] = true;
    }

    /// Waits for a turn of this side. When no turns are left, anybody may go.
    async fn turn(&self) {
        loop {
            {
                let mut order = self.order.lock().unwrap();
                while order.turns.front().is_some_and(|right| order.gone[usize::from(*right)]) {
                    order.turns.pop_front();
                }
                match order.turns.front() {
                    None => return,
                    Some(right) if *right == self.right => {
                        order.turns.pop_front();
                        return;
                    }
                    Some(_) => {}
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turns({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Turns {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.turn().await;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.turn().await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (view, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            view.turn().await;
            view.inner.list(prefix.as_ref())
        };
        futures::stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
