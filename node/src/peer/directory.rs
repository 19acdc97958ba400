//! Who the other peers are, and where: what they announced, what the membership says, and when they
//! were last heard. Decides who is a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raftserve_model::{ClusterId, Incarnation, LogIndex, NodeId};
use raftserve_store::raft::PeerRecord;
use raftserve_store::state::State;

use super::foreign::{Foreigner, Foreigners};
use super::lives::differ;
use super::wire::Announcement;

/// The members of the cluster as far as this peer's log tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// The index of the entry that the membership was last changed by; none before there is one.
    pub(crate) decided_at: Option<u64>,
    /// Voters and learners.
    pub(crate) members: BTreeMap<NodeId, PeerRecord>,
}

/// What the log says about peers besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// The last entry that changed this.
    changed: LogIndex,
    /// The nonces of those that were admitted, members yet or not.
    admitted: BTreeMap<NodeId, u64>,
    /// Who is none any more.
    removed: BTreeSet<NodeId>,
}

impl Register {
    /// As of this state.
    pub(crate) fn of(state: &State) -> Self {
        let mut register = Self {
            changed: state.peers_changed(),
            ..Self::default()
        };
        for peer in state.peers() {
            if peer.is_removed() {
                register.removed.insert(peer.id);
            } else {
                register.admitted.insert(peer.id, peer.nonce);
            }
        }
        register
    }
}

/// Why a call is not taken from who makes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stranger {
    /// It belongs elsewhere.
    #[error(
        "peer {me} belongs to cluster {mine}, and the caller, peer {caller}, to cluster {theirs}: \
         check that both were given addresses of one cluster's peers"
    )]
    Cluster {
        /// This peer.
        me: NodeId,
        /// Its cluster.
        mine: ClusterId,
        /// Who calls.
        caller: NodeId,
        /// Its cluster.
        theirs: ClusterId,
    },
    /// It wants another peer.
    #[error("this is peer {me} of cluster {cluster}, and the caller wants peer {wanted}")]
    Target {
        /// This peer.
        me: NodeId,
        /// The cluster of both.
        cluster: ClusterId,
        /// Who was meant.
        wanted: NodeId,
    },
    /// It was removed.
    #[error(
        "peer {caller} was removed from cluster {cluster}: it must rejoin under a new id, \
         with an empty data directory"
    )]
    Removed {
        /// Who calls.
        caller: NodeId,
        /// The cluster of both.
        cluster: ClusterId,
    },
    /// Its directory is not the one that the cluster knows under this id.
    #[error(
        "peer {caller} of cluster {cluster} comes with another data directory than the one the \
         cluster knows: it must rejoin under a new id"
    )]
    Nonce {
        /// Who calls.
        caller: NodeId,
        /// The cluster of both.
        cluster: ClusterId,
    },
    /// It speaks for a peer that another process speaks for.
    #[error(
        "peer {caller} of cluster {cluster} runs at {address} already, and this process runs on a copy of its data \
         directory: two that speak for one peer could vote twice. Remove the copy. To move a peer, stop it before its \
         directory is copied; to add one, start it with an empty directory"
    )]
    Copy {
        /// For whom both speak.
        caller: NodeId,
        /// The cluster of both.
        cluster: ClusterId,
        /// Where the other answers.
        address: String,
    },
    /// Another process has begun to speak for the peer since this connection was made.
    #[error("peer {caller} has announced itself from {address} since, in another life")]
    Superseded {
        /// For whom both speak.
        caller: NodeId,
        /// Where the other said it is.
        address: String,
    },
}

/// Who calls, and whom it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The caller's cluster.
    pub(crate) cluster: ClusterId,
    /// Whom it calls.
    pub(crate) target: NodeId,
    /// Its id.
    pub(crate) node: NodeId,
    /// Of its data directory.
    pub(crate) nonce: u64,
    /// Its life: where it is told with the call, or once it was announced on this connection and taken.
    pub(crate) life: Option<Incarnation>,
}

#[derive(Debug, Default)]
struct Contacts {
    roster: Roster,
    register: Register,
    announced: BTreeMap<NodeId, Arc<Announcement>>,
    answered: BTreeMap<NodeId, Instant>,
    /// Who was not there since it answered last.
    missed: BTreeSet<NodeId>,
    foreigners: Foreigners,
}

/// What a peer knows about the others.
#[derive(Debug)]
pub(crate) struct Directory {
    cluster: ClusterId,
    me: NodeId,
    began: Instant,
    contacts: Mutex<Contacts>,
}

impl Directory {
    /// The directory of peer `me`, with nobody in it.
    pub(crate) fn new(cluster: ClusterId, me: NodeId) -> Self {
        Self {
            cluster,
            me,
            began: Instant::now(),
            contacts: Mutex::default(),
        }
    }

    /// For how long others have been met.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    fn contacts(&self) -> std::sync::MutexGuard<'_, Contacts> {
        // Every change is a single insertion, so a panic elsewhere leaves nothing half done.
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the log says.
    pub(crate) fn set_roster(&self, roster: Roster) {
        self.contacts().roster = roster;
    }

    /// Takes over what is on record about peers, if it is newer.
    pub(crate) fn set_register(&self, state: &State) {
        let changed = state.peers_changed();
        if self.contacts().register.changed < changed {
            self.contacts().register = Register::of(state);
        }
    }

    /// The members as the log has them.
    pub(crate) fn roster(&self) -> Roster {
        self.contacts().roster.clone()
    }

    /// The index of the entry that the membership was last changed by.
    pub(crate) fn decided_at(&self) -> Option<u64> {
        self.contacts().roster.decided_at
    }

    /// The members but this peer.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        let contacts = self.contacts();
        let ids = contacts.roster.members.keys().copied();
        ids.filter(|id| *id != self.me).collect()
    }

    /// Checks who calls.
    ///
    /// An id that was neither admitted nor is a member's was removed if the membership is younger than the
    /// id (ids are log indexes, or 1..=N at bootstrap); otherwise it may be newer than what this peer has in
    /// its log yet, and is let in.
    ///
    /// # Errors
    /// [`Stranger`] if the call must be refused.
    pub(crate) fn admit(&self, caller: Caller) -> Result<(), Stranger> {
        if caller.cluster != self.cluster {
            self.note_foreigner(caller.cluster, caller.node, None);
            return Err(Stranger::Cluster {
                me: self.me,
                mine: self.cluster,
                caller: caller.node,
                theirs: caller.cluster,
            });
        }
        if caller.target != self.me {
            return Err(Stranger::Target {
                me: self.me,
                cluster: self.cluster,
                wanted: caller.target,
            });
        }
        self.check_member(caller.node, caller.nonce)?;
        let contacts = self.contacts();
        match (caller.life, contacts.announced.get(&caller.node)) {
            (Some(life), Some(said)) if differ(life, said.incarnation) => {
                Err(Stranger::Superseded {
                    caller: caller.node,
                    address: said.peer_address.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    fn check_member(&self, caller: NodeId, nonce: u64) -> Result<(), Stranger> {
        let cluster = self.cluster;
        let contacts = self.contacts();
        if contacts.register.removed.contains(&caller) {
            return Err(Stranger::Removed { caller, cluster });
        }
        let member = contacts.roster.members.get(&caller);
        let admitted = contacts.register.admitted.get(&caller).copied();
        match member.map(|record| record.nonce).or(admitted) {
            Some(known) if known != nonce => Err(Stranger::Nonce { caller, cluster }),
            Some(_) => Ok(()),
            None if contacts.roster.decided_at.is_some_and(|at| caller.0 <= at) => {
                Err(Stranger::Removed { caller, cluster })
            }
            None => Ok(()),
        }
    }

    /// Notes a peer of another cluster that was met, and where it said it is. Said at error, once for each cluster until
    /// it was not met for long.
    fn note_foreigner(&self, cluster: ClusterId, node: NodeId, address: Option<&str>) {
        let met = Foreigner { cluster, node };
        let is_new = self.contacts().foreigners.note(met, Instant::now());
        if is_new {
            tracing::error!(
                mine = %self.cluster, theirs = %cluster, peer = %node, address = address.unwrap_or("unknown"),
                "a peer of another cluster takes this one for one of its own, or is where one of this cluster was \
                 looked for: two clusters are run as if they were one. See docs/runbooks/two-clusters.md"
            );
        }
    }

    /// Peers of other clusters that were met lately, one of each.
    pub(crate) fn foreigners(&self) -> Vec<Foreigner> {
        self.contacts().foreigners.lately(Instant::now())
    }

    /// Checks who announces itself.
    ///
    /// # Errors
    /// [`Stranger`] if it is not one of the cluster's.
    pub(crate) fn check(&self, said: &Announcement) -> Result<(), Stranger> {
        if said.cluster != self.cluster {
            self.note_foreigner(said.cluster, said.node, Some(&said.peer_address));
        }
        self.admit(Caller {
            cluster: said.cluster,
            target: self.me,
            node: said.node,
            nonce: said.nonce,
            life: None,
        })
    }

    /// Keeps what a peer says about itself, if it is one of the cluster's. Whether it has one life only was looked at
    /// before ([`super::lives`]).
    ///
    /// # Errors
    /// [`Stranger`] if it is not.
    pub(super) fn learn(&self, said: Announcement) -> Result<(), Stranger> {
        self.check(&said)?;
        let mut contacts = self.contacts();
        if said.node != self.me
            && contacts
                .announced
                .get(&said.node)
                .is_none_or(|known| **known != said)
        {
            contacts.announced.insert(said.node, Arc::new(said));
        }
        Ok(())
    }

    /// What `peer` has announced.
    pub(crate) fn announced(&self, peer: NodeId) -> Option<Arc<Announcement>> {
        self.contacts().announced.get(&peer).cloned()
    }

    /// The life that `peer` has announced.
    pub(crate) fn incarnation(&self, peer: NodeId) -> Option<Incarnation> {
        let contacts = self.contacts();
        Some(contacts.announced.get(&peer)?.incarnation)
    }

    /// Where to dial `peer`: where it last said it is, else where the membership has it.
    pub(crate) fn address(&self, peer: NodeId) -> Option<String> {
        let contacts = self.contacts();
        if let Some(said) = contacts.announced.get(&peer) {
            return Some(said.peer_address.clone());
        }
        let record = contacts.roster.members.get(&peer)?;
        Some(record.address.clone())
    }

    /// Where the other members have last said they are.
    pub(crate) fn places(&self) -> Vec<String> {
        let contacts = self.contacts();
        let members = contacts.roster.members.keys();
        let said = members.filter_map(|member| contacts.announced.get(member));
        said.map(|said| said.peer_address.clone()).collect()
    }

    /// Notes that `peer` has answered.
    pub(crate) fn heard(&self, peer: NodeId) {
        let mut contacts = self.contacts();
        contacts.answered.insert(peer, Instant::now());
        contacts.missed.remove(&peer);
    }

    /// Notes that nobody listens where `peer` was, as its host said to who called at `begun`: its process has ended, which no
    /// load or pause looks like. One that has answered since has not.
    pub(crate) fn missed(&self, peer: NodeId, begun: Instant) {
        let mut contacts = self.contacts();
        if contacts.answered.get(&peer).is_none_or(|at| *at <= begun) {
            contacts.missed.insert(peer);
        }
    }

    /// Whether nobody listened where `peer` was when it was called last.
    pub(crate) fn is_missed(&self, peer: NodeId) -> bool {
        self.contacts().missed.contains(&peer)
    }

    /// When `peer` last answered.
    pub(crate) fn last_answer(&self, peer: NodeId) -> Option<Instant> {
        self.contacts().answered.get(&peer).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn directory() -> Directory {
        let directory = Directory::new(CLUSTER, NodeId(1));
        let member = |nonce| PeerRecord {
            nonce,
            address: format!("host-{nonce}:7001"),
        };
        directory.set_roster(Roster {
            decided_at: Some(9),
            members: [(NodeId(1), member(11)), (NodeId(2), member(22))].into(),
        });
        directory
    }

    fn caller(node: u64, nonce: u64) -> Caller {
        Caller {
            cluster: CLUSTER,
            target: NodeId(1),
            node: NodeId(node),
            nonce,
            life: None,
        }
    }

    fn announcement(node: u64, nonce: u64) -> Announcement {
        Announcement {
            cluster: CLUSTER,
            node: NodeId(node),
            nonce,
            incarnation: Incarnation(5),
            peer_address: "elsewhere:7101".to_owned(),
            admin_address: String::new(),
            proxy_address: String::new(),
            host: String::new(),
            version: String::new(),
            supports: raftserve_store::formats::SUPPORTED,
        }
    }

    #[test]
    fn strangers_are_told_apart() {
        let directory = directory();
        assert_eq!(directory.admit(caller(2, 22)), Ok(()));
        let elsewhere = Caller {
            cluster: ClusterId([8; 16]),
            ..caller(2, 22)
        };
        let refusal = directory.admit(elsewhere).unwrap_err().to_string();
        assert!(refusal.contains(&CLUSTER.to_string()), "{refusal}");
        assert!(refusal.contains(&ClusterId([8; 16]).to_string()));
        let misdirected = Caller {
            target: NodeId(3),
            ..caller(2, 22)
        };
        assert!(matches!(
            directory.admit(misdirected),
            Err(Stranger::Target { .. })
        ));
        assert!(matches!(
            directory.admit(caller(2, 23)),
            Err(Stranger::Nonce { .. })
        ));
    }

    #[test]
    fn a_removed_id_is_refused_and_one_yet_unknown_is_not() {
        let directory = directory();
        assert!(matches!(
            directory.admit(caller(3, 33)),
            Err(Stranger::Removed { .. })
        ));
        assert_eq!(directory.admit(caller(10, 33)), Ok(()));
    }

    #[test]
    fn a_connection_of_a_former_life_is_heard_no_more() {
        let directory = directory();
        let of = |life| Caller {
            life,
            ..caller(2, 22)
        };
        // Nobody has announced itself; then one has, and connections of builds that do not say it go on.
        assert_eq!(directory.admit(of(Some(Incarnation(5)))), Ok(()));
        directory.learn(announcement(2, 22)).unwrap();
        assert_eq!(directory.admit(of(Some(Incarnation(5)))), Ok(()));
        assert_eq!(directory.admit(of(None)), Ok(()));
        assert!(matches!(
            directory.admit(of(Some(Incarnation(4)))),
            Err(Stranger::Superseded { .. })
        ));
    }

    #[test]
    fn an_announced_address_overrides_the_membership() {
        let directory = directory();
        assert_eq!(directory.address(NodeId(2)).unwrap(), "host-22:7001");
        directory.learn(announcement(2, 22)).unwrap();
        assert_eq!(directory.address(NodeId(2)).unwrap(), "elsewhere:7101");
        assert_eq!(directory.places(), ["elsewhere:7101"]);
        assert!(directory.learn(announcement(2, 23)).is_err());
        assert_eq!(directory.address(NodeId(9)), None);
    }
}
