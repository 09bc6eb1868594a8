//! The one error type that crosses crate borders: what to do ([`Kind`]), a stable [`Code`], a message that names
//! the field, file or line, and a hint.

use std::error::Error as StdError;
use std::fmt;

use crate::codes::Code;

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error. Every [`Code`] belongs to one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The input is wrong: change it, then try again.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already and differs.
    Conflict,
    /// The world is not in the state this needs (other version, other base model, no such capability).
    Precondition,
    /// A remote end cannot be reached now: try again later.
    Unavailable,
    /// Credentials are missing, wrong or do not suffice.
    Denied,
    /// Memory, disk, quota or time ran out.
    Exhausted,
    /// A newer leader or generation owns this: stop and ask again.
    Fenced,
    /// Stored bytes are not what was written.
    Corrupt,
    /// Somebody asked to stop.
    Cancelled,
    /// A defect of Pleach: report it.
    Internal,
}

impl Kind {
    /// The exit code of a command that ends with this kind: 2 for bad input, 3 when a server cannot be reached, else 1.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::Unavailable => 3,
            _ => 1,
        }
    }
}

/// An error with a stable code. Built as `codes::X.error("message")`, refined with [`Error::hint`] and [`Error::caused_by`].
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(code: Code, message: String) -> Self {
        Self(Box::new(Inner { code, message, hint: None, source: None }))
    }

    /// Adds what the reader should do next, without a trailing full stop.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the hint when there is one.
    #[must_use]
    pub fn maybe_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(text) => self.hint(text),
            None => self,
        }
    }

    /// Keeps the error below as the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts a place in front of the message: `job.yaml:3:9: ...`, `tensor x: ...`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.code.kind
    }

    /// The message without code, hint and cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do next, if anybody knows.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The message followed by every cause, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut next = self.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.0.message, self.0.code.id)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.chain(), self.0.code.id)?;
        match &self.0.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// Turns foreign errors into ours without losing them.
pub trait ResultExt<T> {
    /// Wraps the error as the cause of a new one with `code` and `message`.
    fn or_code(self, code: Code, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> ResultExt<T> for std::result::Result<T, E> {
    fn or_code(self, code: Code, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(code, message()).caused_by(source))
    }
}

#[cfg(test)]
mod tests {
    use crate::code;

    #[test]
    fn display_carries_the_code_and_chain_carries_the_causes() {
        let below = std::io::Error::other("disk on fire");
        let error = code::INTERNAL.error("cannot write").caused_by(below).at("a/b.json").hint("buy a disk");
        assert_eq!(error.to_string(), "a/b.json: cannot write [PL0001]");
        assert_eq!(error.chain(), "a/b.json: cannot write: disk on fire");
        assert_eq!(error.hint_text(), Some("buy a disk"));
        assert_eq!(error.kind().exit_code(), 1);
    }
}
