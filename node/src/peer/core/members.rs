//! The members of the cluster as this peer sees them.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftserve_model::LogIndex;

use super::Core;
use crate::consensus::MemberView;

impl Core {
    /// The members, by id.
    pub(crate) fn members(&self) -> Vec<MemberView> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let leader = self.leadership.borrow().leader;
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let matched = metrics.replication.unwrap_or_default();
        let view = |(id, record): (&_, &raftserve_store::raft::PeerRecord)| {
            let announced = if *id == self.me() {
                Some(self.announcement.clone())
            } else {
                self.directory.announced(*id).map(|said| (*said).clone())
            };
            MemberView {
                id: *id,
                address: self
                    .directory
                    .address(*id)
                    .filter(|_| *id != self.me())
                    .or_else(|| announced.as_ref().map(|said| said.peer_address.clone()))
                    .unwrap_or_else(|| record.address.clone()),
                admin_address: announced.map(|said| said.admin_address),
                voter: voters.contains(id),
                leader: leader == Some(*id),
                matched: matched
                    .get(id)
                    .copied()
                    .flatten()
                    .map(|matched| LogIndex(matched.index)),
                last_contact: if *id == self.me() {
                    Some(Duration::ZERO)
                } else {
                    self.directory.last_answer(*id).map(|at| at.elapsed())
                },
            }
        };
        metrics.membership_config.nodes().map(view).collect()
    }
}
