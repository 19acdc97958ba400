//! What is asked of the leader about members: admit one, remove one, promote one, tell how they are.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use raftserve_model::NodeId;
use raftserve_store::Outcome;
use raftserve_store::command::{Action, Refusal};
use raftserve_store::state::{PeerStanding, Predecessor};
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::place::{self, Known, Place};
use super::{ANSWER_GRACE, Core, Obstacle, follows_from, millis, pause};
use crate::consensus::{ManageError, ProposeError};
use crate::peer::bootstrap::greet;
use crate::peer::calls::Method;
use crate::peer::links::{CallError, frame};
use crate::peer::wire::{
    HelloRequest, JoinReply, JoinRequest, ManageReply, ManageRequest, ManageTask, MemberHealth,
    ProposeReply, Standing,
};

/// How long the admission of a peer may take; it asks again.
const ADMISSION: Duration = Duration::from_secs(5);

/// How long each entry of a change of members may take to be agreed on: as long as any other write.
const DECISION: Duration = Duration::from_millis(1_600);

/// How often it is looked at whether something has come about.
const LOOK: Duration = Duration::from_millis(50);

impl Core {
    /// Gives a peer with an empty directory an id, the same however often it asks.
    pub(crate) async fn admit(&self, asked: JoinRequest) -> JoinReply {
        let until = Instant::now() + ADMISSION;
        // Who runs at that address is known from an up-to-date membership only, and so is the cluster's version.
        if let Err(error) = self.read_barrier(until).await {
            return JoinReply::NotYet(error.to_string());
        }
        let version = self.reader.state().version();
        if let Err(unsupported) = asked.supports.check(version) {
            return JoinReply::Refused(unsupported.to_string());
        }
        let expected = Standing::Pristine { nonce: asked.nonce };
        match greet(
            self.links.dialer(),
            &asked.address,
            &HelloRequest { from: None },
        )
        .await
        {
            Ok(reply) if reply.standing == expected => {}
            Ok(_) => {
                return JoinReply::Refused(format!(
                    "another peer answers at {}: give each peer an address of its own",
                    asked.address
                ));
            }
            Err(reason) => {
                return JoinReply::NotYet(format!(
                    "peer {} cannot reach it at {}: {reason}",
                    self.me(),
                    asked.address
                ));
            }
        }
        if let Err(error) = self.pass_all_ids(until).await {
            return JoinReply::NotYet(error.to_string());
        }
        let replaces = match self.place_of(&asked) {
            Place::New => None,
            Place::Of(predecessor) => Some(predecessor),
            Place::Unsure(node) => {
                return JoinReply::NotYet(format!(
                    "peer {node}, which was at {} last, is looked for: it may be elsewhere now",
                    asked.address
                ));
            }
        };
        let action = Action::AdmitPeer {
            nonce: asked.nonce,
            replaces,
            address: asked.address,
            promotion: asked.promotion,
        };
        match self.propose(action, until).await {
            Ok((_, Outcome::Index(index))) => JoinReply::Admitted {
                cluster: self.identity.cluster,
                node: NodeId(index.0),
            },
            Ok((_, Outcome::Refused(taken @ Refusal::PeerIdTaken(_)))) => {
                JoinReply::NotYet(refused(&taken))
            }
            Ok((_, Outcome::Refused(refusal))) => JoinReply::Refused(refused(&refusal)),
            Ok((_, other)) => JoinReply::Refused(format!("an unexpected outcome: {other}")),
            Err(error) => JoinReply::NotYet(error.to_string()),
        }
    }

    /// Has the log grow until no peer, past or present, has an id above its end: a peer that is admitted gets the index
    /// of the entry for its id. Founders are numbered from 1, and may be more than their log has entries.
    async fn pass_all_ids(&self, until: Instant) -> Result<(), ProposeError> {
        loop {
            let roster = self.directory.roster();
            let state = self.reader.state();
            let members = roster.members.keys().copied();
            let highest = members.chain(state.peers().map(|peer| peer.id)).max();
            let applied = self.reader.last().map_or(0, |last| last.index.0);
            if highest.is_none_or(|highest| highest.0 <= applied) {
                return Ok(());
            }
            self.propose(Action::Tick, until).await?;
        }
    }

    /// Whose place a peer takes that asks to be let in.
    fn place_of(&self, asked: &JoinRequest) -> Place {
        let roster = self.directory.roster();
        let state = self.reader.state();
        let of = |node, nonce, recorded: &str| {
            let said = self.announced(node).map(|said| said.peer_address);
            let heard = self.directory.last_answer(node).map(|at| at.elapsed());
            Known {
                peer: Predecessor { node, nonce },
                said: said.is_some(),
                address: said.unwrap_or_else(|| recorded.to_owned()),
                silent: if node == self.me() {
                    Some(Duration::ZERO)
                } else {
                    heard
                },
            }
        };
        // Who leaves has a successor, or needs none.
        let is_active = |standing| matches!(standing, PeerStanding::Active(_));
        let stays = |node| state.peer(node).is_none_or(|it| is_active(it.standing));
        let members = roster.members.iter().filter(|(node, _)| stays(**node));
        let members = members.map(|(node, record)| of(*node, record.nonce, &record.address));
        let admitted = state
            .peers()
            .filter(|peer| is_active(peer.standing) && !roster.members.contains_key(&peer.id));
        let admitted = admitted.map(|peer| of(peer.id, peer.nonce, &peer.address));
        let known: Vec<Known> = members.chain(admitted).collect();
        let place = place::of(&asked.address, asked.nonce, &known, self.directory.age());
        let Place::Of(last) = place else {
            return place;
        };
        // One that was wiped again before it had the vote of the one before it.
        let successor = Some(last.node);
        let mut peers = state.peers();
        let before = peers.find(|it| it.standing == PeerStanding::Leaving { successor });
        Place::Of(before.map_or(last, |before| Predecessor {
            node: before.id,
            nonce: before.nonce,
        }))
    }

    /// The entry that decides that `node` is to go; none if there is no such member.
    pub(crate) fn dismissal(&self, node: NodeId) -> Option<Action> {
        let recorded = self.directory.roster().members.get(&node).cloned();
        let state = self.reader.state();
        let admitted = state.peer(node).filter(|peer| !peer.is_removed());
        let (nonce, address) = match (recorded, admitted) {
            (Some(record), _) => (record.nonce, record.address),
            (None, Some(peer)) => (peer.nonce, peer.address.clone()),
            (None, None) => return None,
        };
        Some(Action::DismissPeer {
            node,
            nonce,
            address,
        })
    }

    /// Does what is asked; this peer must lead.
    pub(crate) async fn manage_here(&self, task: ManageTask, until: Instant) -> ManageReply {
        let known = *self.leadership.borrow();
        if !known.is_self {
            return ManageReply::NotLeader {
                leader: known.leader.filter(|leader| *leader != self.me()),
            };
        }
        match task {
            ManageTask::Health => ManageReply::Health(self.health_of_members()),
            ManageTask::Remove(node) => match self.dismissal(node) {
                None => ManageReply::NoSuchPeer,
                Some(action) => match self.alone_in_dismissing(&[node].into(), until).await {
                    Ok(_alone) => self.settle(action, until).await,
                    Err(ManageError::Refused { reason }) => ManageReply::Refused(reason),
                    Err(ManageError::NotDone { reason } | ManageError::NotProposed { reason }) => {
                        ManageReply::NotProposed(reason)
                    }
                    Err(ManageError::NoSuchPeer) => ManageReply::NoSuchPeer,
                },
            },
            ManageTask::Promote(node) => self.settle(Action::PromotePeer { node }, until).await,
        }
    }

    /// Whether this peer, leading, may decide that all of `nodes` are to go. As long as what is returned is held, nobody else
    /// decides such a thing here: two removals that each leave a quorum need not leave one together.
    pub(crate) async fn alone_in_dismissing(
        &self,
        nodes: &BTreeSet<NodeId>,
        until: Instant,
    ) -> Result<MutexGuard<'_, ()>, ManageError> {
        let alone = timeout_at(decided_by(until), self.dismissing.lock()).await;
        let alone = alone.map_err(|_| ManageError::NotProposed {
            reason: "other removals are being decided".to_owned(),
        })?;
        // One that was proposed before may have been agreed to without anybody hearing of it. This comes after it.
        let settled = self
            .propose_as_leader(Action::Tick, decided_by(until))
            .await;
        settled.map_err(|error| ManageError::NotProposed {
            reason: error.to_string(),
        })?;
        match self.membership_view().may_dismiss(nodes) {
            Ok(()) => Ok(alone),
            Err(reason) => Err(ManageError::Refused { reason }),
        }
    }

    async fn settle(&self, action: Action, until: Instant) -> ManageReply {
        match self.propose_here(action, decided_by(until)).await {
            ProposeReply::Done { outcome, .. } => match outcome {
                Outcome::Refused(Refusal::NoSuchPeer(_)) => ManageReply::NoSuchPeer,
                Outcome::Refused(refusal) => ManageReply::Refused(refused(&refusal)),
                _ => ManageReply::Agreed,
            },
            ProposeReply::NotLeader { leader } => ManageReply::NotLeader { leader },
            ProposeReply::NotProposed(reason) | ProposeReply::NotFinalized(reason) => {
                ManageReply::NotProposed(reason)
            }
            // It may be asked again: what is agreed already is agreed to again.
            ProposeReply::Unknown(reason) => ManageReply::Failed(reason),
        }
    }

    fn health_of_members(&self) -> Vec<MemberHealth> {
        let view = self.membership_view();
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.clone().unwrap_or_default();
        let member = |node: &NodeId| {
            let mine = *node == self.me();
            let at = matched.get(node).copied().flatten().map(|id| id.index);
            let follows = follows_from(&metrics, *node);
            let condition = view.conditions.get(node);
            let tiding = self.tiding_of(*node);
            MemberHealth {
                node: *node,
                voter: view.voters.contains(node),
                answers: mine || condition.is_some_and(|it| it.answers),
                matched: if mine { Some(last) } else { at },
                lag: if mine {
                    Some(0)
                } else {
                    follows.map(|at| last.saturating_sub(at))
                },
                healthy_for_ms: if mine {
                    self.health.leading_for().map(millis)
                } else {
                    self.health.steady(*node).map(millis)
                },
                silent_ms: if mine {
                    Some(0)
                } else {
                    self.directory
                        .last_answer(*node)
                        .map(|at| millis(at.elapsed()))
                },
                stalled_ms: tiding.stalled_ms,
                room: tiding.room,
                foreigner: tiding.foreigner,
                vote: view.vote(*node),
            }
        };
        view.members.iter().map(member).collect()
    }

    async fn manage_at(&self, leader: NodeId, task: ManageTask, until: Instant) -> ManageReply {
        let within = until.saturating_duration_since(Instant::now());
        let message = frame(&ManageRequest {
            task,
            within_ms: millis(within),
        });
        let within = within + ANSWER_GRACE;
        match self.forward(leader, Method::Manage, within, message).await {
            Ok(reply) => reply,
            // Neither reached the leader's log.
            Err(error @ (CallError::NotSent { .. } | CallError::Refused { .. })) => {
                ManageReply::NotProposed(error.to_string())
            }
            Err(error) => ManageReply::Failed(error.to_string()),
        }
    }

    /// Has it done wherever the leader is. No further attempt begins after `retried`, and all end by `until`.
    async fn manage(
        &self,
        task: ManageTask,
        retried: Instant,
        until: Instant,
    ) -> Result<ManageReply, ManageError> {
        let mut watch = self.leadership.clone();
        let mut hint = None;
        let mut perhaps = false;
        loop {
            let known = *watch.borrow_and_update();
            let reply = match hint.take().or(known.leader) {
                Some(leader) if leader == self.me() => self.manage_here(task, until).await,
                Some(leader) => self.manage_at(leader, task, until).await,
                None => ManageReply::NotLeader { leader: None },
            };
            let reason = match reply {
                ManageReply::NotLeader { leader } => {
                    hint = leader.filter(|leader| Some(*leader) != known.leader);
                    Obstacle::no_leader().0
                }
                ManageReply::NotProposed(reason) => reason,
                ManageReply::Failed(reason) => {
                    perhaps = true;
                    reason
                }
                ManageReply::NoSuchPeer => return Err(ManageError::NoSuchPeer),
                ManageReply::Refused(reason) => return Err(ManageError::Refused { reason }),
                done @ (ManageReply::Agreed | ManageReply::Health(_)) => return Ok(done),
            };
            if hint.is_none() && !pause(&mut watch, known.leader.is_none(), retried).await {
                return Err(match perhaps {
                    true => ManageError::NotDone { reason },
                    false => ManageError::NotProposed { reason },
                });
            }
        }
    }

    /// Has the cluster agree on what is asked. That takes no longer than two other writes may, however long `until` leaves
    /// for what comes of it; without a quorum it takes as long as one.
    async fn agree(&self, task: ManageTask, until: Instant) -> Result<(), ManageError> {
        let now = Instant::now();
        let (retried, decided) = (until.min(now + DECISION), until.min(now + 2 * DECISION));
        match self.manage(task, retried, decided).await {
            Ok(_) => Ok(()),
            Err(ManageError::NotDone { reason }) => Err(ManageError::NotDone {
                reason: format!(
                    "it is not known whether that is agreed to ({reason}). Without a quorum it may be decided later: look at \
                     the members first, or ask again"
                ),
            }),
            Err(error) => Err(error),
        }
    }

    /// How the leader sees the members.
    pub(crate) async fn member_health(
        &self,
        until: Instant,
    ) -> Result<Vec<MemberHealth>, ManageError> {
        match self.manage(ManageTask::Health, until, until).await? {
            ManageReply::Health(members) => Ok(members),
            _ => Err(ManageError::NotDone {
                reason: "the leader answered something else".to_owned(),
            }),
        }
    }

    /// Removes a member, and waits until it is one no more.
    pub(crate) async fn remove_member(
        &self,
        node: NodeId,
        until: Instant,
    ) -> Result<(), ManageError> {
        self.agree(ManageTask::Remove(node), until).await?;
        let gone = async {
            loop {
                let state = self.reader.state();
                // A peer that is removed itself hears of it otherwise, and of nothing else after that.
                let deaf = *self.removed.borrow();
                if state.peer(node).is_some_and(|peer| peer.is_removed())
                    || (deaf && node == self.me())
                {
                    return Ok(());
                }
                if deaf {
                    return Err(ManageError::NotDone {
                        reason: format!(
                            "the removal of peer {node} is agreed and goes on, but the peer that was asked is removed \
                             itself: ask another one"
                        ),
                    });
                }
                sleep(LOOK).await;
            }
        };
        let left = until.saturating_duration_since(Instant::now());
        let late = || ManageError::NotDone {
            reason: format!(
                "the removal of peer {node} is agreed and goes on, but was not done in time"
            ),
        };
        timeout(left, gone).await.unwrap_or_else(|_| Err(late()))
    }

    /// Decides at once that all of `nodes` are to go, if this peer leads and the others can go on without them.
    pub(crate) async fn dismiss_all(
        &self,
        nodes: BTreeSet<NodeId>,
        until: Instant,
    ) -> Result<(), ManageError> {
        let _alone = self.alone_in_dismissing(&nodes, until).await?;
        let view = self.membership_view();
        // Those without a vote first: none of them is given one of those that go.
        let votes = |node: &NodeId| view.voters.contains(node);
        let (voters, others): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            nodes.into_iter().partition(votes);
        for going in [others, voters] {
            let actions = going.into_iter().filter_map(|node| self.dismissal(node));
            let deciding = actions.map(|action| self.propose_as_leader(action, until));
            for decided in join_all(deciding).await {
                match decided {
                    Ok((_, Outcome::Refused(refusal))) => {
                        return Err(ManageError::Refused {
                            reason: refused(&refusal),
                        });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        return Err(ManageError::NotDone {
                            reason: error.to_string(),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a learner a vote, and waits until it has it.
    pub(crate) async fn promote_member(
        &self,
        node: NodeId,
        until: Instant,
    ) -> Result<(), ManageError> {
        let is_voter = || {
            let metrics = self.raft.metrics();
            let seen = metrics.borrow_watched();
            seen.membership_config.voter_ids().any(|id| id == node)
        };
        if is_voter() {
            return Ok(());
        }
        self.agree(ManageTask::Promote(node), until).await?;
        let voting = async {
            while !is_voter() {
                sleep(LOOK).await;
            }
        };
        let left = until.saturating_duration_since(Instant::now());
        timeout(left, voting).await.map_err(|_| ManageError::NotDone {
            reason: format!(
                "peer {node} is to become a voter, and does so once it has answered and been caught up for a while"
            ),
        })
    }

    /// Whether the session fence waits for `node`, so that it may be given a lease: it is a member by an entry
    /// that is committed, and not about to go.
    pub(crate) fn counts(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let membership = &seen.membership_config;
        let decided = membership.log_id().map(|id| id.index);
        let applied = seen.last_applied.map(|id| id.index);
        let belongs = decided <= applied && membership.membership().get_node(&node).is_some();
        let state = self.reader.state();
        let stays = state
            .peer(node)
            .is_none_or(|peer| matches!(peer.standing, PeerStanding::Active(_)));
        belongs && stays
    }
}

/// Until when an entry that is proposed now may be agreed on.
fn decided_by(until: Instant) -> Instant {
    until.min(Instant::now() + DECISION)
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::PeerRemoved(node) => format!(
            "its data directory was that of peer {node}, which was removed or is about to be: empty it, and the peer \
             joins again under a new id"
        ),
        Refusal::NoSuchPeer(node) => format!("the cluster has no peer {node}"),
        Refusal::PeerIdTaken(node) => {
            format!("another peer has or had the id {node}: ask again, for the next one")
        }
        Refusal::Limit(what) => what.clone(),
        other => format!("it was refused: {other:?}"),
    }
}
