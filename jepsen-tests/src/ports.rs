//! Ports that no other test run uses, however many run on the host at once.
//!
//! A cluster takes blocks of ports and holds a lock file for each, so that a peer that was killed finds
//! its ports free when it comes back. The blocks lie below the ports of replicas (20000 and up) and
//! those that Linux hands out to outgoing connections (32768 and up), which could otherwise sit on a
//! dead peer's port.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

/// The first port of the first block.
const FIRST: u16 = 10_000;

/// Ports of one peer: proxy, admin, peer, ops, and 20 for services.
const PER_PEER: u16 = 4 + SERVICE_PORTS;

/// Ports that a peer keeps for services.
const SERVICE_PORTS: u16 = 20;

/// Ports in a block: three peers, rounded up.
const PER_BLOCK: u16 = 80;

/// The most peers that a block has room for.
pub const PEERS_MAX: usize = (PER_BLOCK / PER_PEER) as usize;

/// Blocks below port 20000: more clusters than one host runs.
const BLOCKS: u16 = 125;

/// A block of ports, held until dropped or until the process ends.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    _lock: File,
}

/// Where one peer listens, all on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerPorts {
    /// The proxy, for every service.
    pub proxy: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// Other peers.
    pub peer: SocketAddr,
    /// Health and metrics.
    pub ops: SocketAddr,
    /// The first of 20 ports for one service each.
    pub service_base: u16,
}

impl PortBlock {
    /// Takes a block whose ports are all free.
    ///
    /// # Errors
    /// If there is none.
    pub fn take() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join("raftserve-jepsen-ports");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Different processes begin at different blocks, so that they seldom meet.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        for step in 0..BLOCKS {
            let block = (start + step) % BLOCKS;
            let path = folder.join(format!("{block}.lock"));
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let first = FIRST + block * PER_BLOCK;
            if (first..first + PER_BLOCK).all(is_free) {
                return Ok(Self { first, _lock: lock });
            }
        }
        bail!("no block of {PER_BLOCK} free ports from {FIRST} on")
    }

    /// The ports of the peer with this index, from 0.
    ///
    /// # Panics
    /// If the block has no room for that many peers.
    #[must_use]
    pub fn peer(&self, index: usize) -> PeerPorts {
        assert!(index < PEERS_MAX, "a block has room for {PEERS_MAX} peers");
        let index = u16::try_from(index).expect("there are few in a block");
        let first = self.first + index * PER_PEER;
        let at = |offset| SocketAddr::from((Ipv4Addr::LOCALHOST, first + offset));
        PeerPorts {
            proxy: at(0),
            admin: at(1),
            peer: at(2),
            ops: at(3),
            service_base: first + 4,
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn blocks_and_peers_do_not_overlap() {
        let blocks = [PortBlock::take().unwrap(), PortBlock::take().unwrap()];
        let mut seen = BTreeSet::new();
        for ports in blocks
            .iter()
            .flat_map(|block| (0..3).map(|index| block.peer(index)))
        {
            let own = [ports.proxy, ports.admin, ports.peer, ports.ops];
            let services = (0..SERVICE_PORTS).map(|slot| ports.service_base + slot);
            for port in own.map(|at| at.port()).into_iter().chain(services) {
                assert!(seen.insert(port), "{port} twice");
                assert!((10_000..20_000).contains(&port));
            }
        }
    }

    #[test]
    fn block_with_a_taken_port_is_passed_over() {
        let first = PortBlock::take().unwrap().first;
        let _holder = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 7)).unwrap();
        assert_ne!(PortBlock::take().unwrap().first, first);
    }
}
