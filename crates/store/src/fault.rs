//! Errors of the object store, sorted by what a person can do about them.

use std::error::Error as StdError;
use std::io;

use object_store::Error as StoreError;

use pleach_base::{Error, code};

/// The error for a failed operation (`doing`: "cannot write", "cannot list") on `key` of the store shown as `url`.
pub(crate) fn sort(url: &str, doing: &str, key: &str, error: StoreError) -> Error {
    let text = chain_text(&error);
    let place = format!("store `{url}`: {doing} `{key}`");
    let sorted = match &error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => denied(&place, &text),
        // A listing does not say which kind of error it had.
        StoreError::NotFound { .. } | StoreError::Generic { .. } if text.contains("NoSuchBucket") => {
            code::STORE_URL.error(format!("{place}: there is no such bucket")).hint("create it, or correct the address")
        }
        StoreError::NotFound { .. } => code::STORE_CORRUPT.error(format!("{place}: it is missing")),
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => not_create_only(&place),
        StoreError::InvalidPath { .. } => code::STORE_URL.error(format!("{place}: not a usable name")),
        _ => by_cause(&place, &text, &error),
    };
    sorted.caused_by(error)
}

fn by_cause(place: &str, text: &str, error: &StoreError) -> Error {
    if let Some(kind) = io_kind(error) {
        match kind {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => return denied(place, text),
            io::ErrorKind::NotADirectory => {
                return code::STORE_URL.error(format!("{place}: a part of the path is a file, not a folder"));
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                return code::IO.error(format!("{place}: no space is left")).hint("free some space");
            }
            io::ErrorKind::Unsupported => return not_create_only(place),
            _ => {}
        }
    }
    // Without keys the client asks the metadata service of a cloud machine, which is not there elsewhere.
    let refused = ["169.254.169.254", "AuthorizationHeaderMalformed", "403 Forbidden", "401 Unauthorized"];
    if refused.iter().any(|sign| text.contains(sign)) {
        return denied(place, text);
    }
    if text.contains("501 Not Implemented") {
        return not_create_only(place);
    }
    code::STORE_UNREACHABLE
        .error(format!("{place}: no answer, or a failure of the server"))
        .hint("check the endpoint, the network and the server's log")
}

fn denied(place: &str, text: &str) -> Error {
    let hint = if text.contains("RequestTimeTooSkewed") {
        "set the clock of this machine"
    } else if text.contains("AuthorizationHeaderMalformed") {
        "set AWS_REGION to the region of the bucket"
    } else if text.contains("169.254.169.254") {
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    } else {
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the permissions of the bucket or folder"
    };
    code::STORE_DENIED.error(format!("{place}: not allowed")).hint(hint)
}

fn not_create_only(place: &str) -> Error {
    code::STORE_NO_CREATE_ONLY
        .error(format!("{place}: the store knows no create-only write"))
        .hint("use a store that honours `If-None-Match: *`")
}

fn io_kind(error: &StoreError) -> Option<io::ErrorKind> {
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = cause.source();
    }
    None
}

fn chain_text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
