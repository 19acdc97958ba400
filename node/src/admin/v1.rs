//! The generated code of package `raftserve.v1`, and its descriptors.

tonic::include_proto!("raftserve.v1");

/// Descriptors of every service, for reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/raftserve_descriptors.bin"));
