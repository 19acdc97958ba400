//! What a hash policy looks keys up in: made when endpoints change, and shared by all workers.

use raftserve_model::ReplicaId;
use raftserve_model::spec::LoadBalancingPolicy;

use super::{Maglev, Ring};

/// The most endpoints of a table: sixteen bits say which, and one value stands for none. A service has far fewer.
pub(super) const REPLICAS_MAX: usize = u16::MAX as usize;

/// The bytes of a replica's name that are hashed: never used for another one, and known to all peers.
pub(super) fn identity(replica: ReplicaId) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&replica.service.0.to_le_bytes());
    bytes[8..].copy_from_slice(&replica.number.to_le_bytes());
    bytes
}

/// The endpoints of a service, arranged for its policy.
#[derive(Debug)]
pub struct HashTable {
    endpoints: Vec<ReplicaId>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Ring(Ring),
    Maglev(Maglev),
}

impl HashTable {
    /// The table of `policy`, if it is a hash policy, for these endpoints, of which picks are indices. Their order
    /// decides nothing else, so give them in the same order on all peers.
    #[must_use]
    pub fn new(policy: LoadBalancingPolicy, endpoints: Vec<ReplicaId>) -> Option<Self> {
        let kind = match policy {
            LoadBalancingPolicy::RingHash => Kind::Ring(Ring::new(&endpoints)),
            LoadBalancingPolicy::Maglev => Kind::Maglev(Maglev::new(&endpoints)),
            LoadBalancingPolicy::RoundRobin
            | LoadBalancingPolicy::LeastLoad
            | LoadBalancingPolicy::InstanceAwareLeastLoad
            | LoadBalancingPolicy::P2c => return None,
        };
        Some(Self { endpoints, kind })
    }

    /// Whether it is what [`Self::new`] would make of these.
    #[must_use]
    pub fn is_of(&self, policy: LoadBalancingPolicy, endpoints: &[ReplicaId]) -> bool {
        let same_kind = match self.kind {
            Kind::Ring(_) => policy == LoadBalancingPolicy::RingHash,
            Kind::Maglev(_) => policy == LoadBalancingPolicy::Maglev,
        };
        same_kind && self.endpoints == endpoints
    }

    /// The candidate for `key`. `load` counts requests in flight, and is asked by the ring only.
    #[must_use]
    pub fn pick(
        &self,
        key: u64,
        load: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match &self.kind {
            Kind::Ring(ring) => ring.pick(key, load, usable),
            Kind::Maglev(maglev) => maglev.pick(key, usable),
        }
    }
}
