//! Removes peers that the StatefulSet does not want any more.
//!
//! A pod that is told to stop cannot tell a restart from the end. So the leader alone decides, on a fresh read of the
//! StatefulSet, and removes all that are to leave in one change. Under `podManagementPolicy: Parallel` they are all told
//! to stop at the same moment; they stay full voters until that change is agreed (see [`super::departure`]).

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use raftserve_model::NodeId;
use raftserve_store::state::PeerStanding;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Home, Wanted, ordinal};
use crate::consensus::{Consensus, MemberView};

/// How often the leader looks even if nothing has changed.
const LOOK: Duration = Duration::from_secs(30);

/// How long after something has stood in the way it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long agreeing on a removal may take.
const DECIDE_MAX: Duration = Duration::from_secs(2);

/// Who of `members` is to be told to leave, and was not yet. Members that are no pods of the set are none of its business.
fn surplus(
    set: &str,
    wanted: Wanted,
    members: &[MemberView],
    standing: impl Fn(NodeId) -> Option<PeerStanding>,
) -> BTreeSet<NodeId> {
    let Wanted::Peers(count) = wanted else {
        return BTreeSet::new();
    };
    let beyond = |member: &&MemberView| {
        let ordinal = ordinal(set, &member.address);
        ordinal.is_some_and(|ordinal| ordinal >= count)
    };
    let stays = |member: &&MemberView| {
        let standing = standing(member.id);
        standing.is_none_or(|standing| matches!(standing, PeerStanding::Active(_)))
    };
    let surplus = members.iter().filter(beyond).filter(stays);
    surplus.map(|it| it.id).collect()
}

impl Home {
    /// Counts what happens to the StatefulSet. Only that something has happened is used: how many peers are wanted
    /// is read afresh.
    async fn watch_set(&self, changes: &watch::Sender<u64>) {
        let watched = watcher::watch_object(self.sets.clone(), &self.set).default_backoff();
        let mut watched = pin!(watched);
        while let Some(event) = watched.next().await {
            match event {
                Ok(_) => changes.send_modify(|count| *count += 1),
                Err(error) => tracing::debug!(%error, "the StatefulSet is not watched now"),
            }
        }
    }

    /// True if there is nothing left to decide for now.
    async fn try_scale(&self, consensus: &Consensus) -> bool {
        let wanted = match self.read_set().await {
            Ok((_, wanted)) => wanted,
            Err(error) => {
                tracing::warn!(%error, "cannot read how many peers are wanted");
                return false;
            }
        };
        let members = consensus.members();
        let state = consensus.state();
        let standing = |node| state.peer(node).map(|peer| peer.standing);
        let surplus = surplus(&self.set, wanted, &members, standing);
        if surplus.is_empty() {
            return true;
        }
        match consensus.dismiss_members(surplus.clone(), DECIDE_MAX).await {
            Ok(()) => {
                tracing::info!(?wanted, peers = ?surplus, "peers are to leave");
                true
            }
            Err(error) => {
                tracing::warn!(%error, peers = ?surplus, "peers are to leave and cannot yet");
                false
            }
        }
    }

    /// Removes, while this peer leads, what the StatefulSet does not want. Runs as long as the peer does.
    pub async fn scale(self: Arc<Self>, consensus: Consensus) {
        let (changes, mut changed) = watch::channel(0);
        tokio::join!(self.watch_set(&changes), async {
            let mut leadership = consensus.leadership();
            loop {
                if leadership.wait_for(|now| now.is_self).await.is_err() {
                    return;
                }
                changed.mark_unchanged();
                if self.try_scale(&consensus).await {
                    let _ = timeout(LOOK, changed.changed()).await;
                } else {
                    sleep(RETRY).await;
                }
            }
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use raftserve_store::state::Promotion;

    use super::*;

    /// A voter that answers.
    pub(in crate::kubernetes) fn member(id: u64, address: &str) -> MemberView {
        MemberView {
            id: NodeId(id),
            address: address.to_owned(),
            admin_address: None,
            voter: true,
            leader: false,
            matched: None,
            last_contact: Some(Duration::ZERO),
            up: true,
        }
    }

    #[test]
    fn those_beyond_the_wanted_number_leave_and_nobody_leaves_who_is_only_stopped() {
        // Ids follow the order of arrival, not the ordinals.
        let members = [
            member(1, "rs-0.rs-peers:7001"),
            member(40, "rs-1.rs-peers:7001"),
            member(3, "rs-2.rs-peers:7001"),
            member(4, "elsewhere-9:7001"),
        ];
        let leaving = |wanted| surplus("rs", wanted, &members, |_| None);
        assert_eq!(leaving(Wanted::Peers(3)), [].into());
        assert_eq!(leaving(Wanted::Peers(2)), [NodeId(3)].into());
        assert_eq!(leaving(Wanted::Peers(1)), [NodeId(3), NodeId(40)].into());
        assert_eq!(leaving(Wanted::Stopped), [].into());
    }

    #[test]
    fn who_was_told_to_leave_is_not_told_again() {
        let members = [
            member(1, "rs-0.rs-peers:7001"),
            member(2, "rs-1.rs-peers:7001"),
            member(3, "rs-2.rs-peers:7001"),
            member(4, "rs-3.rs-peers:7001"),
        ];
        let standing = |node| match node {
            NodeId(2) => Some(PeerStanding::Leaving { successor: None }),
            NodeId(3) => Some(PeerStanding::Removed),
            _ => Some(PeerStanding::Active(Promotion::Automatic)),
        };
        let leaving = surplus("rs", Wanted::Peers(1), &members, standing);
        assert_eq!(leaving, [NodeId(4)].into());
    }
}
