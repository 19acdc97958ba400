//! What a leader knows of the other peers: how far they are, and which may still act on what they
//! read. Pure; the time is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raftserve_model::{Generation, LogIndex, NodeId, ReplicaId};

/// How long a peer may use what it read without hearing from the leader: several times the longest
/// failover, so that losing a leader does not stop sessions.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// How long a leader counts a silent peer as holding a lease, that of a former leader included: the
/// lease, a quarter of it for clocks that run at different rates, and a second for a deposed leader to
/// notice, which takes it at most twice the longest election timeout.
const LEASE_SURELY_OVER: Duration = Duration::from_millis(4_750);

/// A peer unheard for this long is taken to be dead where only waiting, not safety, is at stake.
const PRESUMED_DEAD: Duration = Duration::from_secs(5);

/// What is known of another peer.
#[derive(Debug)]
struct Peer {
    /// What it last said; what a former life of it applied says nothing of this one.
    applied: LogIndex,
    heard: Instant,
    loads: BTreeMap<ReplicaId, u32>,
    /// When it was last given a lease in this reign, whichever life of its process asked.
    granted: Option<Instant>,
}

/// A reign of this peer's controller.
#[derive(Clone, Copy, Debug)]
struct Reign {
    generation: Generation,
    since: Instant,
}

/// What a leader knows of the other peers.
#[derive(Debug, Default)]
pub(super) struct Leases {
    reign: Option<Reign>,
    peers: BTreeMap<NodeId, Peer>,
}

impl Leases {
    /// This peer's controller has begun to reign.
    pub(super) fn begin_reign(&mut self, now: Instant, generation: Generation) {
        self.reign = Some(Reign {
            generation,
            since: now,
        });
        for peer in self.peers.values_mut() {
            peer.granted = None;
        }
    }

    /// This peer's controller reigns no more.
    pub(super) fn end_reign(&mut self) {
        self.reign = None;
    }

    /// Takes a peer's report. Returns the reign that gives it a lease, if this peer reigns and
    /// `leads` still.
    pub(super) fn report(
        &mut self,
        now: Instant,
        from: NodeId,
        applied: LogIndex,
        loads: BTreeMap<ReplicaId, u32>,
        leads: bool,
    ) -> Option<Generation> {
        let lease = self.reign.filter(|_| leads).map(|reign| reign.generation);
        let before = self.peers.get(&from).and_then(|peer| peer.granted);
        let granted = lease.map(|_| now).or(before);
        let peer = Peer {
            applied,
            heard: now,
            loads,
            granted,
        };
        self.peers.insert(from, peer);
        lease
    }

    /// The index that this peer and all `others` are sure to have applied, or to be without a lease.
    /// Zero without a reign.
    pub(super) fn fence_reached(
        &self,
        now: Instant,
        own_applied: LogIndex,
        others: impl IntoIterator<Item = NodeId>,
    ) -> LogIndex {
        let Some(reign) = self.reign else {
            return LogIndex(0);
        };
        let mut reached = own_applied;
        for other in others {
            let peer = self.peers.get(&other);
            // A lease that a former leader gave is no younger than this reign.
            let youngest = peer.and_then(|peer| peer.granted).unwrap_or(reign.since);
            if now.duration_since(youngest) <= LEASE_SURELY_OVER {
                reached = reached.min(peer.map_or(LogIndex(0), |peer| peer.applied));
            }
        }
        reached
    }

    /// Whether no other peer that can be heard sends requests to `replica`, which left rotation at
    /// index `since`: each has applied that entry and counts no request in flight. A new leader waits
    /// until it has had time to hear from all `others`.
    pub(super) fn is_drained(
        &self,
        now: Instant,
        replica: ReplicaId,
        since: LogIndex,
        others: impl IntoIterator<Item = NodeId>,
    ) -> bool {
        let Some(reign) = self.reign else {
            return false;
        };
        others
            .into_iter()
            .all(|other| match self.peers.get(&other) {
                Some(peer) if now.duration_since(peer.heard) <= PRESUMED_DEAD => {
                    peer.applied >= since && !peer.loads.contains_key(&replica)
                }
                Some(_) | None => now.duration_since(reign.since) > PRESUMED_DEAD,
            })
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::ServiceId;

    use super::*;

    const REIGN: Generation = Generation(9);
    const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    struct World {
        leases: Leases,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut leases = Leases::default();
            let start = Instant::now();
            leases.begin_reign(start, REIGN);
            Self { leases, start }
        }

        fn report(&mut self, at_ms: u64, node: u64, applied: u64) -> Option<Generation> {
            self.leases.report(
                self.start + Duration::from_millis(at_ms),
                NodeId(node),
                LogIndex(applied),
                BTreeMap::new(),
                true,
            )
        }

        fn reached(&self, at_ms: u64) -> u64 {
            let now = self.start + Duration::from_millis(at_ms);
            self.leases.fence_reached(now, LogIndex(100), OTHERS).0
        }
    }

    #[test]
    fn fence_waits_for_the_slowest_lease_holder() {
        let mut world = World::new();
        assert_eq!(world.reached(0), 0, "nobody was heard yet");
        assert_eq!(world.report(1, 2, 50), Some(REIGN));
        assert_eq!(
            world.reached(2),
            0,
            "peer 3 may hold a former leader's lease"
        );
        world.report(3, 3, 70);
        assert_eq!(world.reached(4), 50);
        world.report(5, 2, 100);
        assert_eq!(world.reached(6), 70);
    }

    #[test]
    fn fence_passes_a_silent_peer_once_its_lease_is_surely_over() {
        let mut world = World::new();
        world.report(1_000, 2, 50);
        assert_eq!(world.reached(4_750), 0, "peer 3, unheard in this reign");
        assert_eq!(world.reached(4_751), 50);
        assert_eq!(world.reached(5_750), 50, "peer 2, granted at one second");
        assert_eq!(world.reached(5_751), 100);
    }

    #[test]
    fn fence_does_not_move_without_a_reign() {
        let mut world = World::new();
        world.report(1, 2, 50);
        world.report(1, 3, 50);
        world.leases.end_reign();
        assert_eq!(world.reached(60_000), 0);
        assert_eq!(world.report(2, 2, 60), None, "and no lease is given");
    }

    #[test]
    fn a_report_without_a_grant_does_not_shorten_the_lease_given_before() {
        let mut world = World::new();
        world.report(4_000, 2, 50);
        world.report(4_001, 3, 100);
        let now = world.start + Duration::from_millis(4_002);
        let lease = world
            .leases
            .report(now, NodeId(2), LogIndex(10), BTreeMap::new(), false);
        assert_eq!(lease, None);
        assert_eq!(world.reached(4_800), 10);
    }

    #[test]
    fn a_replica_is_drained_once_nobody_sends_to_it() {
        let replica = ReplicaId {
            service: ServiceId(1),
            number: 1,
        };
        let mut world = World::new();
        let drained = |world: &World, at_ms| {
            let now = world.start + Duration::from_millis(at_ms);
            world.leases.is_drained(now, replica, LogIndex(60), OTHERS)
        };
        assert!(
            !drained(&world, 5_000),
            "others may not have been heard yet"
        );
        world.report(1, 2, 59);
        world.report(1, 3, 60);
        assert!(!drained(&world, 2), "peer 2 may not know yet");
        let loads = BTreeMap::from([(replica, 1)]);
        let now = world.start + Duration::from_millis(3);
        world
            .leases
            .report(now, NodeId(2), LogIndex(60), loads, true);
        assert!(!drained(&world, 4), "peer 2 has a request in flight");
        world.report(5, 2, 60);
        assert!(drained(&world, 6));
    }
}
