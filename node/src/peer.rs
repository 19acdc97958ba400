//! A peer of the cluster: its identity, its Raft node, and its talk with the other peers.
//!
//! Raft, its transport and its timers have a runtime and threads of their own, so that whatever else
//! the process does costs no election. Everybody else reaches them through [`Consensus`].

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use raftserve_model::{ClusterId, Incarnation, NodeId, Unsupported, VersionRange};
use raftserve_store::checkpoint::Checkpoint;
use raftserve_store::command::Action;
use raftserve_store::identity::{DataDir, IdentityError};
use raftserve_store::raft::acked::Acked;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

mod agreement;
mod bootstrap;
mod calls;
mod clock;
pub(crate) mod core;
mod dial;
mod directory;
mod exchange;
mod foreign;
mod leadership;
mod links;
mod lives;
mod locate;
mod network;
pub(crate) mod pace;
mod plan_file;
mod port;
mod proposals;
mod remarks;
mod room;
mod rounds;
mod rpc;
mod server;
mod snapshots;
mod steward;
mod store;
pub(crate) mod wire;

pub use self::core::{FinalizeError, Release, Storage};
pub use agreement::Compared;
pub use bootstrap::{BootstrapError, Claim, Founding};
pub use exchange::ExchangeHandler;
pub use foreign::Foreigner;
pub use room::Room;
pub use steward::MembershipPolicy;
pub(crate) use steward::TRAILING_MAX;
pub use steward::plan::Vote;
pub use store::{LogGrowth, OpenError, Profile};
pub use wire::{Announcement, MemberHealth, Remarks};

use self::agreement::Agreement;
use self::bootstrap::{Cradle, Wish};
use self::clock::LogClock;
use self::core::{Core, Tidings};
use self::dial::Dialer;
use self::directory::{Caller, Directory};
use self::exchange::Slot;
use self::leadership::{Confirmation, Follower};
use self::links::{Links, Voice, frame};
use self::network::Network;
use self::network::snapshot::Inbox;
use self::proposals::proposals;
use self::remarks::Remarked;
use self::rounds::rounds;
use self::server::{Running, Server};
use self::steward::HealthBook;
use self::store::{Identity, Opened, RaftHandle, SharedDir, raft_config_keeping};
use self::wire::MESSAGE_BYTES_MAX;
use crate::access::Certificates;
use crate::access::certificates::Protocol;
use crate::clock::WallClock;
use crate::consensus::{Consensus, Leadership};

/// Threads for Raft and its transport. With one, what Raft's tasks tell each other costs no wake of another thread,
/// of which there are some ten on the way of each group of writes; with two, writes took half as much processor time
/// again. What is long has threads elsewhere: syncs, snapshots, and state that is read or written.
const THREADS: usize = 1;

/// How long the first leader's naming of the cluster may take before it is tried again.
const NAMING: Duration = Duration::from_secs(2);

/// How long tasks may take to end before their runtime goes without them.
const STOP: Duration = Duration::from_secs(2);

/// What a peer must be told.
#[derive(Debug)]
pub struct PeerConfig {
    /// Where its identity, log and state live.
    pub data_dir: PathBuf,
    /// The peer port, bound.
    pub listener: TcpListener,
    /// `host:port` of every peer's peer port, in the order that all peers are given. Used to
    /// bootstrap, and later only to look for peers that have moved.
    pub peers: Vec<String>,
    /// `host:port` of peers of a running cluster that this peer is to join; none if it is one of `peers`.
    pub join: Vec<String>,
    /// When members come and go by themselves.
    pub policy: MembershipPolicy,
    /// This peer's own, as the others reach it.
    pub address: String,
    /// `host:port` of its admin port, as the others reach it.
    pub admin_address: String,
    /// `host:port` of its proxy port, as the others reach it.
    pub proxy_address: String,
    /// Equal for peers that share a host.
    pub host: String,
    /// This process's life.
    pub incarnation: Incarnation,
    /// How patient elections are.
    pub profile: Profile,
    /// How far the log grows.
    pub growth: LogGrowth,
    /// The cluster versions that this release can work in.
    pub supports: VersionRange,
    /// What entries show people as their time.
    pub wall_clock: WallClock,
    /// By which this peer and the others know each other; without, nothing of theirs is encrypted.
    pub certificates: Option<Arc<Certificates>>,
    /// Who knows whether there was a cluster here before; nobody beside the data directories, if none.
    pub founding: Option<Arc<dyn Founding>>,
    /// Where it says what it waits for while it belongs to no cluster; empty until it waits for anything.
    pub waits_for: watch::Sender<String>,
}

/// Why a peer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no identity to be had.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The log or the state did not open.
    #[error("cannot open the log and the state")]
    Store {
        /// What is wrong with them.
        source: OpenError,
    },
    /// The threads or the port.
    #[error("cannot {what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// This release cannot go on where the log does: found out when the first entries were applied.
    #[error("cannot run this release")]
    Unsupported(#[source] Unsupported),
    /// Raft itself.
    #[error("cannot start Raft: {0}")]
    Raft(String),
}

/// A runtime that may be let go of anywhere.
struct Threads(Option<Runtime>);

impl Threads {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft")
            .on_thread_start(raftserve_store::precedence::take)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> &Handle {
        let runtime = self.0.as_ref();
        runtime.expect("taken only when dropped").handle()
    }

    async fn stop(mut self) {
        if let Some(runtime) = self.0.take() {
            // Waits for threads, which may only be done where waiting is allowed.
            let stopping = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP));
            let _ = stopping.await;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running peer.
pub struct Peer {
    core: Arc<Core>,
    dir: SharedDir,
    exchange: Slot,
    fatal: watch::Receiver<Option<String>>,
    checkpoint: Checkpoint,
    threads: Threads,
}

/// Starts a peer, bootstrapping the cluster if that is to be done. Waits for the other peers as long
/// as that takes; dropping the future gives up.
///
/// # Errors
/// [`StartError`].
pub async fn start(config: PeerConfig) -> Result<Peer, StartError> {
    let threads = Threads::start().map_err(|source| StartError::Io {
        what: "start Raft's threads",
        source,
    })?;
    let handle = threads.handle().clone();
    let begun = handle.spawn(begin(config, handle.clone()));
    let begun = Abort(begun).join().await;
    let begun = begun?;
    Ok(Peer {
        dir: begun.dir,
        core: begun.core,
        exchange: begun.exchange,
        fatal: begun.fatal,
        checkpoint: begun.checkpoint,
        threads,
    })
}

/// Ends a task when its starter gives up.
struct Abort<T>(tokio::task::JoinHandle<T>);

impl<T> Abort<T> {
    async fn join(mut self) -> T {
        match (&mut self.0).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("only dropping this aborts the task"),
            },
        }
    }
}

impl<T> Drop for Abort<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Begun {
    core: Arc<Core>,
    dir: SharedDir,
    exchange: Slot,
    fatal: watch::Receiver<Option<String>>,
    checkpoint: Checkpoint,
}

async fn begin(config: PeerConfig, runtime: Handle) -> Result<Begun, StartError> {
    let dir = open_dir(config.data_dir.clone()).await?;
    let wish = Wish {
        promotion: config.policy.promotion,
        supports: config.supports,
        incarnation: config.incarnation,
    };
    let (names, join) = (config.peers.clone(), config.join.clone());
    let dialer = Dialer::new(config.certificates.clone());
    let (address, founding) = (config.address.clone(), config.founding.clone());
    let cradle = Cradle::new(dir, names, address, join, wish, dialer, founding);
    let cradle = Arc::new(cradle.telling(config.waits_for.clone()));
    let running = Arc::new(OnceLock::new());
    serve(
        &config,
        Server::new(Arc::clone(&cradle), Arc::clone(&running)),
    )?;

    let identity = cradle.await_identity().await?;
    tracing::info!(cluster = %identity.cluster, peer = %identity.node, "this peer has an identity");
    let opened = cradle
        .dir()
        .open_store(config.supports, config.growth)
        .await;
    let opened = opened.map_err(|source| StartError::Store { source })?;
    let (snapshots, trigger) = (
        Arc::clone(&opened.snapshots),
        opened.trigger.clone().after(config.growth.snapshot_entries),
    );
    let retention = opened.retention.clone().keeping(config.growth.kept);
    let growth = config.growth;
    let (core, fatal, checkpoint) = run_raft(&config, identity, opened, runtime).await?;
    let exchange = Slot::default();
    let set = running.set(Running {
        core: Arc::clone(&core),
        exchange: exchange.clone(),
        snapshots: Arc::new(Inbox::new(snapshots, Arc::new(core.raft.clone()))),
        dir: cradle.dir().clone(),
    });
    assert!(set.is_ok(), "a peer begins once");
    cradle.complete(&core.raft).await?;
    tokio::spawn(exchange::run(Arc::clone(&core), exchange.clone()));
    let places = [config.peers, config.join].concat();
    tokio::spawn(locate::run(Arc::clone(&core), places));
    tokio::spawn(steward::run(Arc::clone(&core)));
    let segment = growth.segment_size;
    tokio::spawn(room::run(Arc::clone(&core), config.data_dir, segment));
    tokio::spawn(snapshots::run(
        Arc::clone(&core),
        trigger,
        retention,
        growth,
    ));
    tokio::spawn(name_cluster(Arc::clone(&core)));
    tokio::spawn(note_removal(core.removed.subscribe(), cradle.dir().clone()));
    Ok(Begun {
        core,
        dir: cradle.dir().clone(),
        exchange,
        fatal,
        checkpoint,
    })
}

/// Notes durably that this peer is removed as soon as it is told: it may yet drain for long, or crash.
async fn note_removal(mut removed: watch::Receiver<bool>, dir: SharedDir) {
    if removed.wait_for(|removed| *removed).await.is_ok() {
        dir.note_removed().await;
    }
}

/// Who is met at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// A peer of that cluster.
    Member {
        /// Its cluster.
        cluster: ClusterId,
        /// Its id.
        node: NodeId,
    },
    /// A peer that belongs to no cluster.
    Pristine,
    /// Nobody answered as a peer does.
    Nobody,
    /// Somebody takes connections there and does not say who it is: a peer that is stuck or stopped, or one whose
    /// certificates and the asker's do not fit.
    Unreadable,
}

/// Asks whoever is at `address` who it is, with TLS if there are certificates.
pub async fn meet(address: &str, certificates: Option<Arc<Certificates>>) -> Met {
    let hello = wire::HelloRequest { from: None };
    let dialer = Dialer::new(certificates);
    match bootstrap::greet(&dialer, address, &hello)
        .await
        .map(|reply| reply.standing)
    {
        Ok(wire::Standing::Member { cluster, node, .. }) => Met::Member { cluster, node },
        Ok(wire::Standing::Pristine { .. }) => Met::Pristine,
        // Whatever hindered the talk, be it TLS: who takes connections may be a peer that runs.
        Err(_)
            if Dialer::default()
                .dial(address, Protocol::Grpc)
                .await
                .is_ok() =>
        {
            Met::Unreadable
        }
        Err(_) => Met::Nobody,
    }
}

/// How long a peer waits for its former self to end: a pod that was deleted by force has a successor, on the same volume,
/// before its own processes are gone. One that is started twice by mistake is told so a little later for it.
const FORMER_SELF_MAX: Duration = Duration::from_secs(10);

/// How often it looks.
const FORMER_SELF_LOOK: Duration = Duration::from_millis(50);

async fn open_dir(folder: PathBuf) -> Result<DataDir, StartError> {
    let began = Instant::now();
    let mut waits = false;
    loop {
        let folder = folder.clone();
        let opening = tokio::task::spawn_blocking(move || DataDir::open(&folder));
        match opening.await {
            Ok(Err(error @ IdentityError::Locked { .. })) if began.elapsed() < FORMER_SELF_MAX => {
                if !waits {
                    tracing::info!(%error, "waiting for it to end");
                }
                waits = true;
                sleep(FORMER_SELF_LOOK).await;
            }
            Ok(opened) => return Ok(opened.map_err(BootstrapError::from)?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn serve(config: &PeerConfig, server: Server) -> Result<(), StartError> {
    let failed = |source| StartError::Io {
        what: "serve the peer port",
        source,
    };
    let listener = config.listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let incoming = port::serve(listener, server.clone(), config.certificates.clone());
    let transfers = rpc::snapshot_transfer_server::SnapshotTransferServer::new(server.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = rpc::peer_server::PeerServer::new(server)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let window = u32::try_from(MESSAGE_BYTES_MAX).ok();
    let serving = tonic::transport::Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .add_service(service)
        .add_service(transfers)
        .serve_with_incoming(incoming);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the peer port is not served any more");
        }
    });
    Ok(())
}

async fn run_raft(
    config: &PeerConfig,
    identity: Identity,
    opened: Opened,
    runtime: Handle,
) -> Result<(Arc<Core>, watch::Receiver<Option<String>>, Checkpoint), StartError> {
    let me = identity.node;
    let directory = Arc::new(Directory::new(identity.cluster, me));
    let caller = Caller {
        cluster: identity.cluster,
        target: me,
        node: me,
        nonce: identity.nonce,
        life: Some(config.incarnation),
    };
    let announcement = announcement(config, &identity);
    let (fatal, failed) = watch::channel(None);
    let voice = Voice {
        said: frame(&announcement),
        fatal: fatal.clone(),
    };
    let links = Arc::new(Links::new(
        caller,
        Some(voice),
        Dialer::new(config.certificates.clone()),
        Arc::clone(&directory),
        runtime.clone(),
    ));
    let raft_config = Arc::new(raft_config_keeping(config.profile, config.growth.kept));
    let acked = Arc::new(Acked::default());
    let network = Network::new(me, Arc::clone(&links), Arc::clone(&acked));
    let raft = RaftHandle::new(
        me,
        Arc::clone(&raft_config),
        network,
        opened.log,
        opened.machine,
    )
    .await
    .map_err(|error| match opened.reader.unsupported() {
        Some(unsupported) => StartError::Unsupported(unsupported),
        None => StartError::Raft(error.to_string()),
    })?;
    let (leadership, leads) = watch::channel(Leadership::default());
    let patience = Duration::from_millis(2 * raft_config.election_timeout_max);
    let confirmation = Arc::new(Confirmation::new(patience));
    let follower = Follower {
        me,
        raft: raft.clone(),
        directory: Arc::clone(&directory),
        leadership,
        fatal: fatal.clone(),
        log: opened.wal.watch_failure(),
        heartbeat: Duration::from_millis(raft_config.heartbeat_interval),
        confirmation: Arc::clone(&confirmation),
        reader: opened.reader.clone(),
    };
    tokio::spawn(follower.run());
    let clock = LogClock::new(me, opened.reader.last_stamp());
    let news = pace::paced(opened.reader.news());
    let (proposals, groups) = proposals(me);
    let proposed_to = raft.clone();
    tokio::spawn(groups.run(move |commands| {
        let raft = proposed_to.clone();
        async move { raft.client_write_many(commands).await }
    }));
    let (reads, read_rounds) = rounds();
    let core = Core {
        identity,
        raft,
        reader: opened.reader,
        snapshots: opened.snapshots,
        wal: opened.wal,
        links,
        acked,
        directory,
        leadership: leads,
        confirmation,
        announcement,
        clock,
        wall_clock: config.wall_clock,
        agreement: Agreement::new(me),
        fatal,
        policy: config.policy,
        tidings: Tidings::default(),
        room: room::Seen::default(),
        health: HealthBook::default(),
        renewed: Mutex::default(),
        dismissing: tokio::sync::Mutex::default(),
        remarks: Remarked::default(),
        removed: watch::Sender::new(false),
        news,
        proposals,
        reads,
        runtime,
    };
    let core = Arc::new(core);
    tokio::spawn(Arc::clone(&core).keep_time());
    tokio::spawn(Arc::clone(&core).confirm_reads(read_rounds));
    Ok((core, failed, opened.checkpoint))
}

fn announcement(config: &PeerConfig, identity: &Identity) -> Announcement {
    Announcement {
        cluster: identity.cluster,
        node: identity.node,
        nonce: identity.nonce,
        incarnation: config.incarnation,
        peer_address: config.address.clone(),
        admin_address: config.admin_address.clone(),
        proxy_address: config.proxy_address.clone(),
        host: config.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        supports: config.supports,
    }
}

/// Whoever leads first names the cluster in its log, so that a crash between initialising Raft and
/// naming the cluster leaves nothing undone.
async fn name_cluster(core: Arc<Core>) {
    let mut leadership = core.leadership.clone();
    let cluster = core.identity.cluster;
    loop {
        if leadership.wait_for(|now| now.is_self).await.is_err() {
            return;
        }
        let until = Instant::now() + NAMING;
        // The new leader's own state may be behind what its predecessor wrote.
        if core.read_barrier(until).await.is_err() {
            continue;
        }
        if core.reader.state().cluster().is_some() {
            return;
        }
        let action = Action::InitCluster { cluster };
        if let Err(error) = core.propose_as_leader(action, until).await {
            tracing::debug!(%error, "the cluster is not named yet");
        }
    }
}

impl Peer {
    /// The handle by which the rest of the process reaches the agreed log.
    #[must_use]
    pub fn consensus(&self) -> Consensus {
        Consensus::over(Arc::clone(&self.core))
    }

    /// Sets what peers exchange between log entries.
    pub fn set_exchange(&self, handler: Arc<dyn ExchangeHandler>) {
        self.exchange.set(handler);
    }

    /// The cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.core.identity.cluster
    }

    /// This peer's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.core.identity.node
    }

    /// Why Raft has ended, once it has: the process must then end too.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.clone()
    }

    /// Becomes true once the cluster has said that this peer is no member any more: it must then end, and
    /// never come back with this data directory.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.core.removed.subscribe()
    }

    /// Stops Raft and its threads, and writes the state down so that the next start is quick. The log
    /// is on disk when this returns.
    pub async fn stop(self) {
        let failed = self.fatal.borrow().is_some();
        let is_removed = *self.core.removed.borrow();
        if is_removed {
            // As `note_removal` does, which may not have come to it.
            self.dir.note_removed().await;
        }
        // A snapshot under way is waited for.
        self.core.snapshots.keep_calm(false);
        let raft = self.core.raft.clone();
        let stopping = self
            .threads
            .handle()
            .spawn(async move { raft.shutdown().await });
        if let Ok(Err(error)) = stopping.await {
            tracing::warn!(%error, "Raft did not end well");
        }
        self.threads.stop().await;
        if failed {
            // A state that is in doubt must not be what the next start begins with.
            return;
        }
        let checkpoint = self.checkpoint;
        let written = tokio::task::spawn_blocking(|| checkpoint.stop()).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the next start will read the whole log");
        }
    }
}

#[cfg(test)]
mod tests;
