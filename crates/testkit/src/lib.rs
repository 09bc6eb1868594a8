//! Servers, processes and fault proxies for tests.

pub mod s3;
