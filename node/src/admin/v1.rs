//! The generated code of package `raftserve.v1`, and its descriptors.
#![expect(clippy::wildcard_imports, reason = "generated")]

tonic::include_proto!("raftserve.v1");

/// Descriptors of every service, for reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/raftserve_descriptors.bin"));
