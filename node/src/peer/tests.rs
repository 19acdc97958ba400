//! Real peers on loopback, each with its own threads, port and directory.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::time::Duration;

use raftserve_store::Outcome;
use raftserve_store::command::Action;
use raftserve_store::formats::SUPPORTED;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::time::timeout;

use super::dial::Dialer;
use super::links::Purpose;
use super::wire::raft as raft_wire;
use super::*;
use crate::clock;
use crate::consensus::ProposeError;

mod appends;
mod bootstrapping;
mod copies;
mod cut_log;
mod divergence;
mod encrypted;
mod handing_over;
mod leading;
mod membership;
mod skew;
mod strangers;
mod stuck_transfer;
mod upgrade;
mod watching;

/// No condition in these tests takes nearly as long on a healthy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing is waited for that need not be.
const POLICY: MembershipPolicy = MembershipPolicy {
    promote_after: Duration::ZERO,
    promotion: raftserve_store::state::Promotion::Automatic,
    dead_after: None,
    lease: Duration::ZERO,
};

/// Ports of places: below those that the system gives to whoever asks for any, who would otherwise take that of a peer
/// that is away for a moment.
const PORTS: Range<u16> = 22_000..32_000;

/// A peer's place: its directory and address outlive its process.
struct Place {
    folder: TempDir,
    address: String,
    /// Keeps the port from other places, also while no peer is there. Nobody listens on it, so whoever calls then is refused.
    _held: Socket,
}

impl Place {
    fn new() -> Self {
        let mut tried =
            (0..PORTS.len()).map(|_| SocketAddr::from(([127, 0, 0, 1], rand::random_range(PORTS))));
        let held = tried.find_map(|address| Some((address, bind(address).ok()?)));
        let (address, held) = held.expect("a free port");
        // Not before it is bound: two that reuse a port may both have it, as long as neither listens.
        held.set_reuse_address(true).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            address: address.to_string(),
            _held: held,
        }
    }

    fn listener(&self) -> TcpListener {
        // The standard library lets it reuse the address.
        TcpListener::bind(&self.address).unwrap()
    }

    /// A peer that knows of no other.
    fn config_at(&self, listener: TcpListener) -> PeerConfig {
        PeerConfig {
            data_dir: self.folder.path().to_owned(),
            listener,
            peers: vec![self.address.clone()],
            join: Vec::new(),
            policy: POLICY,
            address: self.address.clone(),
            admin_address: "admin:7000".to_owned(),
            proxy_address: "proxy:8080".to_owned(),
            host: "host".to_owned(),
            incarnation: Incarnation(rand::random()),
            profile: Profile::Fast,
            growth: LogGrowth::default(),
            supports: SUPPORTED,
            wall_clock: clock::wall_now,
            certificates: None,
            founding: None,
            waits_for: watch::Sender::default(),
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The places of a cluster's peers.
struct Places(Vec<Place>);

impl Places {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| Place::new()).collect())
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|place| place.address.clone()).collect()
    }

    fn config(&self, place: usize) -> PeerConfig {
        self.config_at(place, self.0[place].listener())
    }

    /// A peer that listens elsewhere than where it is to be found.
    fn config_at(&self, place: usize, listener: TcpListener) -> PeerConfig {
        PeerConfig {
            peers: self.names(),
            admin_address: format!("admin-{place}:7000"),
            proxy_address: format!("proxy-{place}:8080"),
            ..self.0[place].config_at(listener)
        }
    }

    async fn start(&self, place: usize) -> Peer {
        within(start(self.config(place))).await.unwrap()
    }

    async fn start_all(&self) -> Vec<Peer> {
        let starting = (0..self.0.len()).map(|place| self.start(place));
        futures_util::future::join_all(starting).await
    }
}

async fn within<T>(condition: impl Future<Output = T>) -> T {
    timeout(PATIENCE, condition).await.expect("in time")
}

/// The place of the peer that leads among `peers`.
async fn leader_of(peers: &[Option<Peer>]) -> usize {
    let live = peers.iter().enumerate();
    let leading = live.filter_map(|(place, peer)| {
        let mut watch = peer.as_ref()?.consensus().leadership();
        Some(Box::pin(async move {
            if watch.wait_for(|now| now.is_self).await.is_err() {
                std::future::pending::<()>().await;
            }
            place
        }))
    });
    within(futures_util::future::select_all(leading)).await.0
}

fn living(peers: Vec<Peer>) -> Vec<Option<Peer>> {
    peers.into_iter().map(Some).collect()
}

async fn open_client(peer: &Peer) -> LogIndexed {
    let consensus = peer.consensus();
    let (index, outcome) = consensus
        .propose(Action::OpenClient, PATIENCE)
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Index(index));
    LogIndexed(index)
}

/// The index of an entry that opened a client session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LogIndexed(raftserve_model::LogIndex);

async fn clients_seen_by(peer: &Peer) -> usize {
    let consensus = peer.consensus();
    consensus.read_barrier(PATIENCE).await.unwrap();
    consensus.state().client_count()
}

async fn stop_all(peers: Vec<Option<Peer>>) {
    for peer in peers.into_iter().flatten() {
        peer.stop().await;
    }
}

/// Waits until a peer's state has the cluster's name, which the first leader proposes.
async fn named(peer: &Peer) {
    let consensus = peer.consensus();
    let mut applied = consensus.applied();
    let named = applied.wait_for(|_| consensus.state().cluster().is_some());
    within(named).await.unwrap();
    assert_eq!(consensus.state().cluster(), Some(peer.cluster_id()));
}
