//! The coordinator: gRPC and HTTP, state, driving the scheduler.
