//! Whether the peers' states are equal, as they must be after the same entry.
//!
//! Peers tell each other the digests of their states as of the same entries. Where more than half of the voters
//! have one digest and this peer has another, this peer is wrong: it ends, rather than serve what nobody
//! agreed on. So a majority never ends, and where there is none nobody does; it is told, loudly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use raftserve_model::{LogIndex, NodeId};
use raftserve_store::raft::{CHECKS_KEPT, StateCheck};
use raftserve_store::state::Digest;

/// Peers whose digests are remembered: far more than a cluster has members.
const PEERS_MAX: usize = 64;

/// How far the states of the peers are known to be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The last entry after which a majority of the voters was found to have this peer's state; 0 if none yet.
    pub upto: LogIndex,
    /// The newest entry after which a peer's state was found to differ from this one's, and the peer.
    pub differs: Option<(LogIndex, NodeId)>,
}

/// What came of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing new to tell.
    Equal,
    /// Others differ, and this peer is not outvoted: each is told once.
    Others(Vec<Difference>),
    /// A majority differs from this peer.
    Outvoted(Difference),
}

/// Two states after one entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) index: LogIndex,
    pub(crate) own: Digest,
    pub(crate) theirs: Digest,
    pub(crate) peers: Vec<NodeId>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<_> = self.peers.iter().map(ToString::to_string).collect();
        let plural = if peers.len() == 1 { "" } else { "s" };
        write!(
            f,
            "after entry {} the state of this peer has digest {}, and that of peer{plural} {} has {}",
            self.index,
            self.own,
            peers.join(", "),
            self.theirs
        )
    }
}

/// Compares digests.
#[derive(Debug)]
pub(crate) struct Agreement(Mutex<Book>);

impl Agreement {
    /// Knows nothing yet.
    pub(crate) fn new(me: NodeId) -> Self {
        Self(Mutex::new(Book::new(me)))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Digests are only ever added and dropped whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes this peer's digests and those of `from`, and judges if any was new.
    pub(crate) fn compare(
        &self,
        own: &[StateCheck],
        from: NodeId,
        theirs: &[StateCheck],
        voters: impl FnOnce() -> BTreeSet<NodeId>,
    ) -> Verdict {
        let mut book = self.book();
        let me = book.me;
        // Both, even if the first already has something new.
        let news = book.note(me, own) | book.note(from, theirs);
        if news {
            book.judge(&voters())
        } else {
            Verdict::Equal
        }
    }

    /// How far the states are known to be equal.
    pub(crate) fn compared(&self) -> Compared {
        self.book().compared.clone()
    }

    /// What is known of the states after entry `index`: which peers have this one's, and which another.
    pub(crate) fn at(&self, index: LogIndex) -> BTreeMap<NodeId, Digest> {
        let book = self.book();
        let known = book.peers.iter();
        known
            .filter_map(|(peer, digests)| Some((*peer, *digests.get(&index)?)))
            .collect()
    }
}

/// The digests of all peers.
#[derive(Debug)]
struct Book {
    me: NodeId,
    /// The newest of each peer, this one included.
    peers: BTreeMap<NodeId, BTreeMap<LogIndex, Digest>>,
    /// What was told already.
    told: BTreeSet<(LogIndex, NodeId)>,
    compared: Compared,
}

impl Book {
    fn new(me: NodeId) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            told: BTreeSet::new(),
            compared: Compared::default(),
        }
    }

    /// Notes what `peer` has; true if any of it is new.
    fn note(&mut self, peer: NodeId, checks: &[StateCheck]) -> bool {
        if !self.peers.contains_key(&peer) && self.peers.len() == PEERS_MAX {
            return false;
        }
        let digests = self.peers.entry(peer).or_default();
        let mut news = false;
        for check in checks.iter().take(CHECKS_KEPT) {
            news |= digests.insert(check.index, check.digest) != Some(check.digest);
        }
        while digests.len() > CHECKS_KEPT {
            digests.pop_first();
        }
        news
    }

    fn judge(&mut self, voters: &BTreeSet<NodeId>) -> Verdict {
        let own = self.peers.get(&self.me).cloned().unwrap_or_default();
        let mut differences = Vec::new();
        for (index, mine) in own {
            let mut camps: BTreeMap<Digest, Vec<NodeId>> = BTreeMap::new();
            for (peer, digests) in &self.peers {
                if let Some(digest) = digests.get(&index) {
                    camps.entry(*digest).or_default().push(*peer);
                }
            }
            let wins = |camp: &[NodeId]| {
                let votes = camp.iter().filter(|peer| voters.contains(peer)).count();
                2 * votes > voters.len()
            };
            for (theirs, peers) in camps {
                if theirs == mine {
                    if wins(&peers) {
                        self.compared.upto = self.compared.upto.max(index);
                    }
                    continue;
                }
                let difference = Difference {
                    index,
                    own: mine,
                    theirs,
                    peers,
                };
                if wins(&difference.peers) {
                    return Verdict::Outvoted(difference);
                }
                differences.extend(self.untold(difference));
            }
        }
        match differences.is_empty() {
            true => Verdict::Equal,
            false => Verdict::Others(differences),
        }
    }

    /// The difference without the peers that were told of already; none if that is all of them.
    fn untold(&mut self, difference: Difference) -> Option<Difference> {
        let index = difference.index;
        let mut peers = difference.peers;
        peers.retain(|peer| self.told.insert((index, *peer)));
        while self.told.len() > PEERS_MAX * CHECKS_KEPT {
            self.told.pop_first();
        }
        let peer = *peers.first()?;
        if self
            .compared
            .differs
            .is_none_or(|(known, _)| known <= index)
        {
            self.compared.differs = Some((index, peer));
        }
        Some(Difference {
            peers,
            ..difference
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(index: u64, digest: u8) -> StateCheck {
        StateCheck {
            index: LogIndex(index),
            digest: Digest([digest; 32]),
        }
    }

    fn voters(count: u64) -> BTreeSet<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    /// What each of `digests.len()` voters says once all have told each other their digest after one entry.
    fn verdicts(digests: &[u8]) -> Vec<Verdict> {
        let count = digests.len() as u64;
        let nodes = || (1..=count).map(NodeId).zip(digests);
        let judge = |me: NodeId| {
            let mut book = Book::new(me);
            for (node, digest) in nodes() {
                assert!(book.note(node, &[check(9, *digest)]));
            }
            book.judge(&voters(count))
        };
        nodes().map(|(me, _)| judge(me)).collect()
    }

    #[test]
    fn only_the_minority_ends() {
        let said = verdicts(&[7, 8, 7]);
        assert!(matches!(&said[1], Verdict::Outvoted(it) if it.peers == [NodeId(1), NodeId(3)]));
        for at in [0, 2] {
            assert!(matches!(&said[at], Verdict::Others(it) if it[0].peers == [NodeId(2)]));
        }
        for digests in [&[1, 1, 1, 2, 3][..], &[4, 1, 1, 1, 4]] {
            for (verdict, digest) in verdicts(digests).iter().zip(digests) {
                assert_eq!(matches!(verdict, Verdict::Outvoted(_)), *digest != 1);
            }
        }
    }

    #[test]
    fn without_a_majority_nobody_ends() {
        for digests in [&[1, 2][..], &[1, 2, 3], &[1, 1, 2, 2], &[1, 1, 2, 2, 3]] {
            for verdict in verdicts(digests) {
                assert!(
                    matches!(verdict, Verdict::Others(_)),
                    "{digests:?}: {verdict:?}"
                );
            }
        }
        assert_eq!(
            verdicts(&[5, 5, 5]),
            [Verdict::Equal, Verdict::Equal, Verdict::Equal]
        );
    }

    #[test]
    fn a_learner_has_no_vote_and_ends_if_it_differs() {
        let agreement = Agreement::new(NodeId(3));
        let two = || voters(2);
        let own = [check(9, 8)];
        let first = agreement.compare(&own, NodeId(1), &[check(9, 7)], two);
        assert!(
            matches!(first, Verdict::Others(_)),
            "one of two is no majority"
        );
        let both = agreement.compare(&own, NodeId(2), &[check(9, 7)], two);
        assert!(matches!(both, Verdict::Outvoted(it) if it.peers == [NodeId(1), NodeId(2)]));
    }

    #[test]
    fn what_was_compared_is_known_and_each_difference_is_told_once() {
        let agreement = Agreement::new(NodeId(1));
        let three = || voters(3);
        let own = [check(4_096, 1), check(8_192, 2)];
        let equal = agreement.compare(&own, NodeId(2), &[check(4_096, 1)], three);
        assert_eq!(equal, Verdict::Equal);
        assert_eq!(agreement.compared().upto, LogIndex(4_096));
        let differs = [check(8_192, 3)];
        let told = agreement.compare(&own, NodeId(3), &differs, three);
        assert!(matches!(told, Verdict::Others(_)));
        assert_eq!(
            agreement.compare(&own, NodeId(3), &differs, three),
            Verdict::Equal
        );
        let compared = agreement.compared();
        assert_eq!(compared.upto, LogIndex(4_096));
        assert_eq!(compared.differs, Some((LogIndex(8_192), NodeId(3))));
        assert_eq!(agreement.at(LogIndex(8_192)).len(), 2);
    }

    #[test]
    fn only_the_newest_digests_are_kept() {
        let mut book = Book::new(NodeId(1));
        for index in 1..100 {
            book.note(NodeId(2), &[check(index, 1)]);
        }
        assert_eq!(book.peers[&NodeId(2)].len(), CHECKS_KEPT);
        assert!(book.peers[&NodeId(2)].contains_key(&LogIndex(99)));
    }
}
