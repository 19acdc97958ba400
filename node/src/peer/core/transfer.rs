//! Handing over leadership.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;
use raftserve_model::NodeId;
use raftserve_store::raft::TypeConfig;
use raftserve_store::state::PeerStanding;
use tokio::time::{Instant, timeout_at};

use super::Core;
use crate::peer::wire::MoveLeaderReply;

/// A target may be this many entries behind: what one append carries, so that it catches up within a
/// round trip. One that is further behind would leave the cluster without a leader for long.
pub(crate) const LAG_MAX: u64 = 512;

/// A target must have answered this lately to be handed anything.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// How long the target may take to lead. It needs a vote, and asks for it at once; after this long
/// the others will elect among themselves, since a leader that hands over sends no more heartbeats.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// A voter that might lead, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    node: NodeId,
    /// From where its log goes on: see [`follows_from`].
    matched: Option<u64>,
    /// How long ago it last answered.
    silence: Option<Duration>,
    /// Whether it lost entries that it had acknowledged.
    is_cut: bool,
    /// Whether it is to go, so that it would have to hand over in turn.
    leaving: bool,
    /// Whether it is known to have been restarted already by what restarts this leader, so that it need not hand over in turn.
    renewed: bool,
    /// How its release compares with the leader's. A newer one has been restarted already while a cluster is upgraded.
    release: Ordering,
}

/// How a release compares with another, by the precedence of semantic versions. What is none compares with nothing.
fn compared(release: &str, with: &str) -> Ordering {
    let parsed = |text| semver::Version::parse(text);
    match (parsed(release), parsed(with)) {
        (Ok(release), Ok(with)) => release.cmp_precedence(&with),
        (Err(_), _) | (_, Err(_)) => Ordering::Equal,
    }
}

/// The last entry that `node` is known to hold, as the leader whose `metrics` these are knows it. None where it is not
/// known, or where what comes after it is in the leader's log no more: then a whole snapshot comes first, however few
/// entries it stands for.
pub(crate) fn follows_from(metrics: &RaftMetrics<TypeConfig>, node: NodeId) -> Option<u64> {
    let matched = metrics.replication.as_ref()?.get(&node)?.as_ref()?.index;
    let purged = metrics.purged.as_ref().map(|id| id.index);
    (Some(matched) >= purged).then_some(matched)
}

/// Chooses whom to hand over to.
fn choose(target: Option<NodeId>, last: u64, candidates: &[Candidate]) -> Result<NodeId, String> {
    let fit = |candidate: &Candidate| {
        let lag = last.saturating_sub(candidate.matched.unwrap_or(0));
        // Before its silence: it answers nothing that a leader sends, and will not.
        if candidate.is_cut {
            return Err(format!(
                "peer {} lost part of its log, and must be wiped",
                candidate.node
            ));
        }
        if candidate
            .silence
            .is_none_or(|silence| silence > SILENCE_MAX)
        {
            return Err(format!("peer {} does not answer", candidate.node));
        }
        if candidate.matched.is_none() {
            return Err(format!(
                "peer {} has not said yet how far its log reaches, or has to be sent a snapshot first",
                candidate.node
            ));
        }
        if lag >= LAG_MAX {
            return Err(format!(
                "peer {} is {lag} entries behind, and may be at most {LAG_MAX}",
                candidate.node
            ));
        }
        Ok(candidate.node)
    };
    match target {
        Some(target) => candidates
            .iter()
            .find(|candidate| candidate.node == target)
            .ok_or_else(|| format!("peer {target} is not a voter of this cluster"))
            .and_then(fit),
        None => candidates
            .iter()
            .filter(|candidate| !candidate.leaving && fit(candidate).is_ok())
            // A rollback renews peers with an older release.
            .max_by_key(|candidate| (candidate.renewed, candidate.release, candidate.matched))
            .map(|candidate| candidate.node)
            .ok_or_else(|| "no other voter answers and is caught up".to_owned()),
    }
}

impl Core {
    /// Notes which peers have been restarted already by what restarts this one, in the place of those noted before.
    pub(crate) fn note_renewed(&self, renewed: BTreeSet<NodeId>) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
    }

    fn renewed(&self) -> BTreeSet<NodeId> {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.clone()
    }

    /// Hands leadership from this peer to `target`, or to whoever is furthest along.
    pub(crate) async fn move_leader_here(
        &self,
        target: Option<NodeId>,
        until: Instant,
    ) -> MoveLeaderReply {
        let known = *self.leadership.borrow();
        if !known.is_self {
            return MoveLeaderReply::NotLeader {
                leader: known.leader.filter(|leader| *leader != self.me()),
            };
        }
        if target == Some(self.me()) {
            return MoveLeaderReply::Moved(self.me());
        }
        let (last, candidates) = self.candidates();
        let chosen = match choose(target, last, &candidates) {
            Ok(chosen) => chosen,
            Err(reason) => return MoveLeaderReply::Failed(reason),
        };
        if let Err(error) = self.raft.trigger().transfer_leader(chosen).await {
            return MoveLeaderReply::Failed(error.to_string());
        }
        self.await_take_over(chosen, until).await
    }

    fn candidates(&self) -> (u64, Vec<Candidate>) {
        let state = self.reader.state();
        let leaving = |node: NodeId| {
            let standing = state.peer(node).map(|peer| peer.standing);
            matches!(standing, Some(PeerStanding::Leaving { .. }))
        };
        let release = |node: NodeId| {
            let said = self.announced(node);
            said.map_or(Ordering::Equal, |said| {
                compared(&said.version, &self.announcement.version)
            })
        };
        let renewed = self.renewed();
        let metrics = self.raft.metrics().borrow_watched().clone();
        let heard = metrics.heartbeat.clone().unwrap_or_default();
        let others = metrics
            .membership_config
            .voter_ids()
            .filter(|node| *node != self.me())
            .map(|node| Candidate {
                node,
                matched: follows_from(&metrics, node),
                silence: heard.get(&node).and_then(Option::as_ref).map(|at| {
                    use openraft::Instant as _;
                    at.elapsed()
                }),
                is_cut: self.acked.is_cut(node, metrics.current_term),
                leaving: leaving(node),
                renewed: renewed.contains(&node),
                release: release(node),
            })
            .collect();
        (metrics.last_log_index.unwrap_or(0), others)
    }

    async fn await_take_over(&self, chosen: NodeId, until: Instant) -> MoveLeaderReply {
        let mut watch = self.leadership.clone();
        let until = until.min(Instant::now() + TAKE_OVER);
        let me = self.me();
        let settled = watch.wait_for(|now| now.leader.is_some_and(|leader| leader != me));
        let leader = match timeout_at(until, settled).await {
            Ok(Ok(now)) => now.leader,
            Ok(Err(_)) | Err(_) => None,
        };
        match leader {
            Some(leader) if leader == chosen => MoveLeaderReply::Moved(chosen),
            Some(other) => MoveLeaderReply::Failed(format!(
                "peer {chosen} was asked to lead, and peer {other} was elected"
            )),
            None => {
                // Nobody sends heartbeats now: this peer is as good a candidate as any.
                if let Err(error) = self.raft.trigger().elect(true).await {
                    tracing::debug!(%error, "no election was begun");
                }
                MoveLeaderReply::Failed(format!(
                    "peer {chosen} was asked to lead and has not taken over in time"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::LogIndex;
    use raftserve_store::entry::LogId;
    use raftserve_store::raft::log_id_to;

    use super::*;

    fn candidate(node: u64, matched: u64, silent_ms: u64) -> Candidate {
        Candidate {
            node: NodeId(node),
            matched: Some(matched),
            silence: Some(Duration::from_millis(silent_ms)),
            is_cut: false,
            leaving: false,
            renewed: false,
            release: Ordering::Equal,
        }
    }

    #[test]
    fn a_release_is_newer_by_the_order_of_versions() {
        for (release, with, expected) in [
            ("0.10.0", "0.9.0", Ordering::Greater),
            ("0.9.0", "0.10.0", Ordering::Less),
            ("1.0.0-rc.2", "1.0.0-rc.1", Ordering::Greater),
            ("1.0.0-rc.2", "1.0.0", Ordering::Less),
            ("1.0.0+b", "1.0.0+a", Ordering::Equal),
            ("main", "1.0.0", Ordering::Equal),
        ] {
            assert_eq!(compared(release, with), expected, "{release} {with}");
        }
    }

    #[test]
    fn leadership_goes_to_one_that_stays_and_first_to_one_that_is_updated() {
        let mut candidates = [2, 3, 4].map(|node| candidate(node, 990 + node, 10));
        candidates[2].leaving = true;
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(3)));
        candidates[0].release = Ordering::Greater;
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(2)));
        candidates[0].release = Ordering::Less;
        assert_eq!(
            choose(None, 1000, &candidates),
            Ok(NodeId(3)),
            "an older one"
        );
        candidates[0].renewed = true;
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(2)), "a rollback");
        candidates.iter_mut().for_each(|it| it.leaving = true);
        assert!(choose(None, 1000, &candidates).is_err());
        let named = choose(Some(NodeId(4)), 1000, &candidates);
        assert_eq!(named, Ok(NodeId(4)), "people may know better");
    }

    #[test]
    fn leadership_goes_to_whoever_is_furthest_along() {
        let candidates = [candidate(2, 990, 10), candidate(3, 1000, 10)];
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(3)));
        let candidates = [candidate(2, 990, 10), candidate(3, 1000, 900)];
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(2)));
    }

    #[test]
    fn a_target_that_lags_or_is_silent_or_unknown_is_refused() {
        let candidates = [candidate(2, 1000 - LAG_MAX, 10), candidate(3, 1000, 501)];
        for (target, word) in [(2, "behind"), (3, "answer"), (4, "not a voter")] {
            let refusal = choose(Some(NodeId(target)), 1000, &candidates).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
        assert!(choose(None, 1000, &candidates).is_err());
    }

    #[test]
    fn a_log_follows_only_from_where_the_leaders_own_goes_on() {
        let id = |index| {
            log_id_to(LogId {
                index: LogIndex(index),
                ..LogId::default()
            })
        };
        let mut metrics = RaftMetrics::<TypeConfig>::new_initial(NodeId(1));
        assert_eq!(follows_from(&metrics, NodeId(2)), None, "it does not lead");
        for (purged, matched, expected) in [
            (None, None, None),
            (None, Some(3), Some(3)),
            (Some(3), None, None),
            (Some(3), Some(2), None),
            (Some(3), Some(3), Some(3)),
            (Some(3), Some(4), Some(4)),
        ] {
            metrics.purged = purged.map(id);
            metrics.replication = Some([(NodeId(2), matched.map(id))].into());
            let found = follows_from(&metrics, NodeId(2));
            assert_eq!(found, expected, "{purged:?} {matched:?}");
        }
    }

    #[test]
    fn a_target_that_is_to_be_sent_a_snapshot_is_refused_however_near_it_is() {
        let mut away = candidate(2, 0, 10);
        away.matched = None;
        let refusal = choose(Some(NodeId(2)), 4, &[away]).unwrap_err();
        assert!(refusal.contains("snapshot"), "{refusal}");
        assert!(choose(None, 4, &[away]).is_err());
    }

    #[test]
    fn a_target_that_lost_part_of_its_log_is_refused_where_it_was_once() {
        let mut cut = candidate(2, 1000, 10);
        cut.is_cut = true;
        // In its later silence, too.
        for silence in [cut.silence, Some(Duration::from_secs(60)), None] {
            let refusal = choose(Some(NodeId(2)), 1000, &[Candidate { silence, ..cut }]);
            let refusal = refusal.unwrap_err();
            assert!(refusal.contains("lost part of its log"), "{refusal}");
        }
        let candidates = [cut, candidate(3, 990, 10)];
        assert_eq!(choose(None, 1000, &candidates), Ok(NodeId(3)));
    }
}
