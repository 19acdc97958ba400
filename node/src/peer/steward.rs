//! Carries out, on whoever leads, what is decided about peers: adds admitted ones as learners, gives them a vote
//! when they are caught up, replaces wiped voters, takes the votes of those that are to go, and keeps addresses.
//!
//! Nothing is remembered between steps but what the log holds, so that a new leader goes on where the former
//! stopped. A peer that is to go gets no leases from the moment that this is agreed (see `share`), and is a
//! member until every lease that it may hold is surely over: the session fence waits for members only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::Precondition;
use openraft::{ChangeMembers, RaftMetrics};
use raftserve_model::NodeId;
use raftserve_store::command::Action;
use raftserve_store::raft::{PeerRecord, TypeConfig};
use raftserve_store::state::{PeerStanding, Promotion};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::plan::{Condition, Step, View};
use super::bootstrap::greet;
use super::core::{Core, LAG_MAX, follows_from};
use super::wire::{HelloRequest, MoveLeaderReply, Standing};

pub(crate) mod plan;

/// How often the leader looks.
const PERIOD: Duration = Duration::from_millis(200);

/// A member that has not answered for so long does not: peers exchange news twenty times a second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A voter that is further behind is none that a quorum can be made of soon, whether it answers or not. Far over what
/// is under way at full load, and worked off within a second.
pub(crate) const TRAILING_MAX: u64 = 8192;

/// For how long members may go without a look, since their leader has no quorum, and count as if it had looked.
const UNSEEN_MAX: Duration = Duration::from_secs(2);

/// How long one step may take before it is looked at afresh.
const STEP_MAX: Duration = Duration::from_secs(10);

/// When members come and go by themselves.
#[derive(Clone, Copy, Debug)]
pub struct MembershipPolicy {
    /// How long a learner must have answered and been caught up before it gets a vote.
    pub promote_after: Duration,
    /// Whether this peer, if it joins, becomes a voter by itself.
    pub promotion: Promotion,
    /// How long a voter must be silent before it is removed for good; never, if none.
    pub dead_after: Option<Duration>,
    /// How long a lease to use what was read may last beyond the last word of whoever gave it.
    pub lease: Duration,
}

/// Since when each member has been fit, as this peer, leading, has seen it.
#[derive(Debug, Default)]
pub(crate) struct HealthBook(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// Of the reign that all of this is about.
    term: u64,
    leading_since: Option<Instant>,
    /// When the members were looked at last.
    looked: Option<Instant>,
    /// Since when this peer, leading, has known of each.
    known: BTreeMap<NodeId, Instant>,
    steady: BTreeMap<NodeId, Instant>,
    leaving: BTreeMap<NodeId, Instant>,
}

impl Book {
    /// This peer leads in `term`, or has been confirmed to lead on after a time without a quorum. Under load that may be every
    /// few seconds, and must not have those begin anew who have kept up all the while. Of what went on for longer than
    /// that, nothing is known.
    fn begin(&mut self, term: u64) {
        let unseen = self.looked.map(|at| at.elapsed());
        if self.term != term {
            *self = Self {
                term,
                ..Self::default()
            };
        } else if unseen.is_none_or(|unseen| unseen > UNSEEN_MAX) {
            self.known.clear();
            self.steady.clear();
        }
    }

    /// How `node` is, which answered `heard` ago, if ever, and has `lag` entries to catch up with, none if that takes a
    /// snapshot.
    fn judge(&mut self, node: NodeId, heard: Option<Duration>, lag: Option<u64>) -> Condition {
        // A silence before this reign, or before it was admitted, is not held against anybody.
        let known = self
            .known
            .entry(node)
            .or_insert_with(Instant::now)
            .elapsed();
        let silent = heard.map_or(known, |silent| silent.min(known));
        let answers = heard.is_some_and(|silent| silent <= SILENCE_MAX);
        if answers && lag.is_some_and(|lag| lag < LAG_MAX) {
            self.steady.entry(node).or_insert_with(Instant::now);
        } else {
            self.steady.remove(&node);
        }
        Condition {
            answers,
            keeps_up: lag.is_some_and(|lag| lag < TRAILING_MAX),
            steady: self.steady.get(&node).map(Instant::elapsed),
            silent,
        }
    }
}

impl HealthBook {
    /// For how long `node` has been fit without a break.
    pub(crate) fn steady(&self, node: NodeId) -> Option<Duration> {
        self.with(|book| book.steady.get(&node).map(Instant::elapsed))
    }

    /// For how long this peer has led.
    pub(crate) fn leading_for(&self) -> Option<Duration> {
        self.with(|book| book.leading_since.map(|at| at.elapsed()))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs as long as the peer does, and acts while it leads.
pub(crate) async fn run(core: Arc<Core>) {
    let mut leadership = core.leadership.clone();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if leadership.wait_for(|now| now.is_self).await.is_err() {
            return;
        }
        let term = leadership.borrow().term;
        core.health.with(|book| book.begin(term));
        // What was agreed before this reign is known from here on.
        if core.read_barrier(Instant::now() + STEP_MAX).await.is_err() {
            period.tick().await;
            continue;
        }
        core.health.with(|book| {
            book.leading_since.get_or_insert_with(Instant::now);
        });
        while leadership.borrow().is_self {
            period.tick().await;
            let view = core.membership_view();
            core.acked.keep_only(&view.members);
            let steps = view.steps();
            for step in steps {
                let done = timeout(STEP_MAX, core.carry_out(&step)).await;
                match done {
                    Ok(Ok(true)) => {
                        tracing::info!(?step, "membership");
                        break;
                    }
                    Ok(Ok(false)) => {}
                    Ok(Err(reason)) => tracing::debug!(?step, %reason, "not yet"),
                    Err(_) => tracing::debug!(?step, "not in time"),
                }
            }
        }
    }
}

impl Core {
    /// What this peer, leading, knows of the members.
    pub(crate) fn membership_view(&self) -> View {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let members: BTreeSet<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
        let peers: Vec<_> = self.reader.state().peers().cloned().collect();
        let leaving = peers
            .iter()
            .filter(|peer| matches!(peer.standing, PeerStanding::Leaving { .. }))
            .map(|peer| peer.id)
            .collect();
        let moved = membership.nodes().filter_map(|(node, record)| {
            let said = self.announced(*node)?.peer_address;
            (said != record.address).then_some((*node, said))
        });
        let moved = moved.collect();
        let is_cut = |node: &NodeId| self.acked.is_cut(*node, metrics.current_term);
        let cut: BTreeSet<NodeId> = members.iter().copied().filter(is_cut).collect();
        let active = peers
            .iter()
            .filter(|peer| matches!(peer.standing, PeerStanding::Active(_)));
        let admitted = active.map(|peer| peer.id).chain(members.iter().copied());
        let conditions = self.conditions(&metrics, &admitted.collect(), &cut);
        View {
            me: self.me(),
            joint: configs.len() > 1,
            voters: configs.last().cloned().unwrap_or_default(),
            members,
            cut,
            moved,
            conditions,
            lease_free: self.lease_free(&leaving),
            peers,
            promote_after: self.policy.promote_after,
            dead_after: self.policy.dead_after,
        }
    }

    fn conditions(
        &self,
        metrics: &RaftMetrics<TypeConfig>,
        members: &BTreeSet<NodeId>,
        cut: &BTreeSet<NodeId>,
    ) -> BTreeMap<NodeId, Condition> {
        let last = metrics.last_log_index.unwrap_or(0);
        self.health.with(|book| {
            book.looked = Some(Instant::now());
            book.steady.retain(|node, _| members.contains(node));
            book.known.retain(|node, _| members.contains(node));
            let others = members.iter().filter(|node| **node != self.me());
            others
                .map(|node| {
                    // One whose log was cut does not count, whatever it answers.
                    let heard = self.directory.last_answer(*node).map(|at| at.elapsed());
                    let heard = heard.filter(|_| !cut.contains(node));
                    let lag = follows_from(metrics, *node).map(|at| last.saturating_sub(at));
                    (*node, book.judge(*node, heard, lag))
                })
                .collect()
        })
    }

    /// Those of `leaving` who hold no lease any more, for sure.
    fn lease_free(&self, leaving: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let over = self.policy.lease + self.confirmation.patience();
        let now = Instant::now();
        self.health.with(|book| {
            book.leaving.retain(|node, _| leaving.contains(node));
            leaving
                .iter()
                .copied()
                .filter(|node| {
                    let known = *book.leaving.entry(*node).or_insert(now);
                    self.policy.lease.is_zero() || now.duration_since(known) > over
                })
                .collect()
        })
    }

    /// Whether the step was taken; false if it has to wait for somebody else.
    async fn carry_out(&self, step: &Step) -> Result<bool, String> {
        match step {
            Step::Flatten => {
                self.change(ChangeMembers::AddVoterIds(BTreeSet::new()))
                    .await
            }
            Step::AddLearner(node) => self.add_learner(*node).await,
            Step::Promote(nodes) => self.change(ChangeMembers::AddVoterIds(nodes.clone())).await,
            Step::Replace { old, new } => {
                let changes = vec![
                    ChangeMembers::AddVoterIds(new.clone()),
                    ChangeMembers::RemoveVoters(old.clone()),
                ];
                self.change(ChangeMembers::Batch(changes)).await
            }
            Step::RemoveVoters(nodes) => {
                self.change(ChangeMembers::RemoveVoters(nodes.clone()))
                    .await
            }
            Step::RemoveLearner(node) => {
                self.change(ChangeMembers::RemoveNodes([*node].into()))
                    .await
            }
            Step::HandOver => {
                let until = Instant::now() + STEP_MAX;
                let moved = self.move_leader_here(None, until).await;
                let is_moved = matches!(moved, MoveLeaderReply::Moved(_));
                tracing::info!(
                    ?moved,
                    "this peer is to be removed, and another one shall lead"
                );
                Ok(is_moved)
            }
            Step::Readdress(node, address) => self.readdress(*node, address.clone()).await,
            Step::Retire(node) => self.decide(Action::RetirePeer { node: *node }).await,
            Step::Dismiss(node) => {
                let until = Instant::now() + STEP_MAX;
                let alone = self.alone_in_dismissing(&[*node].into(), until).await;
                let _alone = alone.map_err(|error| error.to_string())?;
                match self.dismissal(*node) {
                    Some(action) if self.membership_view().steps().contains(step) => {
                        self.decide(action).await
                    }
                    _ => Ok(false),
                }
            }
        }
    }

    async fn decide(&self, action: Action) -> Result<bool, String> {
        let until = Instant::now() + STEP_MAX;
        let proposed = self.propose_as_leader(action, until).await;
        proposed.map(|_| true).map_err(|error| error.to_string())
    }

    /// Only from the membership that the step was planned for.
    async fn change(&self, changes: ChangeMembers<NodeId, PeerRecord>) -> Result<bool, String> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last_membership_log_id = *metrics.membership_config.log_id();
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id,
        };
        let changed = self.raft.change_membership_if(changes, false, [unchanged]);
        changed
            .await
            .map(|_| true)
            .map_err(|error| error.to_string())
    }

    /// Who calls whom is told by id and nonce, so that a wrong address costs a call and never a vote.
    async fn readdress(&self, node: NodeId, address: String) -> Result<bool, String> {
        let roster = self.directory.roster();
        let Some(known) = roster.members.get(&node) else {
            return Ok(false);
        };
        let record = PeerRecord {
            nonce: known.nonce,
            address,
        };
        self.change(ChangeMembers::SetNodes([(node, record)].into()))
            .await
    }

    /// Only once it answers with its new identity on disk, so that nobody counts on what may be lost.
    async fn add_learner(&self, node: NodeId) -> Result<bool, String> {
        let state = self.reader.state();
        let Some(peer) = state.peer(node) else {
            return Ok(false);
        };
        let said = self.directory.address(node);
        let address = said.unwrap_or_else(|| peer.address.clone());
        let hello = HelloRequest {
            from: Some(self.announcement.clone()),
        };
        let answer = greet(self.links.dialer(), &address, &hello).await?;
        let expected = matches!(
            answer.standing,
            Standing::Member { cluster, node: id, nonce, .. }
                if (cluster, id, nonce) == (self.identity.cluster, node, peer.nonce)
        );
        if !expected {
            return Ok(false);
        }
        let record = PeerRecord {
            nonce: peer.nonce,
            address,
        };
        self.change(ChangeMembers::AddNodes([(node, record)].into()))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(9);
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_member_is_steady_only_as_long_as_it_answers_and_is_caught_up() {
        let mut book = Book::default();
        let mut steady = |heard, lag| book.judge(NODE, heard, lag).steady;
        let just_now = Some(Duration::ZERO);
        let (near, far) = (Some(LAG_MAX - 1), Some(LAG_MAX));
        assert_eq!(steady(just_now, far), None, "it answers, and is behind");
        assert_eq!(steady(just_now, near), Some(Duration::ZERO));
        tokio::time::advance(SECOND).await;
        assert_eq!(steady(just_now, near), Some(SECOND));
        let unknown = None;
        for (heard, lag) in [
            (just_now, far),
            (just_now, unknown),
            (Some(2 * SECOND), near),
            (None, near),
        ] {
            assert_eq!(steady(heard, lag), None, "{heard:?} {lag:?}");
            tokio::time::advance(SECOND).await;
            assert_eq!(steady(just_now, near), Some(Duration::ZERO), "begun anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_keeps_up_as_long_as_it_is_not_far_behind() {
        let mut book = Book::default();
        let mut keeps_up = |lag| book.judge(NODE, Some(Duration::ZERO), lag).keeps_up;
        assert!(keeps_up(Some(TRAILING_MAX - 1)));
        assert!(!keeps_up(Some(TRAILING_MAX)) && !keeps_up(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_before_the_reign_or_before_the_admission_does_not_count() {
        let mut book = Book::default();
        let heard = Some(60 * SECOND);
        let mut silent = |node, heard| book.judge(node, heard, Some(0)).silent;
        assert_eq!(silent(NODE, heard), Duration::ZERO);
        tokio::time::advance(SECOND).await;
        assert_eq!(silent(NODE, heard), SECOND);
        assert_eq!(silent(NODE, None), SECOND);
        assert_eq!(silent(NodeId(10), None), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_stays_steady_while_its_leader_lacks_a_quorum_for_a_moment() {
        let mut book = Book::default();
        let (just_now, near) = (Some(Duration::ZERO), Some(0));
        let look = |book: &mut Book| {
            book.looked = Some(Instant::now());
            let away = book.judge(NodeId(10), Some(60 * SECOND), near).silent;
            (book.judge(NODE, just_now, near).steady.unwrap(), away)
        };
        book.begin(7);
        assert_eq!(look(&mut book), (Duration::ZERO, Duration::ZERO));
        for seconds in 1..=9 {
            tokio::time::advance(SECOND).await;
            book.begin(7);
            assert_eq!(look(&mut book), (seconds * SECOND, seconds * SECOND));
        }
        // Much may have happened meanwhile.
        tokio::time::advance(UNSEEN_MAX + SECOND).await;
        book.begin(7);
        assert_eq!(look(&mut book), (Duration::ZERO, Duration::ZERO));
        book.leading_since = Some(Instant::now());
        tokio::time::advance(SECOND).await;
        book.begin(8);
        assert_eq!(look(&mut book), (Duration::ZERO, Duration::ZERO));
        assert_eq!(book.leading_since, None);
    }
}
