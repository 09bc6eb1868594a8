//! The gRPC surface: code generated from `/proto`, and the conversions at the edge.
//!
//! Only the edges of the coordinator, the worker and the command see these types; everything inside uses its own.

pub mod status;

/// The generated messages, clients and servers of `pleach.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::clone_on_ref_ptr)]
pub mod v1 {
    tonic::include_proto!("pleach.v1");
}

/// The serialised descriptor set, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pleach.bin"));

/// Metadata key that names the tenant.
pub const TENANT_KEY: &str = "pleach-tenant";

/// Metadata key of a refusal with `NOT_LEADER`: the address of the coordinator that leads, when one does.
pub const LEADER_KEY: &str = "pleach-leader";

/// Largest message either side accepts: a job file of many tasks is far below.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
