//! What a hook at one site leaves for a hook of the same adapter at a later site of the same block. A pass runs the
//! sites of a block in order, and again in order where blocks are run anew for their gradients: what was left is taken in
//! the same run of the block, so nothing of a graph outlives it, and an adapter's aliases have relays of their own.

use std::sync::{Arc, Mutex, PoisonError};

/// A place for one thing, shared by hooks.
#[derive(Debug)]
pub(crate) struct Relay<T>(Arc<Mutex<Option<T>>>);

impl<T> Relay<T> {
    /// Nothing is there yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// The same place.
    pub(crate) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Leaves something in place of what was there.
    pub(crate) fn put(&self, thing: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(thing);
    }

    /// Takes what is there.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
