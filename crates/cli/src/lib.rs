//! The `pleach` command.
