//! [`pleach_base::Error`] to gRPC status and back, without losing code and hint.

use pleach_base::{Error, Kind, code};
use tonic::metadata::MetadataValue;
use tonic::{Code as GrpcCode, Status};

use crate::LEADER_KEY;
use crate::v1::Failure;

const CODE_KEY: &str = "pleach-code";
const HINT_KEY: &str = "pleach-hint-bin";

/// The gRPC code of a kind: the one table.
#[must_use]
pub fn grpc_code(kind: Kind) -> GrpcCode {
    match kind {
        Kind::Invalid => GrpcCode::InvalidArgument,
        Kind::NotFound => GrpcCode::NotFound,
        Kind::Conflict => GrpcCode::AlreadyExists,
        Kind::Precondition => GrpcCode::FailedPrecondition,
        Kind::Unavailable => GrpcCode::Unavailable,
        Kind::Denied => GrpcCode::PermissionDenied,
        Kind::Exhausted => GrpcCode::ResourceExhausted,
        Kind::Fenced => GrpcCode::Aborted,
        Kind::Corrupt => GrpcCode::DataLoss,
        Kind::Cancelled => GrpcCode::Cancelled,
        Kind::Internal => GrpcCode::Internal,
    }
}

/// An error as a status; code and hint travel as metadata.
#[must_use]
pub fn to_status(error: &Error) -> Status {
    let mut status = Status::new(grpc_code(error.kind()), error.chain());
    status.metadata_mut().insert(CODE_KEY, MetadataValue::from_static(error.code().id));
    if let Some(hint) = error.hint_text() {
        status.metadata_mut().insert_bin(HINT_KEY, MetadataValue::from_bytes(hint.as_bytes()));
    }
    status
}

/// The error that a peer sent; a status that is not ours becomes `UNREACHABLE` or `INTERNAL`.
#[must_use]
pub fn from_status(status: &Status) -> Error {
    let sent = status.metadata().get(CODE_KEY).and_then(|id| id.to_str().ok()).and_then(code::find);
    let hint = status
        .metadata()
        .get_bin(HINT_KEY)
        .and_then(|hint| hint.to_bytes().ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let code = sent.unwrap_or(match status.code() {
        GrpcCode::Unavailable | GrpcCode::DeadlineExceeded | GrpcCode::Unknown => code::UNREACHABLE,
        GrpcCode::Cancelled => code::CANCELLED,
        _ => code::INTERNAL,
    });
    code.error(status.message()).maybe_hint(hint)
}

/// What a coordinator that stands by answers: who leads instead, if anybody does.
#[must_use]
pub fn not_leader(leader: Option<&str>) -> Status {
    let error = match leader {
        Some(leader) => code::NOT_LEADER.error(format!("this coordinator stands by; {leader} leads")),
        None => code::NOT_LEADER.error("no coordinator leads at the moment").hint("try again in a few seconds"),
    };
    let mut status = to_status(&error);
    if let Some(leader) = leader.and_then(|leader| leader.parse().ok()) {
        status.metadata_mut().insert(LEADER_KEY, leader);
    }
    status
}

/// The address of the leader, in the refusal of a coordinator that stands by.
#[must_use]
pub fn leader(status: &Status) -> Option<&str> {
    status.metadata().get(LEADER_KEY)?.to_str().ok()
}

/// An error inside a message.
#[must_use]
pub fn to_failure(error: &Error) -> Failure {
    Failure {
        code: error.code().id.to_owned(),
        message: error.chain(),
        hint: error.hint_text().unwrap_or_default().to_owned(),
    }
}

/// The error inside a message.
#[must_use]
pub fn from_failure(failure: &Failure) -> Error {
    let hint = (!failure.hint.is_empty()).then(|| failure.hint.clone());
    code::find(&failure.code).unwrap_or(code::INTERNAL).error(failure.message.clone()).maybe_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_leader() {
        let status = not_leader(Some("http://10.0.0.1:7700"));
        assert_eq!((from_status(&status).code(), status.code()), (code::NOT_LEADER, GrpcCode::Unavailable));
        assert_eq!(leader(&status), Some("http://10.0.0.1:7700"));
        assert_eq!(leader(&not_leader(None)), None);
    }

    #[test]
    fn an_error_survives_the_wire() {
        let error = code::UNKNOWN_KEY.error("spec.trian: unknown key").hint("did you mean `träin`?");
        let back = from_status(&to_status(&error));
        assert_eq!(back.code(), error.code());
        assert_eq!(back.message(), error.message());
        assert_eq!(back.hint_text(), error.hint_text());
        assert_eq!(from_failure(&to_failure(&error)).code(), error.code());
    }
}
