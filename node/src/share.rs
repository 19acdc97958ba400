//! What peers tell each other every few milliseconds outside the log: how far they have applied it,
//! their load, replicas they could not reach; and, from the leader, the lease to use what was read.
//!
//! A **lease** lets a peer dispatch requests of bound sessions. It is measured from the moment the
//! peer *sent* its report, on a clock that counts suspended time, and lasts three seconds (`LEASE`).
//! The leader moves the session fence to an index once every peer has reported it applied, or has
//! been without a lease for sure. A new leader does not know which leases the one before it gave,
//! and so counts every silent peer as holding one for a while from the start of its reign.
//!
//! A peer that is not a member yet, by an entry that is committed, gets no lease, and one that is to be removed gets
//! none any more and stays a member until what it was given is surely over: so the members are all that
//! the fence has to wait for.
//!
//! Losing messages makes balancing coarser and moves sessions later; it never makes anything wrong.

mod leases;

pub use leases::LEASE_OVER;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use raftserve_model::{Generation, Incarnation, LogIndex, NodeId, ReplicaId};
use raftserve_proxy::PeerLoads;
use raftserve_store::codec;
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::consensus::{Consensus, MemberView};
use crate::peer::ExchangeHandler;
use leases::{LEASE, Leases, Progress};

/// The most suspects remembered between two reports.
const SUSPECTS_MAX: usize = 64;

/// The largest report accepted, in bytes: the loads of 10,000 replicas and room.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// What a peer reports to another.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
struct Report {
    incarnation: Incarnation,
    applied: LogIndex,
    /// What its routes reflect.
    routed: LogIndex,
    /// Requests in flight from this peer, by replica; zeros left out.
    loads: Vec<(ReplicaId, u32)>,
    /// Replicas that refused a connection since the last report.
    suspects: Vec<ReplicaId>,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
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

    fn is_empty(&self) -> bool {
        self.0.get().is_none_or(|loads| loads.is_empty())
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

/// How sure this peer may be that it leads.
pub trait LeaderView: Send + Sync + 'static {
    /// The boot time until which it led for sure; none if it does not lead.
    fn confirmed_at(&self) -> Option<Duration>;
    /// How long it is believed to lead without a quorum's word.
    fn patience(&self) -> Duration;
    /// Whether the fence waits for this peer: nobody else is given a lease.
    fn counts(&self, node: NodeId) -> bool;
}

impl LeaderView for Consensus {
    fn confirmed_at(&self) -> Option<Duration> {
        self.confirmed_at()
    }

    fn patience(&self) -> Duration {
        self.patience()
    }

    fn counts(&self, node: NodeId) -> bool {
        self.counts(node)
    }
}

/// What peers tell each other.
pub struct Share {
    node: NodeId,
    incarnation: Incarnation,
    applied: watch::Receiver<LogIndex>,
    routed: watch::Receiver<LogIndex>,
    leader: Box<dyn LeaderView>,
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
        routed: watch::Receiver<LogIndex>,
        leader: impl LeaderView,
        loads: Arc<Loads>,
    ) -> Self {
        Self {
            node,
            incarnation,
            applied,
            routed,
            leases: Mutex::new(Leases::new(leader.patience())),
            leader: Box::new(leader),
            loads,
            suspects: Arc::default(),
            lease_until: AtomicU64::new(0),
        }
    }

    /// Replicas that some peer could not reach.
    #[must_use]
    pub fn suspected(&self) -> Arc<Suspects> {
        Arc::clone(&self.suspects)
    }

    /// Whether this peer may dispatch requests of bound sessions now. The leader holds its lease from
    /// when it sent what a quorum has answered.
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        if self.lease_runs() {
            return true;
        }
        // A leader that has nobody to send anything to renews its lease here only.
        self.renew_own_lease();
        self.lease_runs()
    }

    fn lease_runs(&self) -> bool {
        nanos(clock::boot_time()) < self.lease_until.load(Ordering::Acquire)
    }

    /// This peer's controller has begun to reign.
    pub fn begin_reign(&self, generation: Generation, fence: LogIndex) {
        lock(&self.leases).begin_reign(Instant::now(), generation, fence);
    }

    /// This peer's controller reigns no more.
    pub fn end_reign(&self) {
        lock(&self.leases).end_reign();
    }

    /// The index, up to `wanted`, that every member is sure to have applied, unless it is sure to hold
    /// no lease. Who is behind it gets no lease from now on.
    #[must_use]
    pub fn fence_reached(&self, wanted: LogIndex, members: &[MemberView]) -> LogIndex {
        let applied = *self.applied.borrow();
        let others = self.others(members);
        lock(&self.leases).fence_reached(Instant::now(), wanted, applied, others)
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
            && *self.routed.borrow() >= since
            && lock(&self.leases).is_drained(Instant::now(), replica, since, self.others(members))
    }

    fn others(&self, members: &[MemberView]) -> impl Iterator<Item = NodeId> {
        let ids = members.iter().map(|member| member.id);
        ids.filter(move |id| *id != self.node)
    }

    fn renew_own_lease(&self) {
        if let Some(confirmed) = self.leader.confirmed_at()
            && lock(&self.leases).reigns()
        {
            self.extend_lease(confirmed + LEASE);
        }
    }

    /// Looked at afresh, since what was true when this thread was paused need not be now.
    fn leads_now(&self) -> bool {
        self.leader.confirmed_at().is_some_and(|confirmed| {
            clock::boot_time().saturating_sub(confirmed) <= self.leader.patience()
        })
    }

    fn extend_lease(&self, until: Duration) {
        self.lease_until.fetch_max(nanos(until), Ordering::AcqRel);
    }

    fn take_report(&self, from: NodeId, report: Report) -> Reply {
        for suspect in report.suspects {
            self.suspects.add(suspect);
        }
        self.loads.set(from, report.incarnation, &report.loads);
        let progress = Progress {
            applied: report.applied,
            routed: report.routed,
        };
        let loads = report.loads.into_iter().collect();
        let may_lease = self.leads_now() && self.leader.counts(from);
        let mut leases = lock(&self.leases);
        let lease = leases.report(Instant::now(), from, progress, loads, may_lease);
        Reply { lease }
    }
}

impl ExchangeHandler for Share {
    fn has_news(&self) -> bool {
        !self.loads.is_empty()
    }

    fn outgoing(&self) -> Vec<u8> {
        self.renew_own_lease();
        let suspects = if self.leader.confirmed_at().is_some() {
            Vec::new()
        } else {
            self.suspects.take_now().into_iter().collect()
        };
        encode(&Report {
            incarnation: self.incarnation,
            applied: *self.applied.borrow(),
            routed: *self.routed.borrow(),
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

    fn reply(&self, _from: NodeId, sent_at: Duration, body: &[u8]) {
        if let Some(Reply { lease: Some(_) }) = decode(body) {
            self.extend_lease(sent_at + LEASE);
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

/// As a frame, which begins with its version ([`raftserve_store::formats::EXCHANGE`]).
fn encode<T: Encode>(value: &T) -> Vec<u8> {
    codec::encode(value).expect("what a peer reports is bounded far below a frame, and encodes")
}

/// None if it is not one: a peer of another version, whose news we do without.
fn decode<T: Decode<()>>(body: &[u8]) -> Option<T> {
    (body.len() <= REPORT_BYTES_MAX)
        .then(|| codec::decode(body).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::wire::kept::Kept;

    #[test]
    fn news_keep_their_bytes() {
        let kept = Kept::of(include_str!("peer/wire/v1/news.txt"));
        let report = Report {
            incarnation: Incarnation(1),
            applied: LogIndex(2),
            routed: LogIndex(3),
            loads: vec![(ReplicaId::default(), 4)],
            suspects: vec![ReplicaId::default()],
        };
        kept.bytes("report", &encode(&report), |kept| {
            decode(kept) == Some(report)
        });
        let reply = Reply {
            lease: Some(Generation(5)),
        };
        assert_eq!(encode(&reply)[0], raftserve_store::formats::EXCHANGE);
        kept.bytes("reply", &encode(&reply), |kept| decode(kept) == Some(reply));
        kept.finish();
    }

    struct Alone;

    impl LeaderView for Alone {
        fn confirmed_at(&self) -> Option<Duration> {
            Some(clock::boot_time())
        }

        fn patience(&self) -> Duration {
            Duration::from_millis(600)
        }

        fn counts(&self, _: NodeId) -> bool {
            true
        }
    }

    #[test]
    fn a_sole_peer_holds_its_lease_while_it_reigns_though_it_has_nobody_to_tell() {
        let index = || watch::channel(LogIndex(0)).1;
        let share = Share::new(
            NodeId(1),
            Incarnation(1),
            index(),
            index(),
            Alone,
            Arc::default(),
        );
        assert!(!share.holds_lease());
        share.begin_reign(Generation(1), LogIndex(0));
        assert!(share.holds_lease());
    }
}
