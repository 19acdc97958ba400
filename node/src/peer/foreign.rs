//! Peers of other clusters that are met: they dial this peer, or answer where one of its own was looked for. Two clusters
//! then take each other's places for theirs, as when founders that had all been replaced are started again on empty
//! directories, and found a second cluster beside the first.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use raftserve_model::{ClusterId, NodeId};

/// For how long a meeting is told of: many times what passes between two, so that an alarm does not flicker.
pub(crate) const KEPT: Duration = Duration::from_secs(60);

/// For how long a cluster has to be met until it is told of: a call may be led astray once, as by a name that is resolved to
/// an address which has become somebody else's.
pub(crate) const SETTLED: Duration = Duration::from_secs(4);

/// How many clusters are remembered at a time. One is too many already.
const CLUSTERS_MAX: usize = 8;

/// A peer of another cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Foreigner {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id there.
    pub node: NodeId,
}

/// When peers of another cluster were met.
#[derive(Debug)]
struct Met {
    node: NodeId,
    first: Instant,
    last: Instant,
}

impl Met {
    fn is_settled(&self) -> bool {
        self.last.saturating_duration_since(self.first) >= SETTLED
    }
}

/// The other clusters whose peers were met lately.
#[derive(Debug, Default)]
pub(crate) struct Foreigners(BTreeMap<ClusterId, Met>);

impl Foreigners {
    /// Notes that `met` was met at `now`. Returns whether its cluster is to be told of from now on.
    pub(crate) fn note(&mut self, met: Foreigner, now: Instant) -> bool {
        self.forget_old(now);
        let Foreigner { cluster, node } = met;
        if !self.0.contains_key(&cluster) && self.0.len() == CLUSTERS_MAX {
            return false;
        }
        let met = self.0.entry(cluster).or_insert(Met {
            node,
            first: now,
            last: now,
        });
        let was_settled = met.is_settled();
        (met.node, met.last) = (node, now);
        met.is_settled() && !was_settled
    }

    /// Those of the last [`KEPT`] that were met for [`SETTLED`], one of each cluster, by cluster.
    pub(crate) fn lately(&mut self, now: Instant) -> Vec<Foreigner> {
        self.forget_old(now);
        let met = self.0.iter().filter(|(_, met)| met.is_settled());
        met.map(|(&cluster, met)| Foreigner {
            cluster,
            node: met.node,
        })
        .collect()
    }

    fn forget_old(&mut self, now: Instant) {
        self.0
            .retain(|_, met| now.saturating_duration_since(met.last) < KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(cluster: u8, node: u64) -> Foreigner {
        Foreigner {
            cluster: ClusterId([cluster; 16]),
            node: NodeId(node),
        }
    }

    #[test]
    fn a_cluster_is_told_of_once_it_is_met_again_and_anew_when_it_was_long_away() {
        let (mut book, begun) = (Foreigners::default(), Instant::now());
        assert!(!book.note(met(1, 4), begun), "it may have gone astray");
        assert!(!book.note(met(1, 4), begun + SETTLED / 2));
        assert_eq!(book.lately(begun + SETTLED), []);
        assert!(book.note(met(1, 5), begun + SETTLED));
        assert!(
            !book.note(met(1, 5), begun + SETTLED * 2),
            "the same cluster"
        );
        assert_eq!(book.lately(begun + KEPT), [met(1, 5)]);
        assert_eq!(book.lately(begun + KEPT * 2), []);
        assert!(!book.note(met(1, 4), begun + KEPT * 2));
    }

    #[test]
    fn no_more_clusters_are_remembered_than_there_is_room_for() {
        let (mut book, begun) = (Foreigners::default(), Instant::now());
        for now in [begun, begun + SETTLED] {
            for cluster in 0..20 {
                let told = book.note(met(cluster, 1), now);
                let has_room = usize::from(cluster) < CLUSTERS_MAX;
                assert_eq!(told, has_room && now > begun);
            }
        }
        assert_eq!(book.lately(begun + SETTLED).len(), CLUSTERS_MAX);
    }
}
