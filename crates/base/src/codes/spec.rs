//! The job file.

codes! {
    /// The job file is not valid YAML or JSON.
    JOB_SYNTAX = "PL0101", Invalid;
    /// A key that the schema does not know.
    UNKNOWN_KEY = "PL0102", Invalid;
    /// A value of the wrong type or outside its range.
    BAD_VALUE = "PL0103", Invalid;
    /// An `apiVersion` or `kind` that this build does not read.
    API_VERSION = "PL0104", Invalid;
    /// A `--set` argument that cannot be applied.
    BAD_OVERRIDE = "PL0105", Invalid;
}
