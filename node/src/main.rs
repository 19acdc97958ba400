//! raftserve: a SkyServe controller and load balancer as three equal peers.

use std::process::ExitCode;

fn main() -> ExitCode {
    raftserve_node::main()
}
