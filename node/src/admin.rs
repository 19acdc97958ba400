//! The gRPC admin API `raftserve.v1`: what users and the CLI drive a cluster by.

pub mod v1;
