//! What peers tell each other every few milliseconds outside the log: how far they have applied it,
//! their load, replicas they could not reach; and, from the leader, the lease to use what was read.
//!
//! A **lease** lets a peer dispatch requests of bound sessions. It is measured from the moment the
//! peer *sent* its report, on a clock that counts suspended time, and lasts three seconds (`LEASE`).
//! The leader moves the session fence to an index once every peer has reported it applied, or has
//! been without a lease for sure. A new leader does not know which leases the one before it gave,
//! and so counts every silent peer as holding one for a while from the start of its reign.
//!
//! Losing messages makes balancing coarser and moves sessions later; it never makes anything wrong.

mod leases;

use std::collections::BTreeSet;
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
use leases::{LEASE, Leases};

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

/// What peers tell each other.
pub struct Share {
    node: NodeId,
    incarnation: Incarnation,
    applied: watch::Receiver<LogIndex>,
    leadership: watch::Receiver<Leadership>,
    loads: Arc<Loads>,
    suspects: Arc<Suspects>,
    leases: Mutex<Leases>,
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
            leases: Mutex::default(),
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
        lock(&self.leases).begin_reign(Instant::now(), generation);
    }

    /// This peer's controller reigns no more.
    pub fn end_reign(&self) {
        lock(&self.leases).end_reign();
    }

    /// The index that every member is sure to have applied, unless it is sure to hold no lease.
    #[must_use]
    pub fn fence_reached(&self, members: &[MemberView]) -> LogIndex {
        let applied = *self.applied.borrow();
        lock(&self.leases).fence_reached(Instant::now(), applied, self.others(members))
    }

    /// Whether nobody sends requests to `replica`, which left rotation at index `since`.
    #[must_use]
    pub fn is_drained(&self, replica: ReplicaId, since: LogIndex, members: &[MemberView]) -> bool {
        let busy_here = self
            .loads
            .own()
            .iter()
            .any(|(loaded, _)| *loaded == replica);
        !busy_here
            && *self.applied.borrow() >= since
            && lock(&self.leases).is_drained(Instant::now(), replica, since, self.others(members))
    }

    fn others(&self, members: &[MemberView]) -> impl Iterator<Item = NodeId> {
        let ids = members.iter().map(|member| member.id);
        ids.filter(move |id| *id != self.node)
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
        let leads = self.leadership.borrow().is_self;
        for suspect in report.suspects {
            self.suspects.add(suspect);
        }
        self.loads.set(from, report.incarnation, &report.loads);
        let lease = lock(&self.leases).report(
            Instant::now(),
            from,
            report.applied,
            report.loads.into_iter().collect(),
            leads,
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
