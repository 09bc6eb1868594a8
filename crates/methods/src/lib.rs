//! The method registries.
