//! Checks of options that many methods have. Every message begins with the option's name.

use pleach_base::{Error, Result, code};

/// An error about an option.
pub(crate) fn refuse(field: &str, why: &str) -> Error {
    code::METHOD_CONFIG.error(format!("{field}: {why}"))
}

/// Refuses zero.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn positive(field: &str, value: u32) -> Result<()> {
    if value == 0 { Err(refuse(field, "must be at least 1")) } else { Ok(()) }
}

/// Refuses what is no share that can be dropped.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn share(field: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(refuse(field, "must be at least 0 and below 1")) }
}
