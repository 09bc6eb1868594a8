//! Folders of adapters and models: opened together, merged, compared, rewritten. What `pleach merge`, `unmerge`,
//! `compose`, `export`, `import` and `diff` do.

#[cfg(feature = "torch")]
mod adapter;
#[cfg(feature = "torch")]
mod compose;
#[cfg(feature = "torch")]
mod diff;
mod folder;
#[cfg(feature = "torch")]
mod merge;
#[cfg(feature = "torch")]
mod open;
mod recorded;
#[cfg(feature = "torch")]
mod rewrite;
#[cfg(feature = "torch")]
mod tied;
#[cfg(feature = "torch")]
mod unmerge;

#[cfg(feature = "torch")]
pub use adapter::{copy_adapter, write_adapter, write_adapterhub};
#[cfg(feature = "torch")]
pub use compose::compose;
#[cfg(feature = "torch")]
pub use diff::{Diff, Row, State, diff};
pub use folder::new_folder;
#[cfg(feature = "torch")]
pub use merge::{Written, merge};
#[cfg(feature = "torch")]
pub use open::{Opened, open, open_checked, open_on};
pub use recorded::Recorded;
#[cfg(feature = "torch")]
pub use unmerge::unmerge;
