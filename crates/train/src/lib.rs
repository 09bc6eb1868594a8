//! The training step and the engine around it.
