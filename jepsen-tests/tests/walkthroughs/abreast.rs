//! Walk-throughs without a steady load, which wait for most of their time: several at once. Their names come first, so that
//! none of the others waits between them for the cluster to be its own.

mod controller;
mod fewer_volumes;
mod grpc;
mod lost_cluster;
