//! Checks of options that many methods have. Every message begins with the option's name.

use pleach_base::{Error, Result, code};
use pleach_nn::{Site, WeightLayout};

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

/// Refuses what is no positive number.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn positive_number(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(refuse(field, "must be a positive number")) }
}

/// Refuses modules that are stored input first: PEFT's method takes plain linear maps only.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn plain_linear(site: &Site, title: &str) -> Result<()> {
    if site.weight.as_ref().is_some_and(|weight| weight.layout == WeightLayout::InOut) {
        let why = format!("`{}` is stored input first, and {title} is not defined for such modules", site.path);
        return Err(refuse("target_modules", &why));
    }
    Ok(())
}
