//! Typed names and numbers, so that a step is never taken for a generation.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::clock::SharedClock;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name_type! {
    /// Who owns a job.
    Tenant
}
name_type! {
    /// A job, unique within its tenant; also the folder name in the store.
    JobId
}
name_type! {
    /// A task within a job.
    TaskName
}
number_type! {
    /// Optimiser steps done: step 0 is the untrained adapter.
    Step
}
number_type! {
    /// The n-th set of workers that trains a job.
    Generation
}
number_type! {
    /// The n-th leader among the coordinators.
    Term
}

/// What makes a writer current: nothing with a smaller fence may write any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The leader's term.
    pub term: Term,
    /// The gang's generation.
    pub generation: Generation,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}g{}", self.term, self.generation)
    }
}

/// A worker: a name that outlives the process and the incarnation that does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    /// Stable name, such as `worker-0`.
    pub name: String,
    /// Drawn anew by every process; the later of two processes of one name has the larger one.
    pub incarnation: u64,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.name, self.incarnation & 0xffff)
    }
}

/// A source of identifiers that never repeat.
pub trait IdSource: fmt::Debug + Send + Sync {
    /// A short lower-case identifier that sorts by time of creation.
    fn next_id(&self) -> String;
    /// A number for an incarnation: larger for a later one, as far as clocks agree.
    fn next_u64(&self) -> u64;
}

/// Identifiers from the clock and the operating system's entropy.
pub struct UlidSource {
    clock: SharedClock,
    generator: Mutex<ulid::Generator>,
}

impl fmt::Debug for UlidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UlidSource").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl UlidSource {
    /// Identifiers that carry the time of `clock`.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, generator: Mutex::new(ulid::Generator::new()) }
    }

    fn draw(&self) -> ulid::Ulid {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.clock.now().0);
        let mut generator = self.generator.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        generator.generate_from_datetime(at).unwrap_or_else(|_| ulid::Ulid::from_datetime(at))
    }
}

impl IdSource for UlidSource {
    fn next_id(&self) -> String {
        self.draw().to_string().to_lowercase()
    }

    fn next_u64(&self) -> u64 {
        let drawn = self.draw();
        drawn.timestamp_ms() << 16 | (drawn.random() & 0xffff) as u64
    }
}

/// Identifiers that count up, for tests and simulations.
#[derive(Debug, Default)]
pub struct CountingSource(AtomicU64);

impl IdSource for CountingSource {
    fn next_id(&self) -> String {
        format!("id{:06}", self.next_u64())
    }

    fn next_u64(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
