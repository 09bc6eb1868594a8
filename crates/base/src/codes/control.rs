//! Control plane.

codes! {
    /// The coordinator does not answer.
    UNREACHABLE = "PL0701", Unavailable;
    /// The port is in use.
    PORT_TAKEN = "PL0702", Precondition;
    /// A job of this id exists with another spec.
    JOB_EXISTS = "PL0703", Conflict;
    /// No such job.
    JOB_NOT_FOUND = "PL0704", NotFound;
    /// The job's state does not allow this.
    JOB_STATE = "PL0705", Precondition;
    /// A newer leader or generation took over.
    FENCED = "PL0706", Fenced;
    /// The coordinator's state cannot be read.
    STATE_CORRUPT = "PL0707", Corrupt;
    /// The coordinator refused the token.
    TOKEN_REFUSED = "PL0708", Denied;
    /// This coordinator stands by; another one leads.
    NOT_LEADER = "PL0709", Unavailable;
}
