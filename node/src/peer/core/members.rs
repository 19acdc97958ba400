//! The members of the cluster as this peer sees them.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftserve_model::{LogIndex, NodeId};
use raftserve_store::raft::PeerRecord;

use super::Core;
use crate::consensus::MemberView;
use crate::peer::steward::SILENCE_MAX;
use crate::peer::wire::Announcement;

impl Core {
    /// What `peer` has announced; of this peer, what it announces.
    pub(crate) fn announced(&self, peer: NodeId) -> Option<Announcement> {
        if peer == self.me() {
            return Some(self.announcement.clone());
        }
        let said = self.directory.announced(peer)?;
        Some((*said).clone())
    }

    /// Whether it is agreed that who says this is no member any more.
    pub(crate) fn knows_removed(&self, said: &Announcement) -> bool {
        let state = self.reader.state();
        let known = state.peer(said.node);
        said.cluster == self.identity.cluster
            && known.is_some_and(|peer| peer.is_removed() && peer.nonce == said.nonce)
    }

    /// The members, by id.
    pub(crate) fn members(&self) -> Vec<MemberView> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let leader = self.leadership.borrow().leader;
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let matched = metrics.replication.unwrap_or_default();
        let view = |(id, record): (&NodeId, &PeerRecord)| {
            let said = self.announced(*id);
            let recorded = || record.address.clone();
            let last_contact = match *id == self.me() {
                true => Some(Duration::ZERO),
                false => self.directory.last_answer(*id).map(|at| at.elapsed()),
            };
            MemberView {
                id: *id,
                address: said
                    .as_ref()
                    .map_or_else(recorded, |said| said.peer_address.clone()),
                admin_address: said.map(|said| said.admin_address),
                voter: voters.contains(id),
                leader: leader == Some(*id),
                matched: matched
                    .get(id)
                    .copied()
                    .flatten()
                    .map(|matched| LogIndex(matched.index)),
                last_contact,
                up: last_contact.is_some_and(|ago| ago <= SILENCE_MAX)
                    && !self.directory.is_missed(*id),
            }
        };
        metrics.membership_config.nodes().map(view).collect()
    }
}
