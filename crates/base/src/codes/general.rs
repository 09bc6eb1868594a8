//! General.

codes! {
    /// A defect of Pleach.
    INTERNAL = "PL0001", Internal;
    /// Somebody asked to stop.
    CANCELLED = "PL0002", Cancelled;
    /// A local file or folder cannot be read or written.
    IO = "PL0003", Unavailable;
}
