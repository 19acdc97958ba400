//! What a leader knows of the other peers: how far they are, and which may still act on what they
//! read. Pure; the time is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raftserve_model::{Generation, LogIndex, NodeId, ReplicaId};

/// How long a peer may use what it read without hearing from the leader: several times the longest
/// failover, so that losing a leader does not stop sessions.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// How much longer than its lease a leader counts a silent peer as holding one: a quarter of it for
/// clocks that run at different rates, and as much again as two rounds of news take. To this comes the
/// time for which a deposed leader may still give leases.
const LEASE_MARGIN: Duration = Duration::from_millis(1_000);

/// How long after it was given a lease is surely over, but for the time that its giver is believed for.
pub const LEASE_OVER: Duration = LEASE.saturating_add(LEASE_MARGIN);

/// A peer unheard for this long is taken to be dead where only waiting, not safety, is at stake.
const PRESUMED_DEAD: Duration = Duration::from_secs(5);

/// How far a peer is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// What its look-ups of sessions reflect at least.
    pub(super) applied: LogIndex,
    /// What its routes reflect at least.
    pub(super) routed: LogIndex,
}

/// What is known of another peer.
#[derive(Debug)]
struct Peer {
    /// What it last said; what a former life of it applied says nothing of this one.
    progress: Progress,
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
#[derive(Debug)]
pub(super) struct Leases {
    reign: Option<Reign>,
    peers: BTreeMap<NodeId, Peer>,
    /// How long after its lease was given a silent peer is sure to be without one.
    surely_over: Duration,
    /// The furthest index that the fence has reached or was allowed to. Who has not applied it gets no
    /// lease: it may know bindings that the fence has done away with.
    floor: LogIndex,
}

impl Leases {
    /// A leader is believed for `patience` without a quorum's word, and may give leases so long.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            reign: None,
            peers: BTreeMap::new(),
            surely_over: LEASE_OVER + patience,
            floor: LogIndex(0),
        }
    }

    /// This peer's controller has begun to reign, with the fence at `fence`.
    pub(super) fn begin_reign(&mut self, now: Instant, generation: Generation, fence: LogIndex) {
        self.reign = Some(Reign {
            generation,
            since: now,
        });
        self.floor = self.floor.max(fence);
        for peer in self.peers.values_mut() {
            peer.granted = None;
        }
    }

    /// Whether this peer's controller reigns.
    pub(super) fn reigns(&self) -> bool {
        self.reign.is_some()
    }

    /// This peer's controller reigns no more.
    pub(super) fn end_reign(&mut self) {
        self.reign = None;
    }

    /// Takes a peer's report. Returns the reign that gives it a lease, if this peer reigns, `leads`
    /// still, and the other is not behind the fence.
    pub(super) fn report(
        &mut self,
        now: Instant,
        from: NodeId,
        progress: Progress,
        loads: BTreeMap<ReplicaId, u32>,
        leads: bool,
    ) -> Option<Generation> {
        let may = leads && progress.applied >= self.floor;
        let lease = self.reign.filter(|_| may).map(|reign| reign.generation);
        let before = self.peers.get(&from).and_then(|peer| peer.granted);
        let granted = lease.map(|_| now).or(before);
        let peer = Peer {
            progress,
            heard: now,
            loads,
            granted,
        };
        self.peers.insert(from, peer);
        lease
    }

    /// The index, up to `wanted`, that this peer and all `others` are sure to have applied, or to be
    /// without a lease. From now on whoever has not applied it gets none. Zero without a reign.
    pub(super) fn fence_reached(
        &mut self,
        now: Instant,
        wanted: LogIndex,
        own_applied: LogIndex,
        others: impl IntoIterator<Item = NodeId>,
    ) -> LogIndex {
        let Some(reign) = self.reign else {
            return LogIndex(0);
        };
        let mut reached = own_applied.min(wanted);
        for other in others {
            let peer = self.peers.get(&other);
            // A lease that a former leader gave is no younger than this reign.
            let youngest = peer.and_then(|peer| peer.granted).unwrap_or(reign.since);
            if now.duration_since(youngest) <= self.surely_over {
                reached = reached.min(peer.map_or(LogIndex(0), |peer| peer.progress.applied));
            }
        }
        self.floor = self.floor.max(reached);
        reached
    }

    /// Whether no other peer that can be heard sends requests to `replica`, which left rotation at
    /// index `since`: each has routes without it and counts no request in flight. A new leader waits
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
                    peer.progress.routed >= since && !peer.loads.contains_key(&replica)
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

    fn at(index: u64) -> Progress {
        Progress {
            applied: LogIndex(index),
            routed: LogIndex(index),
        }
    }

    impl World {
        fn new() -> Self {
            let mut leases = Leases::new(Duration::from_millis(750));
            let start = Instant::now();
            leases.begin_reign(start, REIGN, LogIndex(5));
            Self { leases, start }
        }

        fn report(&mut self, at_ms: u64, node: u64, applied: u64) -> Option<Generation> {
            self.leases.report(
                self.start + Duration::from_millis(at_ms),
                NodeId(node),
                at(applied),
                BTreeMap::new(),
                true,
            )
        }

        fn reached(&mut self, at_ms: u64) -> u64 {
            let now = self.start + Duration::from_millis(at_ms);
            let (wanted, own) = (LogIndex(1_000), LogIndex(100));
            self.leases.fence_reached(now, wanted, own, OTHERS).0
        }
    }

    #[test]
    fn who_is_behind_the_fence_gets_no_lease() {
        let mut world = World::new();
        assert_eq!(
            world.report(0, 2, 4),
            None,
            "behind the fence as the reign began"
        );
        assert_eq!(world.report(1, 2, 50), Some(REIGN));
        assert_eq!(
            world.reached(6_000),
            100,
            "nobody else holds a lease any more"
        );
        assert_eq!(
            world.report(6_001, 3, 99),
            None,
            "it may know what is no longer true"
        );
        assert_eq!(world.report(6_002, 3, 100), Some(REIGN));
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
            .report(now, NodeId(2), at(10), BTreeMap::new(), false);
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
        world.leases.report(now, NodeId(2), at(60), loads, true);
        assert!(!drained(&world, 4), "peer 2 has a request in flight");
        world.report(5, 2, 60);
        assert!(drained(&world, 6));
    }
}
