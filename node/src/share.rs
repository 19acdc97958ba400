//! What peers tell each other every few milliseconds outside the log: how far they have applied it,
//! their load, replicas they could not reach; and, from the leader, the lease to use what was read.
//!
//! A **lease** lets a peer dispatch requests of bound sessions. It is measured from the moment the
//! peer *sent* its report, on a clock that counts suspended time, and lasts [`LEASE`]. The leader
//! moves the session fence to an index once every peer has reported it applied, or has been without
//! a lease for sure. A new leader does not know which leases the one before it gave, and so counts
//! every silent peer as holding one for [`INHERITED_LEASE`] from the start of its reign.
//!
//! Losing messages makes balancing coarser and moves sessions later; it never makes anything wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use raftserve_model::{Generation, Incarnation, LogIndex, NodeId, ReplicaId};
use raftserve_proxy::PeerLoads;
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::consensus::{Leadership, MemberView};
use crate::peer::ExchangeHandler;

/// How long a peer may use what it read without hearing from the leader: several times the longest
/// failover, so that losing a leader does not stop sessions.
pub const LEASE: Duration = Duration::from_secs(3);

/// How long a new leader counts silent peers as holding a lease: the lease, a quarter for clocks that
/// run at different rates, and a second for a deposed leader to notice, which takes it at most
/// twice the longest election timeout.
pub const INHERITED_LEASE: Duration = Duration::from_millis(4_750);

/// A peer unheard for this long is taken to be dead where only waiting, not safety, is at stake.
const PRESUMED_DEAD: Duration = Duration::from_secs(5);

/// The most suspects remembered between two reports.
const SUSPECTS_MAX: usize = 64;

/// The largest report accepted, in bytes: the loads of 10,000 replicas and room.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// What a peer reports to another.
#[derive(Debug, Encode, Decode)]
struct Report {
    incarnation: Incarnation,
    applied: LogIndex,
    /// Requests in flight from this peer, by replica; zeros left out.
    loads: Vec<(ReplicaId, u32)>,
    /// Replicas that refused a connection since the last report.
    suspects: Vec<ReplicaId>,
}

/// What is answered.
#[derive(Debug, Encode, Decode)]
struct Reply {
    /// The reign that gives a lease; none from a peer that does not lead.
    lease: Option<Generation>,
}

/// Replicas that refused a connection, to be probed at once.
#[derive(Debug, Default)]
pub struct Suspects {
    waiting: Mutex<BTreeSet<ReplicaId>>,
    added: Notify,
}

impl Suspects {
    /// Adds a suspect; dropped if there are many already.
    pub fn add(&self, replica: ReplicaId) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < SUSPECTS_MAX && waiting.insert(replica) {
            self.added.notify_one();
        }
    }

    /// Waits until there are some, and takes them. Cancel safe.
    pub async fn take(&self) -> BTreeSet<ReplicaId> {
        loop {
            let taken = self.take_now();
            if !taken.is_empty() {
                return taken;
            }
            self.added.notified().await;
        }
    }

    fn take_now(&self) -> BTreeSet<ReplicaId> {
        std::mem::take(&mut *lock(&self.waiting))
    }
}

/// Where the loads of this peer come from, and those of others go: the proxy's, once it runs.
#[derive(Debug, Default)]
pub struct Loads(OnceLock<Arc<PeerLoads>>);

impl Loads {
    /// The proxy has started.
    pub fn connect(&self, loads: Arc<PeerLoads>) {
        self.0.get_or_init(|| loads);
    }

    fn own(&self) -> Vec<(ReplicaId, u32)> {
        self.0.get().map(|loads| loads.own()).unwrap_or_default()
    }

    fn set(&self, peer: NodeId, incarnation: Incarnation, loads: &[(ReplicaId, u32)]) {
        if let Some(own) = self.0.get() {
            own.set(peer, incarnation, loads.iter().copied(), Instant::now());
        }
    }
}

/// What is known of another peer.
#[derive(Debug)]
struct Peer {
    incarnation: Incarnation,
    applied: LogIndex,
    heard: Instant,
    loads: BTreeMap<ReplicaId, u32>,
    /// When this peer, as leader, last gave it a lease in this reign.
    granted: Option<Instant>,
}

/// A reign of this peer's controller.
#[derive(Clone, Copy, Debug)]
struct Reign {
    generation: Generation,
    since: Instant,
}

/// What peers tell each other.
pub struct Share {
    node: NodeId,
    incarnation: Incarnation,
    applied: watch::Receiver<LogIndex>,
    leadership: watch::Receiver<Leadership>,
    loads: Arc<Loads>,
    suspects: Arc<Suspects>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    reign: Mutex<Option<Reign>>,
    /// Boot time in nanoseconds until which this peer holds a lease.
    lease_until: AtomicU64,
}

impl Share {
    /// Begins with no lease and no knowledge of others.
    #[must_use]
    pub fn new(
        node: NodeId,
        incarnation: Incarnation,
        applied: watch::Receiver<LogIndex>,
        leadership: watch::Receiver<Leadership>,
        loads: Arc<Loads>,
    ) -> Self {
        Self {
            node,
            incarnation,
            applied,
            leadership,
            loads,
            suspects: Arc::default(),
            peers: Mutex::default(),
            reign: Mutex::default(),
            lease_until: AtomicU64::new(0),
        }
    }

    /// Replicas that some peer could not reach.
    #[must_use]
    pub fn suspected(&self) -> Arc<Suspects> {
        Arc::clone(&self.suspects)
    }

    /// Whether this peer may dispatch requests of bound sessions now. The leader holds its lease as
    /// long as a quorum confirms it.
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        nanos(clock::boot_time()) < self.lease_until.load(Ordering::Acquire)
    }

    /// This peer's controller has begun to reign.
    pub fn begin_reign(&self, generation: Generation) {
        *lock(&self.reign) = Some(Reign {
            generation,
            since: Instant::now(),
        });
        for peer in lock(&self.peers).values_mut() {
            peer.granted = None;
        }
    }

    /// This peer's controller reigns no more.
    pub fn end_reign(&self) {
        *lock(&self.reign) = None;
    }

    /// The index that every member is sure to have applied, unless it is sure to hold no lease.
    #[must_use]
    pub fn fence_reached(&self, members: &[MemberView]) -> LogIndex {
        let Some(reign) = *lock(&self.reign) else {
            return LogIndex(0);
        };
        let peers = lock(&self.peers);
        let mut reached = *self.applied.borrow();
        for member in members.iter().filter(|member| member.id != self.node) {
            let known = peers.get(&member.id);
            let leaseless = reign.since.elapsed() > INHERITED_LEASE
                && known
                    .and_then(|peer| peer.granted)
                    .is_none_or(|granted| granted.elapsed() > INHERITED_LEASE);
            if !leaseless {
                reached = reached.min(known.map_or(LogIndex(0), |peer| peer.applied));
            }
        }
        reached
    }

    /// Whether no peer that can be heard sends requests to `replica`, which left rotation at index
    /// `since`: each has applied that entry and counts no request in flight.
    #[must_use]
    pub fn is_drained(&self, replica: ReplicaId, since: LogIndex) -> bool {
        let idle_here = !self
            .loads
            .own()
            .iter()
            .any(|(loaded, count)| *loaded == replica && *count > 0);
        let settled = lock(&self.reign).is_some_and(|reign| reign.since.elapsed() > PRESUMED_DEAD);
        let peers = lock(&self.peers);
        let heard_all = settled || !peers.is_empty();
        idle_here
            && heard_all
            && peers
                .values()
                .filter(|peer| peer.heard.elapsed() < PRESUMED_DEAD)
                .all(|peer| peer.applied >= since && !peer.loads.contains_key(&replica))
    }

    fn renew_own_lease(&self) {
        if self.leadership.borrow().is_self {
            self.extend_lease(clock::boot_time() + LEASE);
        }
    }

    fn extend_lease(&self, until: Duration) {
        self.lease_until.fetch_max(nanos(until), Ordering::AcqRel);
    }

    fn take_report(&self, from: NodeId, report: Report) -> Reply {
        let is_leader = self.leadership.borrow().is_self;
        let lease = (*lock(&self.reign))
            .filter(|_| is_leader)
            .map(|reign| reign.generation);
        for suspect in report.suspects {
            self.suspects.add(suspect);
        }
        self.loads.set(from, report.incarnation, &report.loads);
        let mut peers = lock(&self.peers);
        let before = peers.remove(&from);
        let now = Instant::now();
        let same_life = |peer: &Peer| peer.incarnation == report.incarnation;
        let granted = match lease {
            Some(_) => Some(now),
            None => before
                .as_ref()
                .filter(|peer| same_life(peer))
                .and_then(|peer| peer.granted),
        };
        peers.insert(
            from,
            Peer {
                incarnation: report.incarnation,
                applied: report.applied,
                heard: now,
                loads: report.loads.into_iter().collect(),
                granted,
            },
        );
        Reply { lease }
    }
}

impl ExchangeHandler for Share {
    fn outgoing(&self) -> Vec<u8> {
        self.renew_own_lease();
        let suspects = if self.leadership.borrow().is_self {
            Vec::new()
        } else {
            self.suspects.take_now().into_iter().collect()
        };
        encode(&Report {
            incarnation: self.incarnation,
            applied: *self.applied.borrow(),
            loads: self.loads.own(),
            suspects,
        })
    }

    fn incoming(&self, from: NodeId, body: &[u8]) -> Vec<u8> {
        let reply = match decode::<Report>(body) {
            Some(report) => self.take_report(from, report),
            None => Reply { lease: None },
        };
        encode(&reply)
    }

    fn reply(&self, _from: NodeId, sent_at: Instant, body: &[u8]) {
        if let Some(Reply { lease: Some(_) }) = decode(body) {
            self.extend_lease(clock::boot_time().saturating_sub(sent_at.elapsed()) + LEASE);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves the data whole, even if a panic cut it short.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, bincode::config::standard())
        .expect("encoding into memory does not fail")
}

/// None if it is not one: a peer of another version, whose news we do without.
fn decode<T: Decode<()>>(body: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<REPORT_BYTES_MAX>();
    bincode::decode_from_slice(body, config)
        .ok()
        .map(|(value, _)| value)
}
