//! The cluster's version: what each member supports, and raising it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use raftserve_model::{ClusterVersion, NodeId, VersionRange};
use raftserve_store::command::Action;
use raftserve_store::raft::StateCheck;
use raftserve_store::state::PeerStanding;
use tokio::time::Instant;

use super::Core;
use crate::consensus::ProposeError;
use crate::peer::agreement::Verdict;

/// A member that has not answered for so long may be another release by now.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// A member's release, as the peer asked knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The member.
    pub id: NodeId,
    /// Its release's name; none if it was never heard.
    pub name: Option<String>,
    /// The cluster versions that it supports; none if it was never heard.
    pub supports: Option<VersionRange>,
    /// Whether it has answered lately, so that this is its present release.
    pub heard: bool,
}

/// Why the cluster's version is not raised.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FinalizeError {
    /// What a member supports is not known.
    #[error(
        "peer {} has not been heard, so what it supports is not known: start it, or remove it from the cluster, and \
         finalize again",
        list(.0)
    )]
    Unheard(Vec<NodeId>),
    /// A member's release is too old.
    #[error(
        "cluster version {wanted} is not supported by {}: bring every peer to a release that supports it, and \
         finalize again",
        releases(.behind)
    )]
    Behind {
        /// The version that others support.
        wanted: ClusterVersion,
        /// Who does not.
        behind: Vec<Release>,
    },
    /// The entry did not come back.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

fn list(ids: &[NodeId]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

fn releases(behind: &[Release]) -> String {
    let texts: Vec<_> = behind
        .iter()
        .map(|release| {
            let name = release.name.as_deref().unwrap_or("unknown");
            let upto = release.supports.map_or(0, |range| range.newest.0);
            format!("peer {} (release {name}, up to {upto})", release.id)
        })
        .collect();
    texts.join(", ")
}

/// The version to raise the cluster to: the newest that any member supports, if all do.
///
/// # Errors
/// [`FinalizeError`] names who stands in the way.
fn target(releases: &[Release]) -> Result<ClusterVersion, FinalizeError> {
    let unheard: Vec<_> = releases
        .iter()
        .filter(|release| !release.heard || release.supports.is_none())
        .map(|release| release.id)
        .collect();
    if !unheard.is_empty() {
        return Err(FinalizeError::Unheard(unheard));
    }
    let newest = |release: &Release| release.supports.map(|range| range.newest);
    let wanted = releases.iter().filter_map(newest).max().unwrap_or_default();
    let behind: Vec<_> = releases
        .iter()
        .filter(|release| newest(release) < Some(wanted))
        .cloned()
        .collect();
    if behind.is_empty() {
        Ok(wanted)
    } else {
        Err(FinalizeError::Behind { wanted, behind })
    }
}

impl Core {
    /// The members' releases, by id.
    pub(crate) fn releases(&self) -> Vec<Release> {
        let members = self.directory.roster().members;
        let release = |id: NodeId| {
            let said = self.announced(id);
            let answered = self.directory.last_answer(id);
            let lately = answered.is_some_and(|at| at.elapsed() <= HEARD_WITHIN);
            Release {
                id,
                name: said.as_ref().map(|said| said.version.clone()),
                supports: said.map(|said| said.supports),
                heard: id == self.me() || lately,
            }
        };
        members.into_keys().map(release).collect()
    }

    /// Those that were let in and are no members yet. Of what they support, nothing is known here.
    fn admitted(&self) -> Vec<Release> {
        let members = self.directory.roster().members;
        let state = self.reader.state();
        let active = state
            .peers()
            .filter(|peer| matches!(peer.standing, PeerStanding::Active(_)));
        let admitted = active.filter(|peer| !members.contains_key(&peer.id));
        let unheard = admitted.map(|peer| Release {
            id: peer.id,
            name: None,
            supports: None,
            heard: false,
        });
        unheard.collect()
    }

    /// Raises the cluster's version to the newest that every member supports. True if it was lower.
    pub(crate) async fn finalize(
        &self,
        until: Instant,
    ) -> Result<(ClusterVersion, bool), FinalizeError> {
        // Who is a member, and who will be.
        let known = self.read_barrier(until).await;
        known.map_err(|error| ProposeError::NotProposed {
            reason: error.reason,
        })?;
        let mut releases = self.releases();
        releases.extend(self.admitted());
        let version = target(&releases)?;
        if version <= self.reader.state().version() {
            return Ok((version, false));
        }
        let (index, _) = self
            .propose(Action::RaiseVersion { version }, until)
            .await?;
        self.applied_upto(index, until).await;
        Ok((version, true))
    }

    /// Waits until this peer has applied `index`, or `until`.
    async fn applied_upto(&self, index: raftserve_model::LogIndex, until: Instant) {
        let mut applied = self.reader.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        // What was agreed on stays so, whether or not this peer knows it yet.
        let _ = tokio::time::timeout_at(until, reached).await;
    }

    /// Takes the digests of another peer's state, and ends this peer if it is the one that is wrong.
    pub(crate) fn compare(&self, from: NodeId, theirs: &[StateCheck]) {
        let voters = || -> BTreeSet<NodeId> {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().collect()
        };
        let own = self.reader.checks();
        match self.agreement.compare(&own, from, theirs, voters) {
            Verdict::Equal => {}
            Verdict::Others(differences) => {
                for difference in differences {
                    tracing::error!("states differ: {difference}");
                }
            }
            Verdict::Outvoted(difference) => self.end(format!(
                "{difference}, which is a majority: what this peer holds was not agreed on, by a defect or by damage to \
                 its memory or disk. Keep a copy of its data directory for whoever looks into it, then empty it, so \
                 that the peer joins again"
            )),
        }
    }

    /// Ends this peer for a reason, if it has not ended for another.
    pub(crate) fn end(&self, reason: String) {
        self.fatal.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                tracing::error!(reason, "this peer ends");
                *known = Some(reason);
            }
            first
        });
    }

    /// Has every peer note its state's digest at one entry, and says for each member what is known then:
    /// whether it has this peer's state. Waits for all, until `until`.
    pub(crate) async fn compare_states(
        &self,
        until: Instant,
    ) -> Result<(raftserve_model::LogIndex, BTreeMap<NodeId, Option<bool>>), ProposeError> {
        let (index, _) = self.propose(Action::CompareStates, until).await?;
        self.applied_upto(index, until).await;
        let mut tick = tokio::time::interval(super::RETRY_PAUSE);
        loop {
            self.compare(self.me(), &[]);
            let known = self.agreement.at(index);
            let own = known.get(&self.me());
            let members = self.directory.roster().members.into_keys();
            let outcome: BTreeMap<_, _> = members
                .map(|id| (id, known.get(&id).map(|digest| Some(digest) == own)))
                .collect();
            if outcome.values().all(Option::is_some) || Instant::now() >= until {
                return Ok((index, outcome));
            }
            tick.tick().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(id: u64, newest: u16, heard: bool) -> Release {
        Release {
            id: NodeId(id),
            name: Some(format!("0.{newest}.0")),
            supports: Some(VersionRange::new(1, newest)),
            heard,
        }
    }

    #[test]
    fn the_version_is_raised_once_every_member_supports_it() {
        let all = [release(1, 2, true), release(2, 2, true)];
        assert_eq!(target(&all).unwrap(), ClusterVersion(2));
    }

    #[test]
    fn who_stands_in_the_way_is_named() {
        let mixed = [
            release(1, 2, true),
            release(2, 1, true),
            release(3, 2, true),
        ];
        let said = target(&mixed).unwrap_err().to_string();
        assert!(
            said.contains("version 2") && said.contains("peer 2 (release 0.1.0, up to 1)"),
            "{said}"
        );
        let silent = [release(1, 2, true), release(2, 2, false)];
        let said = target(&silent).unwrap_err().to_string();
        assert!(said.contains("peer 2 has not been heard"), "{said}");
    }
}
