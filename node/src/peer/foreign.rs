//! Peers of other clusters that are met: they dial this peer, or answer where one of its own was looked for. Two clusters
//! then take each other's places for theirs, as when founders that had all been replaced are started again on empty
//! directories, and found a second cluster beside the first.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use raftserve_model::{ClusterId, NodeId};

/// For how long a meeting is told of: many times what passes between two, so that an alarm does not flicker.
pub(crate) const KEPT: Duration = Duration::from_secs(60);

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

/// The other clusters whose peers were met lately.
#[derive(Debug, Default)]
pub(crate) struct Foreigners(BTreeMap<ClusterId, (NodeId, Instant)>);

impl Foreigners {
    /// Notes that `met` was met at `now`. Returns whether its cluster was not known.
    pub(crate) fn note(&mut self, met: Foreigner, now: Instant) -> bool {
        self.forget_old(now);
        let is_new = !self.0.contains_key(&met.cluster);
        if is_new && self.0.len() == CLUSTERS_MAX {
            return false;
        }
        self.0.insert(met.cluster, (met.node, now));
        is_new
    }

    /// Those of the last [`KEPT`], one of each cluster, by cluster.
    pub(crate) fn lately(&mut self, now: Instant) -> Vec<Foreigner> {
        self.forget_old(now);
        let met = self.0.iter();
        met.map(|(&cluster, &(node, _))| Foreigner { cluster, node })
            .collect()
    }

    fn forget_old(&mut self, now: Instant) {
        self.0
            .retain(|_, (_, met)| now.saturating_duration_since(*met) < KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_new_once_and_again_when_it_was_long_away() {
        let (mut book, begun) = (Foreigners::default(), Instant::now());
        let met = |cluster, node| Foreigner {
            cluster: ClusterId([cluster; 16]),
            node: NodeId(node),
        };
        assert!(book.note(met(1, 4), begun));
        assert!(!book.note(met(1, 5), begun + KEPT / 2), "the same cluster");
        assert_eq!(book.lately(begun + KEPT), [met(1, 5)]);
        assert_eq!(book.lately(begun + KEPT * 2), []);
        assert!(book.note(met(1, 4), begun + KEPT * 2));
    }

    #[test]
    fn no_more_clusters_are_remembered_than_there_is_room_for() {
        let (mut book, now) = (Foreigners::default(), Instant::now());
        for cluster in 0..20 {
            let met = Foreigner {
                cluster: ClusterId([cluster; 16]),
                node: NodeId(1),
            };
            assert_eq!(book.note(met, now), usize::from(cluster) < CLUSTERS_MAX);
        }
        assert_eq!(book.lately(now).len(), CLUSTERS_MAX);
    }
}
