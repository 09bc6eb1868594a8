//! Real Pleach processes against real programs of others. `cargo xtask test interop` sets what they need:
//! `PLEACH_INTEROP_PYTHON` (the environment of `py/requirements.txt`), `PLEACH_ADAPTERS_PYTHON` (that of
//! `py/requirements-adapters.txt`) and `PLEACH_MINILM` (the pretrained model).

#![allow(clippy::unwrap_used)]

mod adapterhub;
mod grpc;
mod merged;
mod peft;
mod s3;
mod support;
mod zoo;
