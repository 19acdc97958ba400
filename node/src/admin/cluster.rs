//! The service `Cluster`.

use std::sync::Arc;
use std::time::Duration;

use raftserve_model::{ClusterVersion, NodeId, VersionRange};
use raftserve_store::state::PeerStanding;
use tonic::{Request, Response, Status};

use super::calls::patience;
use super::errors::Reason;
use super::gate::admitted;
use super::proposer;
use super::shared::{Shared, no_quorum};
use super::v1::{self, cluster_server::Cluster};
use crate::consensus::{ManageError, MemberView, ProposeError};
use crate::peer::{FinalizeError, MemberHealth, Release, TRAILING_MAX, Vote};

/// How long a status may look for a quorum before it says that there is none.
const QUORUM_CHECK: Duration = Duration::from_millis(500);

/// How long a transfer of leadership may take: several elections.
const TRANSFER_BUDGET: Duration = Duration::from_secs(10);

/// How long raising the version may take: it is one log entry.
const FINALIZE_BUDGET: Duration = Duration::from_millis(1_800);

/// How long to wait for the other peers' states: they come with the next exchange.
const COMPARE_BUDGET: Duration = Duration::from_millis(1_800);

/// How long the leader may take to tell how the members are.
const HEALTH_BUDGET: Duration = Duration::from_secs(2);

fn unmanaged(node: NodeId, error: &ManageError) -> Status {
    match error {
        ManageError::NoSuchPeer => {
            Reason::NoSuchMember.status(format!("the cluster has no peer {node}"))
        }
        ManageError::Refused { reason } => Reason::MemberNeeded.status(reason.clone()),
        ManageError::NotProposed { .. } => Reason::NotProposed.status(error.to_string()),
        ManageError::NotDone { reason } => Reason::OutcomeUnknown.status(reason.clone()),
    }
}

fn no_health(error: &ManageError) -> Status {
    let reason = match error {
        ManageError::NotDone { reason }
        | ManageError::NotProposed { reason }
        | ManageError::Refused { reason } => reason.clone(),
        ManageError::NoSuchPeer => error.to_string(),
    };
    no_quorum("the peers' health cannot be told", &reason)
}

fn proto_ms(ms: u64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_millis(ms)).ok()
}

/// Whether it answers, is caught up, has a disk that answers, and meets nobody of another cluster.
fn is_well(member: &MemberHealth) -> bool {
    member.healthy_for_ms.is_some() && member.stalled_ms.is_none() && member.foreigner.is_none()
}

/// How many more voters may fall silent before there is no quorum of those that are not far behind.
fn failure_tolerance(members: &[MemberHealth]) -> u32 {
    let voters = members.iter().filter(|member| member.voter);
    let counts = |member: &&MemberHealth| {
        let keeps_up = member.lag.is_some_and(|lag| lag < TRAILING_MAX);
        member.answers && keeps_up
    };
    let counting = voters.clone().filter(counts).count();
    let quorum = voters.count() / 2 + 1;
    u32::try_from(counting.saturating_sub(quorum)).unwrap_or(u32::MAX)
}

/// See the module.
pub(super) struct ClusterApi(pub(super) Arc<Shared>);

impl ClusterApi {
    /// Why no quorum answers now, if none does.
    async fn without_quorum(&self) -> Option<String> {
        let confirming = self.0.parts.consensus.read_barrier(QUORUM_CHECK);
        match tokio::time::timeout(QUORUM_CHECK, confirming).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.reason),
            Err(_) => Some("no answer in time".to_owned()),
        }
    }
}

fn member(member: MemberView, asked: NodeId) -> v1::Member {
    v1::Member {
        asked: member.id == asked,
        id: member.id.0,
        peer_address: member.address,
        admin_address: member.admin_address.unwrap_or_default(),
        voter: member.voter,
        leader: member.leader,
        up: member.up,
        matched_index: member.matched.map(|index| index.0),
        last_contact: member
            .last_contact
            .and_then(|ago| prost_types::Duration::try_from(ago).ok()),
    }
}

fn vote(vote: Vote) -> v1::Vote {
    match vote {
        Vote::Has => v1::Vote::Has,
        Vote::Due => v1::Vote::Due,
        Vote::NeedsAnother => v1::Vote::NeedsAnother,
        Vote::ByHand => v1::Vote::ByHand,
        Vote::Leaving => v1::Vote::Leaving,
        Vote::LogCut => v1::Vote::LogCut,
    }
}

fn release(release: Release) -> v1::Release {
    let supported = |end: fn(VersionRange) -> ClusterVersion| {
        release.supports.map_or(0, |range| end(range).0.into())
    };
    v1::Release {
        node_id: release.id.0,
        oldest: supported(|range| range.oldest),
        newest: supported(|range| range.newest),
        version: release.name.unwrap_or_default(),
        heard: release.heard,
    }
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let (v1::MembersRequest {}, _held) = admitted(request);
        let consensus = &self.0.parts.consensus;
        let mut members = consensus.members();
        members.sort_by_key(|member| member.id);
        let asked = consensus.node_id();
        let root = self.0.parts.provider.shared_root();
        Ok(Response::new(v1::MembersResponse {
            cluster_id: consensus.cluster_id().to_string(),
            replica_root: root
                .map(|root| root.display().to_string())
                .unwrap_or_default(),
            members: members
                .into_iter()
                .map(|view| member(view, asked))
                .collect(),
        }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let (v1::StatusRequest {}, _held) = admitted(request);
        let consensus = &self.0.parts.consensus;
        let quorum_reason = self.without_quorum().await.unwrap_or_default();
        let leadership = *consensus.leadership().borrow();
        let applied = *consensus.applied().borrow();
        let state = consensus.state();
        let compared = consensus.compared();
        let sessions: usize = state
            .services()
            .map(|service| state.session_count(service.id))
            .sum();
        Ok(Response::new(v1::StatusResponse {
            cluster_id: consensus.cluster_id().to_string(),
            node_id: consensus.node_id().0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            term: leadership.term,
            leader_id: leadership.leader.map_or(0, |leader| leader.0),
            quorum: quorum_reason.is_empty(),
            quorum_reason,
            applied_index: applied.0,
            ready: *self.0.parts.ready.borrow(),
            services: state.services().count() as u64,
            replicas: state.replicas().count() as u64,
            sessions: sessions as u64,
            cluster_version: state.version().0.into(),
            releases: consensus.releases().into_iter().map(release).collect(),
            compared_index: compared.upto.0,
            differs_index: compared.differs.map_or(0, |(index, _)| index.0),
            hindrance: self.0.hindrance().unwrap_or_default(),
            endpoints_hindrance: self.0.endpoints_hindrance().unwrap_or_default(),
            differs_peer: compared.differs.map_or(0, |(_, peer)| peer.0),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let (asked, held) = admitted(request);
        let consensus = &self.0.parts.consensus;
        let target = asked.target.map(NodeId);
        let known = |target: NodeId| consensus.members().iter().any(|peer| peer.id == target);
        if let Some(stranger) = target.filter(|target| !known(*target)) {
            return Err(Reason::NoSuchMember.status(format!("the cluster has no peer {stranger}")));
        }
        // What was begun may still come about, and is not to be asked of another peer; this is before that.
        if consensus.leadership().borrow().leader.is_none()
            && let Some(reason) = self.without_quorum().await
        {
            return Err(no_quorum("leadership was not handed over", &reason));
        }
        let within = TRANSFER_BUDGET.min(patience(&held));
        let transfer = consensus.transfer_leader(target, within);
        let leader = tokio::time::timeout(within, transfer)
            .await
            .map_err(|_| Reason::NotTransferred.status("leadership was not handed over in time"))?
            .map_err(|error| Reason::NotTransferred.status(error.to_string()))?;
        Ok(Response::new(v1::TransferLeaderResponse {
            leader_id: leader.0,
        }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        let (asked, held) = admitted(request);
        let node = NodeId(asked.node_id);
        let consensus = &self.0.parts.consensus;
        let removed = consensus.remove_member(node, patience(&held));
        removed.await.map_err(|error| unmanaged(node, &error))?;
        Ok(Response::new(v1::RemoveMemberResponse {}))
    }

    async fn promote_member(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        let (asked, held) = admitted(request);
        let node = NodeId(asked.node_id);
        let consensus = &self.0.parts.consensus;
        let promoted = consensus.promote_member(node, patience(&held));
        promoted.await.map_err(|error| unmanaged(node, &error))?;
        Ok(Response::new(v1::PromoteMemberResponse {}))
    }

    async fn health(
        &self,
        request: Request<v1::HealthRequest>,
    ) -> Result<Response<v1::HealthResponse>, Status> {
        let (v1::HealthRequest {}, _held) = admitted(request);
        let consensus = &self.0.parts.consensus;
        let members = consensus.member_health(HEALTH_BUDGET).await;
        let members = members.map_err(|error| no_health(&error))?;
        let leader = consensus.leadership().borrow().leader;
        let (known, state) = (consensus.members(), consensus.state());
        let shown = |health: &MemberHealth| {
            let view = known.iter().find(|member| member.id == health.node);
            let said = consensus.peer_info(health.node);
            let standing = state.peer(health.node).map(|peer| peer.standing);
            let successor = match standing {
                Some(PeerStanding::Leaving { successor }) => successor,
                Some(PeerStanding::Active(_) | PeerStanding::Removed) | None => None,
            };
            v1::MemberHealth {
                id: health.node.0,
                voter: health.voter,
                up: health.answers,
                lag: health.lag,
                healthy_for: health.healthy_for_ms.and_then(proto_ms),
                last_contact: health.silent_ms.and_then(proto_ms),
                version: said.map(|said| said.version).unwrap_or_default(),
                peer_address: view.map(|view| view.address.clone()).unwrap_or_default(),
                vote: vote(health.vote).into(),
                successor_id: successor.map(|successor| successor.0),
                disk_stalled_for: health.stalled_ms.and_then(proto_ms),
                disk_room: health.room.map(|room| v1::DiskRoom {
                    free_bytes: room.free,
                    total_bytes: room.total,
                    short: room.is_short,
                }),
                foreigner: health.foreigner.map(|met| v1::Foreigner {
                    cluster_id: met.cluster.to_string(),
                    node_id: met.node.0,
                }),
            }
        };
        Ok(Response::new(v1::HealthResponse {
            healthy: members.iter().all(is_well),
            failure_tolerance: failure_tolerance(&members),
            leader_id: leader.map_or(0, |leader| leader.0),
            members: members.iter().map(shown).collect(),
        }))
    }

    async fn open_client(
        &self,
        request: Request<v1::OpenClientRequest>,
    ) -> Result<Response<v1::OpenClientResponse>, Status> {
        let (v1::OpenClientRequest {}, _held) = admitted(request);
        let client = self.0.proposer.open_client().await?;
        Ok(Response::new(v1::OpenClientResponse {
            client_id: client.0,
        }))
    }

    async fn finalize(
        &self,
        request: Request<v1::FinalizeRequest>,
    ) -> Result<Response<v1::FinalizeResponse>, Status> {
        let (v1::FinalizeRequest {}, _held) = admitted(request);
        let finalized = self.0.parts.consensus.finalize(FINALIZE_BUDGET).await;
        let (version, raised) = finalized.map_err(|error| match error {
            FinalizeError::Propose(error) => proposer::refused(&error),
            refused => Reason::NotFinalized.status(refused.to_string()),
        })?;
        Ok(Response::new(v1::FinalizeResponse {
            cluster_version: version.0.into(),
            raised,
        }))
    }

    async fn compare_states(
        &self,
        request: Request<v1::CompareStatesRequest>,
    ) -> Result<Response<v1::CompareStatesResponse>, Status> {
        let (v1::CompareStatesRequest {}, _held) = admitted(request);
        let comparing = self.0.parts.consensus.compare_states(COMPARE_BUDGET);
        let (index, peers) = comparing.await.map_err(|error| match error {
            // Nothing was to be changed: a comparison may always be made again.
            ProposeError::OutcomeUnknown { reason } => {
                no_quorum("the states cannot be compared", &reason)
            }
            not_proposed => proposer::refused(&not_proposed),
        })?;
        let peers = peers.into_iter().map(|(id, equal)| v1::PeerState {
            node_id: id.0,
            equal,
        });
        Ok(Response::new(v1::CompareStatesResponse {
            log_index: index.0,
            peers: peers.collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_that_is_silent_or_far_behind_is_one_that_failed_already() {
        let member = |answers, lag| MemberHealth {
            node: NodeId(1),
            voter: true,
            answers,
            matched: None,
            lag,
            healthy_for_ms: None,
            silent_ms: None,
            stalled_ms: None,
            room: None,
            foreigner: None,
            vote: Vote::Has,
        };
        let near = member(true, Some(TRAILING_MAX - 1));
        let tolerance = |third| failure_tolerance(&[near, near, third]);
        assert_eq!(tolerance(near), 1);
        for third in [
            member(false, Some(0)),
            member(true, Some(TRAILING_MAX)),
            member(true, None),
        ] {
            assert_eq!(tolerance(third), 0, "{third:?}");
        }
    }
}
