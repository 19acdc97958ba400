//! The peer service, as generated.
#![allow(missing_docs, clippy::all, unreachable_pub)]

tonic::include_proto!("raftserve.peer.v1");
