//! Training.

codes! {
    /// The loss or a gradient is not finite.
    NON_FINITE = "PL0801", Invalid;
    /// Ranks hold different parameters.
    DIGEST_MISMATCH = "PL0802", Corrupt;
    /// A worker was lost.
    WORKER_LOST = "PL0803", Unavailable;
    /// A job failed too often.
    RESTARTS_SPENT = "PL0804", Exhausted;
    /// A recorded parity case is not of the expected layout.
    PARITY_CASE = "PL0805", Corrupt;
    /// A lane of a step was fed by no rank, or more than once.
    LANE_MISMATCH = "PL0806", Corrupt;
}
