//! raftserve: a SkyServe controller and load balancer as three equal peers.
#![allow(dead_code)]

mod consensus;

fn main() {}
