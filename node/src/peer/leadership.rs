//! Follows what openraft says about itself, and tells the rest of the peer: who leads, who belongs,
//! and whether it is all over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Instant as _, RaftMetrics, ServerState};
use raftserve_model::NodeId;
use raftserve_store::raft::TypeConfig;
use raftserve_store::wal::Failed;
use tokio::sync::watch;
use tokio::time::sleep;

use super::directory::{Directory, Roster};
use super::store::{RaftHandle, StateReader};
use crate::clock;
use crate::consensus::Leadership;

/// What decides who leads.
#[derive(Clone, Copy, Debug)]
struct View {
    me: NodeId,
    term: u64,
    /// Whom openraft follows, itself included.
    leader: Option<NodeId>,
    /// Whether openraft holds itself for the leader.
    leads: bool,
    /// Whether nobody else votes, so that nobody else need confirm.
    alone: bool,
    /// How long ago a quorum last confirmed it.
    confirmed: Option<Duration>,
}

/// Who leads. A leader that no quorum has confirmed within `patience` does not call itself one: by
/// then the others have had time to elect another.
fn judge(view: View, patience: Duration) -> Leadership {
    let fresh = view.alone || view.confirmed.is_some_and(|ago| ago <= patience);
    let is_self = view.leads && view.leader == Some(view.me) && fresh;
    Leadership {
        term: view.term,
        leader: view.leader.filter(|leader| *leader != view.me || is_self),
        is_self,
    }
}

/// What is said of a change: who leads now, in which term. A term in which nobody leads yet is not news: the one that comes
/// of it is.
fn told(before: Leadership, now: Leadership) -> Option<String> {
    match (before.leader, now.leader) {
        (_, Some(leader)) if (before.leader, before.term) != (now.leader, now.term) => {
            Some(match now.is_self {
                true => format!("elected: this peer, {leader}, leads"),
                false => format!("peer {leader} leads"),
            })
        }
        (Some(leader), None) => Some(match before.is_self {
            true => "this peer leads no more: no quorum has confirmed it, or another is elected"
                .to_owned(),
            false => format!("peer {leader} leads no more: there is no leader"),
        }),
        _ => None,
    }
}

fn view(me: NodeId, metrics: &RaftMetrics<TypeConfig>) -> View {
    let mut voters = metrics.membership_config.voter_ids();
    View {
        me,
        term: metrics.current_term,
        leader: metrics.current_leader,
        leads: metrics.state == ServerState::Leader,
        alone: voters.next() == Some(me) && voters.next().is_none(),
        confirmed: metrics.last_quorum_acked.map(|at| at.elapsed()),
    }
}

fn roster(metrics: &RaftMetrics<TypeConfig>) -> Roster {
    let membership = &metrics.membership_config;
    Roster {
        decided_at: membership.log_id().map(|id| id.index),
        members: membership
            .nodes()
            .map(|(id, record)| (*id, record.clone()))
            .collect(),
    }
}

/// Until when this peer led for sure, as boot time: when the newest message was sent that a quorum
/// has answered. Shared with whoever gives or holds leases.
#[derive(Debug)]
pub(crate) struct Confirmation {
    /// Nanoseconds; 0 for none.
    sent_at: AtomicU64,
    patience: Duration,
}

impl Confirmation {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            sent_at: AtomicU64::new(0),
            patience,
        }
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        match self.sent_at.load(Ordering::Acquire) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    fn set(&self, sent_at: Option<Duration>) {
        let nanos = sent_at.map_or(0, |at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
        self.sent_at.store(nanos, Ordering::Release);
    }
}

/// Notices that the host slept, which the monotonic clock does not count: what was measured across
/// that time is shorter than it was.
#[derive(Debug)]
struct SleepWatch {
    started: std::time::Instant,
    /// Boot time less monotonic time, as last seen.
    ahead: Duration,
    /// How long after `started` the host was last found to have slept.
    woke: Duration,
}

impl SleepWatch {
    fn new() -> Self {
        Self {
            started: std::time::Instant::now(),
            ahead: clock::boot_time(),
            woke: Duration::ZERO,
        }
    }

    /// The boot time `ago`, unless the host slept since.
    fn boot_time_before(&mut self, ago: Duration) -> Option<Duration> {
        let (boot, running) = (clock::boot_time(), self.started.elapsed());
        let ahead = boot.saturating_sub(running);
        if ahead > self.ahead + SLEEP_NOTICED {
            self.woke = running;
        }
        self.ahead = ahead;
        (running.saturating_sub(ago) >= self.woke).then(|| boot.saturating_sub(ago))
    }
}

/// A difference between clocks that reading them one after the other does not explain.
const SLEEP_NOTICED: Duration = Duration::from_millis(20);

/// What to do about a log or a state machine that has failed.
const MENDED: &str = "Once the cause is mended (room on the disk, another disk), start it again: it has all that it \
     acknowledged, and catches up";

/// Why Raft ended, and what to do.
fn remedy(fatal: &Fatal<TypeConfig>, reader: &StateReader) -> String {
    if let Some(unsupported) = reader.unsupported() {
        return format!("cannot run this release any more: {unsupported}");
    }
    match fatal {
        Fatal::StorageError(error) => format!("{error}. {MENDED}"),
        Fatal::Panicked => {
            "Raft panicked, which is a defect: please report it with the lines above".to_owned()
        }
        Fatal::Stopped => fatal.to_string(),
    }
}

/// Follows openraft until it ends.
pub(crate) struct Follower {
    pub(crate) me: NodeId,
    pub(crate) raft: RaftHandle,
    pub(crate) directory: Arc<Directory>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) fatal: watch::Sender<Option<String>>,
    /// The log's own failure. openraft may hear of it only at its next write.
    pub(crate) log: watch::Receiver<Option<Failed>>,
    /// openraft's heartbeat: how often a silence is looked at.
    pub(crate) heartbeat: Duration,
    /// What is told about how fresh this peer's leadership is.
    pub(crate) confirmation: Arc<Confirmation>,
    /// What is on record about peers.
    pub(crate) reader: StateReader,
}

impl Follower {
    /// Runs until Raft has stopped; then says why in `fatal`.
    pub(crate) async fn run(mut self) {
        let mut metrics = self.raft.metrics();
        let mut sleep_watch = SleepWatch::new();
        let reason = loop {
            if let Some(failed) = &*self.log.borrow_and_update() {
                break format!("{failed}. {MENDED}");
            }
            {
                let seen = metrics.borrow_watched();
                if let Err(error) = &seen.running_state {
                    break remedy(error, &self.reader);
                }
                self.publish(&seen, &mut sleep_watch);
            }
            let ended = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                changed = self.log.changed() => changed.is_err(),
                // The tick by which a silent quorum is noticed.
                () = sleep(self.heartbeat) => false,
            };
            if ended {
                break self.why_it_ended().await;
            }
        };
        self.confirmation.set(None);
        self.leadership.send_replace(Leadership::default());
        self.fatal.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(reason);
            first
        });
    }

    async fn why_it_ended(&self) -> String {
        let asked = self.raft.with_raft_state(|_| ()).await;
        asked.err().map_or_else(
            || "Raft has ended without a word".to_owned(),
            |error| remedy(&error, &self.reader),
        )
    }

    fn publish(&self, metrics: &RaftMetrics<TypeConfig>, sleep_watch: &mut SleepWatch) {
        let mut view = view(self.me, metrics);
        if view.alone {
            view.confirmed = Some(Duration::ZERO);
        }
        let sent_at = view
            .confirmed
            .and_then(|ago| sleep_watch.boot_time_before(ago));
        view.confirmed = view.confirmed.filter(|_| sent_at.is_some());
        let now = judge(view, self.confirmation.patience());
        self.confirmation.set(sent_at.filter(|_| now.is_self));
        let mut before = now;
        self.leadership.send_if_modified(|known| {
            before = std::mem::replace(known, now);
            before != now
        });
        if let Some(text) = told(before, now) {
            tracing::info!(term = now.term, "{text}");
        }
        let decided_at = metrics.membership_config.log_id().map(|id| id.index);
        if self.directory.decided_at() != decided_at {
            self.directory.set_roster(roster(metrics));
        }
        self.directory.set_register(&self.reader.state());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(600);

    fn leader(confirmed: Option<u64>) -> View {
        View {
            me: NodeId(1),
            term: 4,
            leader: Some(NodeId(1)),
            leads: true,
            alone: false,
            confirmed: confirmed.map(Duration::from_millis),
        }
    }

    #[test]
    fn a_leader_without_a_quorum_does_not_call_itself_one() {
        let confirmed = judge(leader(Some(600)), PATIENCE);
        assert_eq!(
            (confirmed.leader, confirmed.is_self),
            (Some(NodeId(1)), true)
        );
        for silent in [Some(601), None] {
            let judged = judge(leader(silent), PATIENCE);
            assert_eq!((judged.leader, judged.is_self), (None, false));
        }
    }

    #[test]
    fn who_leads_is_told_once_for_each_term_and_so_is_its_end() {
        let at = |term, leader: Option<u64>| Leadership {
            term,
            leader: leader.map(NodeId),
            is_self: leader == Some(1),
        };
        let told = |before, now| told(before, now).unwrap_or_default();
        assert_eq!(told(at(0, None), at(4, Some(2))), "peer 2 leads");
        assert_eq!(told(at(4, Some(2)), at(4, Some(2))), "");
        assert_eq!(told(at(4, Some(2)), at(5, Some(2))), "peer 2 leads");
        assert!(told(at(4, Some(2)), at(5, Some(1))).starts_with("elected: this peer, 1"));
        assert!(told(at(4, Some(2)), at(5, None)).starts_with("peer 2 leads no more"));
        assert!(told(at(5, Some(1)), at(5, None)).starts_with("this peer leads no more"));
        assert_eq!(told(at(5, None), at(6, None)), "", "candidates come and go");
    }

    #[test]
    fn a_sole_voter_needs_nobody() {
        let alone = View {
            alone: true,
            ..leader(None)
        };
        assert!(judge(alone, PATIENCE).is_self);
    }

    #[test]
    fn a_follower_names_its_leader() {
        let follower = View {
            leader: Some(NodeId(2)),
            leads: false,
            ..leader(None)
        };
        let judged = judge(follower, PATIENCE);
        assert_eq!((judged.leader, judged.is_self), (Some(NodeId(2)), false));
    }
}
