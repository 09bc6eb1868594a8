//! Servers, processes and fault proxies for tests.

pub mod etcd;
pub mod net;
pub mod process;
pub mod proxy;
pub mod s3;
