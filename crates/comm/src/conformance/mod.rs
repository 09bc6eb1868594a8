//! What every implementation of [`crate::Collective`] must do.
