//! How many requests each replica has in flight: this peer's own, counted exactly, and what the other
//! peers last said of theirs (policy L1).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raftserve_model::{Incarnation, NodeId, ReplicaId};

/// How long a peer's report counts. Peers report every 10-50 ms, so ten to fifty lost reports in a row
/// mean that the peer is gone, and with it its requests.
pub(crate) const REPORT_TTL: Duration = Duration::from_millis(500);

/// The most peers whose reports are kept: far above any cluster of voters and learners.
const PEERS_MAX: usize = 64;

/// The most that one peer's report adds to one replica: with [`PEERS_MAX`] peers the sum stays far from
/// overflow, and no real replica has a million requests in flight.
const REPORTED_LOAD_MAX: u32 = 1 << 20;

/// One replica's load, on a cache line of its own: workers write it with every request.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Gauge {
    own: AtomicU32,
    /// The sum over the live reports of other peers; written under the lock of [`PeerLoads`] only.
    peers: AtomicU32,
}

impl Gauge {
    /// Own and reported requests in flight.
    pub(crate) fn total(&self) -> u32 {
        self.own
            .load(Ordering::Relaxed)
            .saturating_add(self.peers.load(Ordering::Relaxed))
    }

    fn shift(&self, before: u32, after: u32) {
        let sum = self.peers.load(Ordering::Relaxed);
        self.peers
            .store(sum.saturating_sub(before) + after, Ordering::Relaxed);
    }
}

/// One request in flight at a replica: counted from its making to its drop, so exactly once whatever
/// ends the request.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Gauge>);

impl InFlight {
    pub(crate) fn start(gauge: &Arc<Gauge>) -> Self {
        gauge.own.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(gauge))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Report {
    incarnation: Incarnation,
    /// The life of the peer before this one, whose late reports are ignored.
    retired: Option<Incarnation>,
    received: Instant,
    loads: HashMap<ReplicaId, u32>,
}

#[derive(Debug, Default)]
struct Inner {
    gauges: HashMap<ReplicaId, Arc<Gauge>>,
    reports: HashMap<NodeId, Report>,
}

/// The loads of all replicas. Its lock is taken when routes change and when a report comes in, never
/// by a request.
#[derive(Debug, Default)]
pub struct PeerLoads {
    inner: Mutex<Inner>,
}

impl PeerLoads {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics between two writes that belong together.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a peer's report of all its requests in flight, in place of its last one. It counts for
    /// half a second from `now`. A report of a former life of that peer is ignored.
    pub fn set(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        loads: impl IntoIterator<Item = (ReplicaId, u32)>,
        now: Instant,
    ) {
        let mut inner = self.lock();
        let known = inner.reports.get(&node);
        if known.is_some_and(|report| report.retired == Some(incarnation)) {
            return;
        }
        if known.is_none() && inner.reports.len() >= PEERS_MAX {
            return;
        }
        let retired = known.and_then(|report| {
            let same = report.incarnation == incarnation;
            if same {
                report.retired
            } else {
                Some(report.incarnation)
            }
        });
        let loads = loads
            .into_iter()
            .map(|(replica, load)| (replica, load.min(REPORTED_LOAD_MAX)))
            .collect();
        let report = Report {
            incarnation,
            retired,
            received: now,
            loads,
        };
        inner.replace(node, Some(report));
    }

    /// Forgets the reports that are older than half a second at `now`.
    pub fn expire(&self, now: Instant) {
        let mut inner = self.lock();
        let stale: Vec<NodeId> = inner
            .reports
            .iter()
            .filter(|(_, report)| now.saturating_duration_since(report.received) >= REPORT_TTL)
            .map(|(node, _)| *node)
            .collect();
        for node in stale {
            inner.replace(node, None);
        }
    }

    /// The gauge of a replica, made if it is new.
    pub(crate) fn gauge(&self, replica: ReplicaId) -> Arc<Gauge> {
        let mut inner = self.lock();
        let Inner { gauges, reports } = &mut *inner;
        let gauge = gauges.entry(replica).or_insert_with(|| {
            let gauge = Gauge::default();
            for report in reports.values() {
                gauge.shift(0, report.loads.get(&replica).copied().unwrap_or(0));
            }
            Arc::new(gauge)
        });
        Arc::clone(gauge)
    }

    /// Forgets the gauges that no worker and no request holds.
    pub(crate) fn prune(&self) {
        self.lock()
            .gauges
            .retain(|_, gauge| Arc::strong_count(gauge) > 1);
    }

    /// Whether there is no replica that a load could be about.
    pub fn is_empty(&self) -> bool {
        self.lock().gauges.is_empty()
    }

    /// This peer's own requests in flight, by replica; replicas without any are left out.
    pub fn own(&self) -> Vec<(ReplicaId, u32)> {
        let inner = self.lock();
        let own = inner.gauges.iter().filter_map(|(replica, gauge)| {
            let own = gauge.own.load(Ordering::Relaxed);
            (own > 0).then_some((*replica, own))
        });
        let mut own: Vec<_> = own.collect();
        own.sort_unstable();
        own
    }
}

impl Inner {
    fn replace(&mut self, node: NodeId, report: Option<Report>) {
        let before = self.reports.remove(&node);
        let load_in = |report: &Option<Report>, replica: &ReplicaId| {
            let loads = report.as_ref().map(|report| &report.loads);
            loads.and_then(|loads| loads.get(replica)).copied()
        };
        for (replica, gauge) in &self.gauges {
            let (was, is) = (load_in(&before, replica), load_in(&report, replica));
            if was != is {
                gauge.shift(was.unwrap_or(0), is.unwrap_or(0));
            }
        }
        if let Some(report) = report {
            self.reports.insert(node, report);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raftserve_model::ServiceId;

    use super::*;

    fn replica(number: u32) -> ReplicaId {
        ReplicaId {
            service: ServiceId(1),
            number,
        }
    }

    #[test]
    fn own_requests_count_until_dropped() {
        let loads = PeerLoads::default();
        assert!(loads.is_empty());
        let gauge = loads.gauge(replica(1));
        let first = InFlight::start(&gauge);
        let second = InFlight::start(&gauge);
        assert_eq!(loads.own(), [(replica(1), 2)]);
        assert!(!loads.is_empty());
        drop(first);
        assert_eq!(gauge.total(), 1);
        drop(second);
        assert_eq!(loads.own(), []);
    }

    #[test]
    fn a_dead_peer_counts_for_its_ttl_only() {
        let loads = PeerLoads::default();
        let start = Instant::now();
        loads.set(NodeId(2), Incarnation(7), [(replica(1), 5)], start);
        let gauge = loads.gauge(replica(1));
        assert_eq!(gauge.total(), 5, "a gauge made later knows earlier reports");
        loads.expire(start + REPORT_TTL - Duration::from_millis(1));
        assert_eq!(gauge.total(), 5);
        loads.expire(start + REPORT_TTL);
        assert_eq!(gauge.total(), 0);
    }

    #[test]
    fn a_restarted_peer_replaces_its_former_life_for_good() {
        let loads = PeerLoads::default();
        let now = Instant::now();
        let gauge = loads.gauge(replica(1));
        loads.set(NodeId(2), Incarnation(7), [(replica(1), 5)], now);
        loads.set(NodeId(2), Incarnation(8), [(replica(1), 1)], now);
        loads.set(NodeId(2), Incarnation(7), [(replica(1), 9)], now);
        assert_eq!(gauge.total(), 1);
    }

    #[test]
    fn unused_gauges_are_forgotten() {
        let loads = PeerLoads::default();
        let held = loads.gauge(replica(1));
        drop(loads.gauge(replica(2)));
        loads.prune();
        assert_eq!(loads.lock().gauges.len(), 1);
        assert_eq!(held.total(), 0);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_live_reports(
            reports in proptest::collection::vec((1..4_u64, 0..3_u64, 0..1000_u64, proptest::collection::vec((0..3_u32, 0..100_u32), 0..4)), 0..40)
        ) {
            let loads = PeerLoads::default();
            let gauges: Vec<_> = (0..3).map(|number| loads.gauge(replica(number))).collect();
            let start = Instant::now();
            let mut now = start;
            for (node, incarnation, pause_ms, entries) in reports {
                now += Duration::from_millis(pause_ms);
                loads.expire(now);
                let entries = entries.into_iter().map(|(number, load)| (replica(number), load));
                loads.set(NodeId(node), Incarnation(incarnation), entries, now);
                for (number, gauge) in (0..).zip(&gauges) {
                    let expected: u32 = loads.lock().reports.values()
                        .map(|report| report.loads.get(&replica(number)).copied().unwrap_or(0)).sum();
                    prop_assert_eq!(gauge.total(), expected);
                }
            }
            loads.expire(now + REPORT_TTL);
            prop_assert!(gauges.iter().all(|gauge| gauge.total() == 0));
        }
    }
}
