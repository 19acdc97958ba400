//! Word of commits to a follower, kept back for a moment where the next entries will carry it.
//!
//! Once a quorum has a group of entries, openraft tells each follower so, in an append of its own if there is nothing
//! else to send just then. Under a steady load of small writes there will be within a millisecond: without this, every
//! write would cost each follower a second message and its answer, and the next entries would wait for that answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::Fuse;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use raftserve_store::raft::TypeConfig;
use tokio::time::{Instant, Sleep, sleep};

/// Entries that follow each other as closely as this are a steady load; and so long they are waited for. A follower
/// that has to know sooner hears of a commit later by no more than that.
const CLOSE: Duration = Duration::from_millis(2);

type Append = AppendEntriesRequest<TypeConfig>;

/// The appends of `appends`, without those that carry nothing and are followed closely by one that does.
pub(super) struct WithEntries<S> {
    appends: Fuse<S>,
    /// One that carries nothing, until when it is kept.
    held: Option<(Append, Pin<Box<Sleep>>)>,
    /// When entries were sent last, and whether the ones before were close.
    sent: Option<Instant>,
    is_steady: bool,
}

impl<S: Stream> WithEntries<S> {
    pub(super) fn new(appends: S) -> Self {
        Self {
            // It is asked once more after its end, if that brings out what is held.
            appends: appends.fuse(),
            held: None,
            sent: None,
            is_steady: false,
        }
    }

    fn note_entries(&mut self) {
        let now = Instant::now();
        self.is_steady = self.sent.is_some_and(|sent| now - sent <= CLOSE);
        self.sent = Some(now);
    }
}

impl<S: Stream<Item = Append> + Unpin> Stream for WithEntries<S> {
    type Item = Append;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Append>> {
        let this = self.get_mut();
        // The newest says all that those before it did.
        while let Poll::Ready(next) = this.appends.poll_next_unpin(context) {
            let Some(append) = next else {
                return Poll::Ready(this.held.take().map(|(append, _)| append));
            };
            if !append.entries.is_empty() {
                this.held = None;
                this.note_entries();
                return Poll::Ready(Some(append));
            }
            if !this.is_steady {
                return Poll::Ready(Some(append));
            }
            let until = this.held.take().map(|(_, until)| until);
            this.held = Some((append, until.unwrap_or_else(|| Box::pin(sleep(CLOSE)))));
        }
        let Some((_, until)) = &mut this.held else {
            return Poll::Pending;
        };
        ready!(until.poll_unpin(context));
        this.is_steady = false;
        Poll::Ready(this.held.take().map(|(append, _)| append))
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;
    use openraft::vote::RaftLeaderId;
    use openraft::{EntryPayload, Vote};
    use raftserve_model::NodeId;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, NodeId>;

    fn log_id(index: u64) -> openraft::LogId<LeaderId> {
        openraft::LogId::new(LeaderId::new(1, NodeId(1)).to_committed(), index)
    }

    /// One that carries the entry after `previous` if it is to, and says that `commit` is committed.
    fn append(previous: u64, commit: u64, with_entry: bool) -> Append {
        let entry = || openraft::Entry::new(log_id(previous + 1), EntryPayload::Blank);
        AppendEntriesRequest {
            vote: Vote::new_committed(1, NodeId(1)),
            prev_log_id: Some(log_id(previous)),
            entries: with_entry.then(entry).into_iter().collect(),
            leader_commit: Some(log_id(commit)),
        }
    }

    struct Leader {
        appends: mpsc::Sender<Append>,
        sent: WithEntries<ReceiverStream<Append>>,
    }

    impl Leader {
        fn new() -> Self {
            let (appends, queue) = mpsc::channel(8);
            let sent = WithEntries::new(ReceiverStream::new(queue));
            Self { appends, sent }
        }

        /// The commit that the next append tells, and how long it took to come.
        async fn next(&mut self) -> (Option<u64>, Duration) {
            let begun = Instant::now();
            let next = self.sent.next().await;
            let commit = next.and_then(|append| Some(append.leader_commit?.index));
            (commit, begun.elapsed())
        }

        /// Entries 1 to 3, close together.
        async fn steady() -> Self {
            let mut leader = Self::new();
            for index in 0..3 {
                leader.appends.try_send(append(index, index, true)).unwrap();
                assert_eq!(leader.next().await, (Some(index), Duration::ZERO));
            }
            leader
        }
    }

    #[tokio::test(start_paused = true)]
    async fn under_a_steady_load_the_next_entries_tell_of_commits() {
        let mut leader = Leader::steady().await;
        leader.appends.try_send(append(3, 3, false)).unwrap();
        leader.appends.try_send(append(3, 3, true)).unwrap();
        leader.appends.try_send(append(4, 4, false)).unwrap();
        assert_eq!(leader.next().await, (Some(3), Duration::ZERO));
        // Nothing comes any more: the last commit is told all the same.
        assert_eq!(leader.next().await, (Some(4), CLOSE));
        // Nor is it a steady load any more.
        leader.appends.try_send(append(4, 5, false)).unwrap();
        assert_eq!(leader.next().await, (Some(5), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_entries_have_told_is_not_told_again() {
        let mut leader = Leader::steady().await;
        leader.appends.try_send(append(3, 3, false)).unwrap();
        leader.appends.try_send(append(3, 3, true)).unwrap();
        assert_eq!(leader.next().await, (Some(3), Duration::ZERO));
        leader.appends = mpsc::channel(1).0;
        assert_eq!(leader.next().await, (None, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn commits_are_not_put_off_again_and_again() {
        let mut leader = Leader::steady().await;
        let appends = leader.appends.clone();
        tokio::spawn(async move {
            for commit in 3..50 {
                if appends.send(append(3, commit, false)).await.is_err() {
                    return;
                }
                sleep(CLOSE / 2).await;
            }
        });
        let (commit, waited) = leader.next().await;
        assert!(commit >= Some(4), "{commit:?}");
        assert_eq!(waited, CLOSE);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_steady_load_commits_are_told_at_once() {
        let mut leader = Leader::new();
        for index in 0..3 {
            leader.appends.try_send(append(index, index, true)).unwrap();
            assert_eq!(leader.next().await, (Some(index), Duration::ZERO));
            leader
                .appends
                .try_send(append(index + 1, index + 1, false))
                .unwrap();
            assert_eq!(leader.next().await, (Some(index + 1), Duration::ZERO));
            sleep(CLOSE * 2).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_sent_before_the_end() {
        let mut leader = Leader::steady().await;
        leader.appends.try_send(append(3, 3, false)).unwrap();
        leader.appends = mpsc::channel(1).0;
        assert_eq!(leader.next().await, (Some(3), Duration::ZERO));
        assert_eq!(leader.next().await, (None, Duration::ZERO));
        assert_eq!(leader.next().await, (None, Duration::ZERO));
    }
}
