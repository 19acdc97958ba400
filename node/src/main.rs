//! raftserve: a SkyServe controller and load balancer as three equal peers.

use std::process::ExitCode;

/// Peers allocate small pieces on several threads for every write and every HTTP/2 request: see `docs/benchmarks.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    raftserve_node::main()
}
