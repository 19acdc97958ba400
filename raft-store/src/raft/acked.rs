//! What each follower has acknowledged to this peer as leader, so that one whose log went back is recognised.
//!
//! A follower whose disk was rolled back, or lost the end of its log, takes that for a torn write and cannot know
//! better; and openraft goes on counting it where it was, and asks it for the same for ever. Its leader can know:
//! an append names the entry that it follows, and a follower that denies an entry which it had acknowledged, to
//! this leader and before the append was sent, has lost it.
//!
//! What follows is the end of a voter, so that nothing else may look like it:
//!
//! - *It was on disk.* A follower acknowledges nothing before the log has synced it, and an append without entries,
//!   a heartbeat, not before all is synced that it had taken. One that is killed between memory and disk has
//!   acknowledged nothing.
//! - *It was not given up.* Under the vote of one leader a follower drops an entry only where that leader's log has
//!   another, and a leader never rewrites its own. What an earlier leader was told is no claim: the book is of one
//!   term. This process leads a term at most once, since a restarted one leads no more in it
//!   (`enable_leader_restore`), and it has no book then.
//! - *It is denied under the same vote.* Who has seen a later leader answers with that vote and looks at nothing
//!   else: a leader that was paused is told that it is none. Vote and entries are one stream on disk, so that no
//!   crash keeps what a later leader cut off and forgets that leader.
//! - *Purged is not denied.* What a snapshot covers is committed, and openraft affirms all that is committed. A
//!   snapshot has its name durably before the log before it goes.
//! - *Answers keep their places.* What counts is what was acknowledged when the append was sent ([`Sent`]), so that
//!   an answer which comes late, or an append that arrives twice or after others, denies nothing that came meanwhile.
//! - *It is who acknowledged.* An id belongs to one directory for ever. Two processes with copies of one directory
//!   may each miss what the other has; so the follower is asked to look itself ([`lacks`]) before it ends.
//!
//! The simulation keeps this book too: there no disk loses what was synced, and whoever is found cut is a violation.
//!
//! One case is left, and then the entries are lost: a follower holds uncommitted entries of an earlier leader up to
//! beyond a snapshot that it is sent, openraft cuts off all of its log that is not known to be committed, though some
//! was just acknowledged, and the process is killed before the snapshot has its name. A leader keeps
//! [`LOG_KEPT`](super::LOG_KEPT) entries, or [`LOG_BYTES_KEPT`](super::LOG_BYTES_KEPT) bytes of them, so that it would
//! take as many which nobody ever committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use openraft::RaftState;
use openraft::raft::AppendEntriesResponse;
use raftserve_model::NodeId;

use super::{StoreTypes, log_id_from};
use crate::entry::{LogId, Vote};

/// The book of a leader.
#[derive(Debug, Default)]
pub struct Acked(Mutex<BTreeMap<NodeId, Follower>>);

/// One follower, as of one term.
#[derive(Clone, Copy, Debug, Default)]
struct Follower {
    term: u64,
    /// The first index that it has not acknowledged.
    end: u64,
    is_cut: bool,
}

/// An append that is on its way.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    to: NodeId,
    vote: Vote,
    /// The entry that it follows.
    previous: Option<LogId>,
    /// The index after its last entry.
    end: u64,
    /// The first index that the follower had not acknowledged when it was sent.
    acked: u64,
}

/// A follower that has lost what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Under which vote it acknowledged it, and does not hold it any more.
    pub vote: Vote,
    /// The entry that it denies.
    pub missing: LogId,
    /// The first index that it has not acknowledged.
    pub acked: u64,
    /// Whether that is seen for the first time.
    pub is_news: bool,
}

impl Acked {
    fn book(&self) -> MutexGuard<'_, BTreeMap<NodeId, Follower>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before an append of `count` entries is sent: what the follower has acknowledged by then is on its
    /// disk when it answers.
    pub fn sending(&self, to: NodeId, vote: Vote, previous: Option<LogId>, count: u64) -> Sent {
        let book = self.book();
        let known = book.get(&to).filter(|it| it.term == vote.term);
        Sent {
            to,
            vote,
            previous,
            end: previous.map_or(0, |previous| previous.index.0 + 1) + count,
            acked: known.map_or(0, |it| it.end),
        }
    }

    /// Notes what the follower answered. Returns what it has lost, if it denies what it had acknowledged.
    pub fn answered<C: StoreTypes>(
        &self,
        sent: &Sent,
        response: &AppendEntriesResponse<C>,
    ) -> Option<Cut> {
        let upto = match response {
            AppendEntriesResponse::Success => Some(sent.end),
            AppendEntriesResponse::PartialSuccess(last) => last.as_ref().map(|it| it.index + 1),
            AppendEntriesResponse::Conflict => return self.denied(sent),
            AppendEntriesResponse::HigherVote(_) => None,
        };
        if let Some(end) = upto {
            self.acknowledge(sent.to, sent.vote.term, end);
        }
        None
    }

    /// Notes that `node` has all entries before `end`.
    fn acknowledge(&self, node: NodeId, term: u64, end: u64) {
        let mut book = self.book();
        let known = book.entry(node).or_default();
        if known.term < term {
            *known = Follower::default();
        }
        if known.term <= term {
            known.term = term;
            // Its disk may have been put right.
            known.is_cut &= end < known.end;
            known.end = known.end.max(end);
        }
    }

    /// Notes that the follower does not hold the entry which the append follows.
    fn denied(&self, sent: &Sent) -> Option<Cut> {
        let missing = sent.previous.filter(|it| it.index.0 < sent.acked)?;
        let mut book = self.book();
        let known = book.get_mut(&sent.to);
        let known = known.filter(|it| it.term == sent.vote.term)?;
        Some(Cut {
            vote: sent.vote,
            missing,
            acked: sent.acked,
            is_news: !std::mem::replace(&mut known.is_cut, true),
        })
    }

    /// Forgets all but `members`: who was removed never comes back under its id. One that was added meanwhile is booked
    /// again when it next acknowledges something.
    pub fn keep_only(&self, members: &BTreeSet<NodeId>) {
        self.book().retain(|node, _| members.contains(node));
    }

    /// Whether `node` has lost some of what it acknowledged in `term`, as far as this peer has seen.
    pub fn is_cut(&self, node: NodeId, term: u64) -> bool {
        let book = self.book();
        let known = book.get(&node);
        known.is_some_and(|it| it.term == term && it.is_cut)
    }
}

/// Whether this peer, which is told by the leader under `vote` that it has lost `missing`, finds that itself. Not if it
/// follows another, nor if it holds the entry, or a state that covers it.
pub fn lacks<C: StoreTypes>(state: &RaftState<C>, vote: Vote, missing: LogId) -> bool {
    let in_force = super::vote_from(state.vote_ref()) == vote;
    let committed = state.local_committed().map(log_id_from);
    let is_covered = committed.is_some_and(|it| it.index >= missing.index);
    let held = state.log_ids.get(missing.index.0);
    in_force && !is_covered && held.as_ref().map(log_id_from) != Some(missing)
}

#[cfg(test)]
mod tests {
    use raftserve_model::LogIndex;

    use super::*;
    use crate::raft::{TypeConfig, log_id_to};

    const NODE: NodeId = NodeId(2);

    type Response = AppendEntriesResponse<TypeConfig>;

    fn vote(term: u64) -> Vote {
        Vote {
            term,
            node: NodeId(1),
            committed: true,
        }
    }

    fn entry(index: u64) -> LogId {
        LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(index),
        }
    }

    /// An append of `count` entries after the one at `previous`.
    fn sending(acked: &Acked, term: u64, previous: u64, count: u64) -> Sent {
        acked.sending(NODE, vote(term), Some(entry(previous)), count)
    }

    fn acknowledged(acked: &Acked, term: u64, last: u64) {
        let sent = sending(acked, term, last, 0);
        assert_eq!(acked.answered(&sent, &Response::Success), None);
    }

    fn denied(acked: &Acked, sent: &Sent) -> Option<Cut> {
        acked.answered(sent, &Response::Conflict)
    }

    #[test]
    fn who_denies_an_entry_that_it_acknowledged_is_cut_and_that_is_news_once() {
        let acked = Acked::default();
        acknowledged(&acked, 4, 10);
        let sent = sending(&acked, 4, 10, 3);
        let cut = Cut {
            vote: vote(4),
            missing: entry(10),
            acked: 11,
            is_news: true,
        };
        assert_eq!(denied(&acked, &sent), Some(cut));
        assert!(acked.is_cut(NODE, 4) && !acked.is_cut(NODE, 5));
        assert!(!acked.is_cut(NodeId(3), 4));
        let again = Cut {
            is_news: false,
            ..cut
        };
        assert_eq!(denied(&acked, &sent), Some(again));
        acknowledged(&acked, 4, 9);
        assert!(acked.is_cut(NODE, 4), "not all is back");
        acknowledged(&acked, 4, 10);
        assert!(!acked.is_cut(NODE, 4));
    }

    #[test]
    fn a_follower_that_is_only_behind_is_not_cut() {
        let acked = Acked::default();
        // The leader looks for where their logs part.
        for previous in [90, 45, 22] {
            let sent = sending(&acked, 4, previous, 0);
            assert_eq!(denied(&acked, &sent), None);
        }
        acknowledged(&acked, 4, 10);
        let sent = sending(&acked, 4, 11, 0);
        assert_eq!(denied(&acked, &sent), None);
        let sent = acked.sending(NODE, vote(4), None, 3);
        assert_eq!(denied(&acked, &sent), None, "it follows nothing");
        assert!(!acked.is_cut(NODE, 4));
    }

    #[test]
    fn who_is_no_member_any_more_is_forgotten() {
        let acked = Acked::default();
        acknowledged(&acked, 4, 10);
        acked.keep_only(&BTreeSet::from([NODE]));
        assert_eq!(sending(&acked, 4, 10, 0).acked, 11);
        acked.keep_only(&BTreeSet::from([NodeId(3)]));
        assert!(acked.book().is_empty());
    }

    #[test]
    fn only_what_was_acknowledged_when_the_append_was_sent_counts() {
        let acked = Acked::default();
        let early = sending(&acked, 4, 10, 0);
        acknowledged(&acked, 4, 10);
        assert_eq!(denied(&acked, &early), None);
        assert!(denied(&acked, &sending(&acked, 4, 10, 0)).is_some());
    }

    #[test]
    fn what_an_earlier_leader_was_told_is_no_claim() {
        let acked = Acked::default();
        acknowledged(&acked, 4, 10);
        assert_eq!(denied(&acked, &sending(&acked, 5, 10, 0)), None);
        // Nor is what comes late any news of a later term.
        let late = sending(&acked, 4, 10, 0);
        acknowledged(&acked, 5, 3);
        assert_eq!(denied(&acked, &late), None);
        assert_eq!(acked.answered(&late, &Response::Success), None);
        assert_eq!(denied(&acked, &sending(&acked, 5, 10, 0)), None);
        assert!(!acked.is_cut(NODE, 5));
    }

    #[test]
    fn of_an_append_that_was_taken_in_part_only_that_part_counts() {
        let acked = Acked::default();
        let sent = sending(&acked, 4, 10, 5);
        let higher = Response::HigherVote(crate::raft::vote_to(vote(5)));
        assert_eq!(acked.answered(&sent, &higher), None);
        assert_eq!(sending(&acked, 4, 10, 0).acked, 0);
        let none = Response::PartialSuccess(None);
        assert_eq!(acked.answered(&sent, &none), None);
        assert_eq!(sending(&acked, 4, 10, 0).acked, 0);
        let some = Response::PartialSuccess(Some(log_id_to(entry(12))));
        assert_eq!(acked.answered(&sent, &some), None);
        assert_eq!(sending(&acked, 4, 10, 0).acked, 13);
        assert_eq!(acked.answered(&sent, &Response::Success), None);
        assert_eq!(sending(&acked, 4, 10, 0).acked, 16);
    }
}
