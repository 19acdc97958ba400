//! The peers that joined after bootstrap or are to go: which id and which data directory each has, and which
//! ids are no longer anybody's.
//!
//! Raft's own membership says who votes. This says who may become a member at all, so that a join that is
//! repeated gives the same id, a step that a leader left undone is taken by the next, and an id that was
//! given up is never anybody's again. Peers from bootstrap are entered when something is first decided
//! about them.

use std::sync::Arc;

use bincode::{Decode, Encode};
use raftserve_model::{LogIndex, NodeId};

use super::State;
use super::events::EventKind;
use super::record::Record;
use super::summed::Recorded;
use crate::command::{Outcome, Refusal};
use crate::entry::Membership;

/// The most peers that may be admitted and not removed: far above what a quorum is good for.
pub const PEERS_MAX: usize = 64;

/// The most removed peers whose data directories are remembered. Ids need no memory: one that is neither a
/// member nor admitted, and no younger than the membership, is nobody's.
pub const REMOVED_PEERS_MAX: usize = 1_024;

/// The longest address of a peer, in bytes: a host name and a port.
pub const PEER_ADDRESS_BYTES_MAX: usize = 512;

/// When a learner becomes a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Promotion {
    /// Once it is caught up, if the voters are then odd in number.
    Automatic,
    /// Never by itself.
    Manual,
    /// Once it is caught up, whatever number that makes: somebody asked for it.
    Ordered,
}

/// Where a peer is between its admission and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PeerStanding {
    /// It belongs, or is about to.
    Active(Promotion),
    /// It is to go: at once, or when its successor can take its vote over.
    Leaving {
        /// Who takes its place: the peer that came with another data directory to the same address.
        successor: Option<NodeId>,
    },
    /// It is gone, and neither its id nor its data directory may come back.
    Removed,
}

/// What is agreed about a peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerEntry {
    /// Its Raft id: the index of the entry that admitted it, or its number at bootstrap.
    pub id: NodeId,
    /// Of its data directory.
    pub nonce: u64,
    /// `host:port` of its peer port when it was admitted; it announces where it is since.
    pub address: String,
    /// Where it is in its life.
    pub standing: PeerStanding,
    /// The entry that last changed this.
    pub changed: LogIndex,
}

impl PeerEntry {
    /// Whether its id is given up.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.standing == PeerStanding::Removed
    }
}

/// A peer that another one stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Predecessor {
    /// Its id.
    pub node: NodeId,
    /// Of the data directory that is lost.
    pub nonce: u64,
}

impl State {
    /// Every peer on record, by id; removed ones included.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<PeerEntry>> {
        self.peers.values()
    }

    /// What is on record about a peer.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<&Arc<PeerEntry>> {
        self.peers.get(&id)
    }

    /// The last index at which something changed about peers.
    #[must_use]
    pub fn peers_changed(&self) -> LogIndex {
        let changed = self.peers.values().map(|peer| peer.changed).max();
        changed.unwrap_or(LogIndex(0))
    }

    pub(super) fn admit_peer(
        &mut self,
        index: LogIndex,
        nonce: u64,
        address: &str,
        promotion: Promotion,
        replaces: Option<Predecessor>,
        members: &Membership,
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.peers.values().find(|peer| peer.nonce == nonce) {
            return match known.is_removed() {
                true => Err(Refusal::PeerRemoved(known.id)),
                false => Ok(Outcome::Index(LogIndex(known.id.0))),
            };
        }
        if address.len() > PEER_ADDRESS_BYTES_MAX {
            return Err(Refusal::Limit(format!(
                "the address of a peer has {PEER_ADDRESS_BYTES_MAX} bytes at most"
            )));
        }
        if self
            .peers
            .values()
            .filter(|peer| !peer.is_removed())
            .count()
            >= PEERS_MAX
        {
            return Err(Refusal::Limit(format!(
                "{PEERS_MAX} peers are on record: remove one before another joins"
            )));
        }
        let id = NodeId(index.0);
        // No log holds one that an earlier build applied otherwise: leaders let the log grow beyond all ids first. Builds
        // before they did were never released, and gave a newcomer an id under which it was refused ever after.
        if self.peers.contains_key(&id) || members.nodes.contains_key(&id) {
            return Err(Refusal::PeerIdTaken(id));
        }
        if let Some(old) = replaces {
            self.succeed(index, old, id, address);
        }
        self.enter_peer(PeerEntry {
            id,
            nonce,
            address: address.to_owned(),
            standing: PeerStanding::Active(promotion),
            changed: index,
        });
        let address = address.to_owned();
        self.emit(index, None, EventKind::PeerAdmitted { node: id, address });
        Ok(Outcome::Index(index))
    }

    /// `old` goes when `id` can take over; a successor that was waiting for the same goes at once.
    fn succeed(&mut self, index: LogIndex, old: Predecessor, id: NodeId, address: &str) {
        let known = self.peers.get(&old.node).cloned();
        match known.as_ref().map(|peer| peer.standing) {
            Some(PeerStanding::Removed) => return,
            Some(PeerStanding::Leaving {
                successor: Some(former),
            }) => self.set_standing(index, former, PeerStanding::Leaving { successor: None }),
            Some(PeerStanding::Leaving { successor: None }) => return,
            Some(PeerStanding::Active(_)) | None => {}
        }
        let entry = PeerEntry {
            id: old.node,
            nonce: old.nonce,
            address: known.map_or_else(|| address.to_owned(), |peer| peer.address.clone()),
            standing: PeerStanding::Leaving {
                successor: Some(id),
            },
            changed: index,
        };
        self.enter_peer(entry);
    }

    pub(super) fn dismiss_peer(
        &mut self,
        index: LogIndex,
        node: NodeId,
        nonce: u64,
        address: &str,
    ) -> Outcome {
        // Whoever was to make room for it stays.
        let reprieved = self.peers.values().find(|peer| {
            peer.standing
                == PeerStanding::Leaving {
                    successor: Some(node),
                }
        });
        if let Some(reprieved) = reprieved.map(|peer| peer.id) {
            let stays = PeerStanding::Active(Promotion::Automatic);
            self.set_standing(index, reprieved, stays);
        }
        let leaving = PeerStanding::Leaving { successor: None };
        match self.peers.get(&node) {
            Some(known) if known.is_removed() => {}
            Some(_) => self.set_standing(index, node, leaving),
            None => self.enter_peer(PeerEntry {
                id: node,
                nonce,
                address: address.chars().take(PEER_ADDRESS_BYTES_MAX).collect(),
                standing: leaving,
                changed: index,
            }),
        }
        Outcome::Done
    }

    pub(super) fn retire_peer(&mut self, index: LogIndex, node: NodeId) -> Outcome {
        let leaves = |peer: &Arc<PeerEntry>| matches!(peer.standing, PeerStanding::Leaving { .. });
        if self.peers.get(&node).is_some_and(leaves) {
            self.set_standing(index, node, PeerStanding::Removed);
            self.emit(index, None, EventKind::PeerRemoved { node });
            self.forget_removed_peers();
        }
        Outcome::Done
    }

    pub(super) fn promote_peer(
        &mut self,
        index: LogIndex,
        node: NodeId,
    ) -> Result<Outcome, Refusal> {
        match self.peers.get(&node).map(|peer| peer.standing) {
            Some(PeerStanding::Active(_)) => {
                self.set_standing(index, node, PeerStanding::Active(Promotion::Ordered));
                Ok(Outcome::Done)
            }
            Some(PeerStanding::Leaving { .. } | PeerStanding::Removed) => {
                Err(Refusal::PeerRemoved(node))
            }
            None => Err(Refusal::NoSuchPeer(node)),
        }
    }

    fn set_standing(&mut self, index: LogIndex, node: NodeId, standing: PeerStanding) {
        self.peers.alter(&node, |peer| {
            let peer = Arc::make_mut(peer);
            peer.standing = standing;
            peer.changed = index;
        });
    }

    fn enter_peer(&mut self, entry: PeerEntry) {
        self.peers.insert(entry.id, Arc::new(entry));
    }

    fn forget_removed_peers(&mut self) {
        let removed = self.peers.values().filter(|peer| peer.is_removed());
        let mut removed: Vec<_> = removed.map(|peer| (peer.changed, peer.id)).collect();
        removed.sort_unstable();
        let excess = removed.len().saturating_sub(REMOVED_PEERS_MAX);
        for (_, id) in &removed[..excess] {
            self.peers.remove(id);
        }
    }

    pub(super) fn restore_peer(&mut self, entry: PeerEntry) {
        self.enter_peer(entry);
    }
}

impl Recorded<NodeId> for Arc<PeerEntry> {
    fn records_beyond(&self, _: &NodeId, _: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(Record::Peer(self.as_ref().clone()));
    }
}

#[cfg(test)]
mod tests;
