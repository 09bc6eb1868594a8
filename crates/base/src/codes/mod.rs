//! Stable error codes. A code is one line in the file of its area plus a page `docs/errors/PLnnnn.md` (cause and
//! remedy), which is compiled in for `pleach explain PLnnnn`; a missing page does not compile.
//!
//! Ranges: 00 general, 01 job file, 02 data, 03 models, 04 methods, 05 collectives, 06 stores, 07 control plane,
//! 08 training, 09 this machine.

use crate::error::{Error, Kind};

/// A stable error code: never renumbered, never reused.
#[derive(Clone, Copy)]
pub struct Code {
    /// `PL` and four digits.
    pub id: &'static str,
    /// What the caller can do.
    pub kind: Kind,
    /// The page of `docs/errors/` in Markdown.
    pub page: &'static str,
}

impl Code {
    /// A new error of this code. The message starts in lower case, names the field, file or line, and has no full stop.
    #[must_use]
    pub fn error(self, message: impl Into<String>) -> Error {
        Error::new(self, message.into())
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Code {}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// `codes! { /// doc  NAME = "PLnnnn", Kind; ... }` declares the constants of one area and their list `ALL`.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $kind:ident;)*) => {
        use crate::{codes::Code, error::Kind};
        $($(#[$doc])* pub const $name: Code = Code {
            id: $id,
            kind: Kind::$kind,
            page: include_str!(concat!("../../../../docs/errors/", $id, ".md")),
        };)*
        pub(super) const ALL: &[Code] = &[$($name),*];
    };
}

mod comm;
mod control;
mod data;
mod general;
mod machine;
mod methods;
mod models;
mod spec;
mod store;
mod train;

/// Every code as a constant, by name.
pub mod code {
    pub use super::comm::*;
    pub use super::control::*;
    pub use super::data::*;
    pub use super::general::*;
    pub use super::machine::*;
    pub use super::methods::*;
    pub use super::models::*;
    pub use super::spec::*;
    pub use super::store::*;
    pub use super::train::*;

    /// All codes in order.
    pub fn all() -> impl Iterator<Item = super::Code> {
        [
            super::general::ALL,
            super::spec::ALL,
            super::data::ALL,
            super::models::ALL,
            super::methods::ALL,
            super::comm::ALL,
            super::store::ALL,
            super::control::ALL,
            super::train::ALL,
            super::machine::ALL,
        ]
        .into_iter()
        .flatten()
        .copied()
    }

    /// The code with this id, in any case.
    #[must_use]
    pub fn find(id: &str) -> Option<super::Code> {
        all().find(|code| code.id.eq_ignore_ascii_case(id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_ordered_and_have_a_page_with_a_title() {
        let ids: Vec<_> = super::code::all().map(|code| code.id).collect();
        let sorted: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(ids, sorted.into_iter().collect::<Vec<_>>(), "codes are listed in order, once each");
        for code in super::code::all() {
            assert!(code.page.starts_with(&format!("# {}: ", code.id)), "{} needs a title line", code.id);
        }
    }
}
