//! What an error of a job means: whether trying again in a new generation can help.

use pleach_base::{Error, Kind, code};

/// Whether the job fails, rather than only this generation.
pub(crate) fn is_permanent(error: &Error) -> bool {
    let passing = [
        // A peer saw something else because one of the two is behind; the next generation starts alike.
        code::COMM_MISMATCH,
        // The ranks fell apart; the newest checkpoint is from before that.
        code::DIGEST_MISMATCH,
    ];
    if passing.contains(&error.code()) {
        return false;
    }
    match error.kind() {
        Kind::Unavailable | Kind::Fenced | Kind::Cancelled | Kind::Exhausted => false,
        Kind::Invalid
        | Kind::NotFound
        | Kind::Conflict
        | Kind::Precondition
        | Kind::Denied
        | Kind::Corrupt
        | Kind::Internal => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_and_stores_may_come_back_but_bad_input_stays_bad() {
        for passing in [code::COMM_PEER, code::COMM_TIMEOUT, code::STORE_UNREACHABLE, code::DIGEST_MISMATCH] {
            assert!(!is_permanent(&passing.error("x")), "{passing:?}");
        }
        for permanent in [code::DATA_ROW, code::NON_FINITE, code::ADAPTER_BASE, code::INTERNAL, code::STORE_DENIED] {
            assert!(is_permanent(&permanent.error("x")), "{permanent:?}");
        }
    }
}
