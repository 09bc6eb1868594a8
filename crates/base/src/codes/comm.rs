//! Collectives.

codes! {
    /// A peer is gone.
    COMM_PEER = "PL0501", Unavailable;
    /// A collective made no progress in time.
    COMM_TIMEOUT = "PL0502", Unavailable;
    /// The collective was aborted.
    COMM_ABORTED = "PL0503", Cancelled;
    /// Ranks called different collectives.
    COMM_MISMATCH = "PL0504", Internal;
    /// The group could not be formed.
    COMM_SETUP = "PL0505", Unavailable;
}
