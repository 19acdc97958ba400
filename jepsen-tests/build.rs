//! Compiles the published admin API, `raftserve.v1`, into a client: the tests speak to peers as any
//! other program would, and share no code with them.

use std::error::Error;

/// Where the published `.proto` files are.
const PROTO: &str = "../node/proto";

/// Where our excerpt of etcd's API is, for comparisons.
const ETCD: &str = "proto";

/// The files that hold a service that the tests call.
const FILES: [&str; 7] = [
    "raftserve/v1/access.proto",
    "raftserve/v1/services.proto",
    "raftserve/v1/replicas.proto",
    "raftserve/v1/cluster.proto",
    "raftserve/v1/events.proto",
    "raftserve/v1/sessions.proto",
    "raftserve/v1/keys.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}/raftserve/v1");
    println!("cargo::rerun-if-changed=build.rs");
    let descriptors = protox::compile(FILES, [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed={ETCD}");
    let descriptors = protox::compile(["etcd.proto"], [ETCD])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
