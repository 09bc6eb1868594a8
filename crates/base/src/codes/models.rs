//! Models.

codes! {
    /// A file of the model is missing.
    MODEL_MISSING = "PL0301", NotFound;
    /// `config.json` cannot be used.
    MODEL_CONFIG = "PL0302", Invalid;
    /// Weights do not match the configuration.
    MODEL_MISMATCH = "PL0303", Corrupt;
    /// A safetensors file is damaged.
    SAFETENSORS = "PL0304", Corrupt;
}
