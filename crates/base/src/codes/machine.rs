//! This machine.

codes! {
    /// libtorch is missing or of another version.
    LIBTORCH = "PL0901", Precondition;
    /// `pleach-worker` is not beside `pleach`.
    WORKER_BINARY = "PL0902", NotFound;
}
