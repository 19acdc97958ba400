//! The settings of one peer: read once from the command line, checked, and never changed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The settings of one peer.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where its identity, log and state live.
    pub data_dir: PathBuf,
    /// `host:port` of every peer's peer port, in one order on all of them.
    pub peers: Vec<String>,
    /// Where the peer port listens.
    pub peer_listen: SocketAddr,
    /// This peer's own entry of `peers`: how the others reach it.
    pub peer_address: String,
    /// Where the admin API listens.
    pub admin_listen: SocketAddr,
    /// Where health and metrics are told.
    pub ops_listen: SocketAddr,
    /// Where traffic comes in.
    pub proxy_listen: SocketAddr,
    /// The first of the ports that services have of their own.
    pub service_port_base: u16,
    /// Where replicas live; the same directory for all peers of a host.
    pub replica_root: PathBuf,
    /// A socket whose end of file stops this peer and what it launched.
    pub lifeline: Option<PathBuf>,
    /// How patient elections are.
    pub profile: raftserve_store::raft::Profile,
}

/// Settings that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A port without credentials must not be reachable from elsewhere.
    #[error(
        "{flag} {address}: the {surface} port has no credentials yet and binds to loopback only; \
         use 127.0.0.1:{port}",
        port = address.port()
    )]
    NotLoopback {
        /// The setting.
        flag: &'static str,
        /// What it is for.
        surface: &'static str,
        /// What was asked for.
        address: SocketAddr,
    },
    /// The peer cannot find itself among the peers.
    #[error(
        "--peer-addr {address} is not among --peers {peers}: every peer is named there, this one too"
    )]
    NotAPeer {
        /// Its own address.
        address: String,
        /// All of them.
        peers: String,
    },
    /// A peer is named twice.
    #[error("--peers names {0} twice")]
    PeerTwice(String),
    /// Not a number of peers that can agree better than one fewer.
    #[error("--peers names {0} peers: a cluster has 1, 3 or 5")]
    PeerCount(usize),
    /// The services' ports do not fit.
    #[error("--service-port-base {0}: there must be {ports} ports from it on", ports = raftserve_store::state::SERVICE_PORTS)]
    PortBase(u16),
}

impl NodeConfig {
    /// Checks what no single setting shows.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn check(self) -> Result<Self, ConfigError> {
        for (flag, surface, address) in [
            ("--peer-addr", "peer", self.peer_listen),
            ("--admin-addr", "admin", self.admin_listen),
            ("--ops-addr", "ops", self.ops_listen),
        ] {
            if !is_loopback(address.ip()) {
                return Err(ConfigError::NotLoopback {
                    flag,
                    surface,
                    address,
                });
            }
        }
        if !matches!(self.peers.len(), 1 | 3 | 5) {
            return Err(ConfigError::PeerCount(self.peers.len()));
        }
        for (at, peer) in self.peers.iter().enumerate() {
            if self.peers[..at].contains(peer) {
                return Err(ConfigError::PeerTwice(peer.clone()));
            }
        }
        if !self.peers.contains(&self.peer_address) {
            return Err(ConfigError::NotAPeer {
                address: self.peer_address,
                peers: self.peers.join(","),
            });
        }
        if self
            .service_port_base
            .checked_add(raftserve_store::state::SERVICE_PORTS)
            .is_none()
        {
            return Err(ConfigError::PortBase(self.service_port_base));
        }
        Ok(self)
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
