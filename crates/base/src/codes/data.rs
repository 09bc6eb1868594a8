//! Data.

codes! {
    /// The source has no usable row.
    DATA_EMPTY = "PL0201", Invalid;
    /// A malformed row.
    DATA_ROW = "PL0202", Invalid;
    /// The batch is larger than the dataset.
    DATA_TOO_SMALL = "PL0203", Invalid;
    /// The tokenizer cannot be loaded.
    TOKENIZER = "PL0204", Invalid;
    /// A token id outside the vocabulary.
    TOKEN_RANGE = "PL0205", Invalid;
    /// The source cannot be opened.
    DATA_SOURCE = "PL0206", Invalid;
}
