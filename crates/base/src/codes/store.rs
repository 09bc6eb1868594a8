//! Stores.

codes! {
    /// The store cannot be reached.
    STORE_UNREACHABLE = "PL0601", Unavailable;
    /// The store refused the credentials.
    STORE_DENIED = "PL0602", Denied;
    /// The store ignores create-only writes.
    STORE_NO_CREATE_ONLY = "PL0603", Precondition;
    /// A newer generation writes this task.
    STORE_FENCED = "PL0604", Fenced;
    /// A stored object is not what its manifest says.
    STORE_CORRUPT = "PL0605", Corrupt;
    /// No such checkpoint.
    CHECKPOINT_NONE = "PL0606", NotFound;
    /// The store's address cannot be used.
    STORE_URL = "PL0607", Invalid;
    /// A stored record is of a newer format.
    STORE_FORMAT = "PL0608", Precondition;
}
