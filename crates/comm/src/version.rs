//! Which libtorch is loaded, and whether it is the one that the bindings were made for.

use pleach_base::{Result, code};

use crate::ffi;

/// The version of libtorch that the bindings are made for.
pub const LIBTORCH_VERSION: &str = "2.11";

/// The version of the libtorch that this process has loaded, `2.11.0`; `unknown` if it does not say.
#[must_use]
pub fn libtorch_version() -> String {
    ffi::torch_config().ok().and_then(|config| version_in(&config)).unwrap_or_else(|| "unknown".to_owned())
}

/// Refuses a libtorch of another version.
///
/// # Errors
/// `LIBTORCH` when the loaded libtorch is not [`LIBTORCH_VERSION`].
pub fn check_libtorch() -> Result<()> {
    check(&libtorch_version())
}

fn check(found: &str) -> Result<()> {
    if found.strip_prefix(LIBTORCH_VERSION).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
        return Ok(());
    }
    Err(code::LIBTORCH
        .error(format!("libtorch {found} is loaded, this build needs {LIBTORCH_VERSION}"))
        .hint("run `cargo xtask setup`, or point LIBTORCH at libtorch 2.11 and build again"))
}

fn version_in(config: &str) -> Option<String> {
    let (_, rest) = config.split_once("TORCH_VERSION=")?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    (!version.is_empty()).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_libtorch_is_the_one_we_build_for() {
        assert!(libtorch_version().starts_with("2.11."), "{}", libtorch_version());
        check_libtorch().unwrap();
    }

    #[test]
    fn another_version_is_refused() {
        for found in ["2.10.0", "2.1", "2.110.0", "3.0.0", "unknown"] {
            let error = check(found).unwrap_err();
            assert_eq!(error.code(), code::LIBTORCH);
            assert!(error.message().contains(found));
        }
        assert!(check("2.11.1").is_ok());
    }
}
