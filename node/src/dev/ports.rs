//! Which ports the peers listen at: the default ones plus 100 for each peer, or a whole block
//! elsewhere where one of them is taken.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use serde::{Deserialize, Serialize};

/// The shared proxy port of the first peer.
const PROXY: u16 = 8080;
/// The admin port of the first peer.
const ADMIN: u16 = 7000;
/// The peer port of the first peer.
const PEER: u16 = 7001;
/// The ops port of the first peer.
const OPS: u16 = 7002;
/// The first of the per-service ports of the first peer.
const SERVICES: u16 = 30001;
/// How many services have a port of their own.
const SERVICE_PORTS: u16 = 20;
/// What lies between the ports of two peers.
const PEER_STEP: u16 = 100;
/// What lies between two places where one peer may have its block: the blocks of three peers.
const MOVE_STEP: u16 = 300;
/// How often a block may move. The highest then has its proxy port at 19980: below the replicas'
/// ports, which begin at 20000.
const MOVES_MAX: u16 = 39;

/// The ports of one peer: the defaults, moved by an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Block {
    offset: u16,
}

impl Block {
    /// Where the block of the peer with this number (from 1) is unless something of it is taken.
    pub(super) fn default_of(peer: u16) -> Self {
        Self {
            offset: PEER_STEP * (peer - 1),
        }
    }

    fn moved(self, moves: u16) -> Self {
        Self {
            offset: self.offset + MOVE_STEP * moves,
        }
    }

    /// The shared proxy port.
    pub(super) fn proxy(self) -> SocketAddr {
        self.at(PROXY)
    }

    /// The admin port.
    pub(super) fn admin(self) -> SocketAddr {
        self.at(ADMIN)
    }

    /// The peer port.
    pub(super) fn peer(self) -> SocketAddr {
        self.at(PEER)
    }

    /// The ops port.
    pub(super) fn ops(self) -> SocketAddr {
        self.at(OPS)
    }

    /// The first per-service port.
    pub(super) fn service_base(self) -> u16 {
        SERVICES + self.offset
    }

    /// The last per-service port.
    pub(super) fn service_last(self) -> u16 {
        self.service_base() + SERVICE_PORTS - 1
    }

    fn at(self, port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port + self.offset).into()
    }

    fn all(self) -> impl Iterator<Item = SocketAddr> {
        let services = (SERVICES..SERVICES + SERVICE_PORTS).map(move |port| self.at(port));
        [self.proxy(), self.admin(), self.peer(), self.ops()]
            .into_iter()
            .chain(services)
    }
}

/// A block that no other `raftserve dev` on this host gets while this lives, even one that looks at
/// the same moment: the claim is an abstract socket, which the kernel frees with the process.
#[derive(Debug)]
pub(super) struct Claim {
    /// The block.
    pub(super) block: Block,
    /// What stood in the way of the block wished for, if this is another.
    pub(super) moved_because: Option<Taken>,
    _socket: UnixListener,
}

/// Why a block cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something listens there.
    Port(SocketAddr),
    /// Another `raftserve dev` has the block.
    Block(Block),
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(address) => write!(f, "port {} is taken", address.port()),
            Self::Block(block) => write!(
                f,
                "another `raftserve dev` has port {} and those that go with it",
                block.proxy().port()
            ),
        }
    }
}

/// Finds the block of a peer: the one wished for, or the next that is free as a whole.
///
/// # Errors
/// If nothing is free, or the kernel refuses to look.
pub(super) fn claim(peer: u16, wished: Option<Block>) -> io::Result<Claim> {
    let default = Block::default_of(peer);
    let others = (0..=MOVES_MAX).map(|moves| default.moved(moves));
    let mut moved_because = None;
    for block in wished.into_iter().chain(others) {
        match try_claim(block)? {
            Ok(socket) => {
                return Ok(Claim {
                    block,
                    moved_because,
                    _socket: socket,
                });
            }
            Err(taken) => moved_because = moved_because.or(Some(taken)),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "no free block of ports for peer {peer}: the default ports and {MOVES_MAX} other places are taken"
        ),
    ))
}

fn try_claim(block: Block) -> io::Result<Result<UnixListener, Taken>> {
    let name = format!("raftserve-dev/{}", block.offset);
    let socket = match UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?) {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Ok(Err(Taken::Block(block)));
        }
        Err(error) => return Err(error),
    };
    for address in block.all() {
        // A plain bind: with SO_REUSEPORT, as the proxy binds, a collision would go unnoticed.
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Ok(Err(Taken::Port(address)));
            }
            Err(error) => {
                let text = format!("cannot listen at {address}: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
    Ok(Ok(socket))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_blocks_share_a_port_and_none_reaches_the_replicas() {
        let mut seen = BTreeSet::new();
        for peer in 1..=3 {
            for moves in 0..=MOVES_MAX {
                for address in Block::default_of(peer).moved(moves).all() {
                    assert!(seen.insert(address.port()), "{address}");
                    assert!(!(20_000..30_000).contains(&address.port()), "{address}");
                }
            }
        }
    }

    #[test]
    fn defaults_are_100_apart() {
        assert_eq!(Block::default_of(1).proxy().port(), 8080);
        assert_eq!(Block::default_of(2).admin().port(), 7100);
        assert_eq!(Block::default_of(3).service_base(), 30201);
    }

    #[test]
    fn block_moves_away_from_a_listener_and_from_another_claim() {
        // High blocks: others may be busy with the low ones.
        let wished = Block::default_of(1).moved(MOVES_MAX - 1);
        let first = claim(1, Some(wished)).unwrap();
        let second = claim(1, Some(first.block)).unwrap();
        assert_ne!(first.block, second.block);
        assert_eq!(second.moved_because, Some(Taken::Block(first.block)));
        let block = first.block;
        drop(first);
        let listener = TcpListener::bind(block.ops()).unwrap();
        let third = claim(1, Some(block)).unwrap();
        assert_ne!(third.block, block);
        assert_eq!(third.moved_because, Some(Taken::Port(block.ops())));
        drop(listener);
    }
}
