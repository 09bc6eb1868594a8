//! How a command ends: the exit code, and an error with its hint and its page.

use std::io::Write;

use pleach_base::{Error, Kind, code, human};

/// The job that was followed failed; what was wrong with it was the job's own affair.
pub(crate) const FAILED: u8 = 1;

/// 2 for bad input, 3 when the coordinator cannot be reached, else 1.
pub(crate) fn exit_code(error: &Error) -> u8 {
    match (error.kind(), error.code()) {
        (_, at) if at == code::UNREACHABLE => Kind::Unavailable.exit_code(),
        (Kind::Invalid, _) => Kind::Invalid.exit_code(),
        // What else is unavailable (a file, a store) is no unreachable coordinator.
        _ => FAILED,
    }
}

/// Writes the error to standard error: message, `hint:`, `see:`.
pub(crate) fn show(error: &Error) {
    // The stream takes the colours away where none are wanted.
    let text = human::error(error, true);
    let _ = write!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unreachable_coordinator_ends_with_three() {
        for (at, want) in [
            (code::UNKNOWN_KEY, 2),
            (code::UNREACHABLE, 3),
            (code::IO, 1),
            (code::STORE_UNREACHABLE, 1),
            (code::JOB_EXISTS, 1),
            (code::INTERNAL, 1),
        ] {
            assert_eq!(exit_code(&at.error("x")), want, "{at:?}");
        }
    }
}
