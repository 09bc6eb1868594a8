//! Servers, processes and fault proxies for tests.
