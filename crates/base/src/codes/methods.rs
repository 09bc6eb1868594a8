//! Methods and adapters.

codes! {
    /// No such method.
    METHOD_UNKNOWN = "PL0401", Invalid;
    /// A target matches no site.
    TARGET_NOTHING = "PL0402", Invalid;
    /// The method's options are wrong.
    METHOD_CONFIG = "PL0403", Invalid;
    /// An adapter folder cannot be read.
    ADAPTER_FORMAT = "PL0404", Corrupt;
    /// The adapter belongs to another base model.
    ADAPTER_BASE = "PL0405", Precondition;
    /// A step did not pass its gate.
    ADAPTER_GATE = "PL0406", Precondition;
}
