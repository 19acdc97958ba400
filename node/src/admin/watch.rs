//! Watches: one task for each, which reads a part of the agreed state that is kept for watchers and hands it on in
//! batches, one per log index.
//!
//! What is kept is the buffer: a watch that is behind holds nothing of its own beyond a few batches. One that does not
//! read at all is cut, so that it cannot hold its place for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use raftserve_model::LogIndex;
use raftserve_store::State;
use raftserve_store::state::Compacted;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::errors::Reason;
use super::shared::Shared;

/// How many batches may wait for the client: enough to keep the connection busy.
const BATCHES_WAITING_MAX: usize = 16;

/// How long a client may leave its stream unread while there is something for it. The connection's
/// own buffers hold thousands of events, so a client this slow has stopped.
const UNREAD_MAX: Duration = Duration::from_secs(10);

/// How often a watch for which nothing happens gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// A stream of batches, with why it ended at its end.
pub(super) type Batches<B> = BoxStream<'static, Result<B, Status>>;

/// What is watched.
pub(super) trait Watched: Send + Sync + 'static {
    /// What a client gets of one index.
    type Batch: Send + 'static;

    /// Reads on after `after`: a bounded part, to the end of an index.
    ///
    /// # Errors
    /// [`Compacted`] if something after `after` is no longer kept.
    fn read(&self, state: &State, after: LogIndex) -> Result<Page<Self::Batch>, Compacted>;

    /// What says that there is nothing more up to `index`.
    fn bookmark(index: LogIndex) -> Self::Batch;
}

/// Part of what is watched.
pub(super) struct Page<B> {
    /// What matches, whole indices only.
    pub(super) batches: Vec<(LogIndex, B)>,
    /// The last index read; none if the end was reached.
    pub(super) read_upto: Option<LogIndex>,
}

/// Begins a watch at `from`: at what comes from now on, if none, and at the oldest that is kept, if 0.
///
/// # Errors
/// `COMPACTED` if that is no longer kept; as [`Shared::admit_stream`].
pub(super) fn begin<W: Watched>(
    shared: &Arc<Shared>,
    watched: W,
    from: Option<u64>,
) -> Result<Response<Batches<W::Batch>>, Status> {
    let consensus = &shared.parts.consensus;
    let applied = *consensus.applied().borrow();
    let state = consensus.state();
    let after = match from {
        None => applied,
        Some(0) => oldest(&watched, &state),
        Some(from) => LogIndex(from - 1),
    };
    // Told at once if it cannot be, as the call's status rather than in the stream.
    watched.read(&state, after).map_err(compacted)?;
    let permit = shared.admit_stream()?;
    let (batches, receiver) = mpsc::channel(BATCHES_WAITING_MAX);
    let (told, why) = oneshot::channel();
    let watch = Watch {
        shared: Arc::clone(shared),
        watched,
        after,
        bookmark_at: Instant::now(),
        outbox: Outbox(batches),
    };
    tokio::spawn(async move {
        let _permit = permit;
        // No one is left to be told if the client has gone.
        let _ = told.send(watch.run().await);
    });
    let ending = stream::once(why).filter_map(|why| async { why.ok().flatten().map(Err) });
    Ok(Response::new(
        ReceiverStream::new(receiver).map(Ok).chain(ending).boxed(),
    ))
}

/// One watch.
struct Watch<W: Watched> {
    shared: Arc<Shared>,
    watched: W,
    /// Everything up to this index has been sent.
    after: LogIndex,
    /// When a bookmark is due, once the stream has caught up.
    bookmark_at: Instant,
    outbox: Outbox<W::Batch>,
}

/// Where a watch's batches go, until the client reads them.
struct Outbox<B>(mpsc::Sender<B>);

impl<B> Outbox<B> {
    /// Waits for room, though not for ever.
    ///
    /// # Errors
    /// Why the watch has to end, or nothing if the client is gone.
    async fn send(&self, index: LogIndex, batch: B) -> Result<(), Option<Status>> {
        match timeout(UNREAD_MAX, self.0.send(batch)).await {
            Ok(sent) => sent.map_err(|_| None),
            Err(_) => Err(Some(Reason::SlowConsumer.status_with(
                format!("the stream was not read for {UNREAD_MAX:?}; resume it from index {index}"),
                [("next_index", index.to_string())],
            ))),
        }
    }
}

impl<W: Watched> Watch<W> {
    /// Runs until the client is gone, or returns why it ended.
    async fn run(mut self) -> Option<Status> {
        let consensus = self.shared.parts.consensus.clone();
        let closing = self.shared.closing.clone();
        let mut applied = consensus.applied_paced();
        loop {
            // The index first: the state is then at least as new.
            let upto = *applied.borrow_and_update();
            if let Err(end) = self.catch_up(upto).await {
                return end;
            }
            tokio::select! {
                biased;
                () = closing.cancelled() => return Some(stopping()),
                () = self.outbox.0.closed() => return None,
                changed = applied.changed() => if changed.is_err() {
                    return Some(stopping());
                },
                () = sleep_until(self.bookmark_at), if self.has_begun(upto) => {}
            }
        }
    }

    /// Sends everything up to `upto`, and a bookmark if the first one is due.
    async fn catch_up(&mut self, upto: LogIndex) -> Result<(), Option<Status>> {
        loop {
            let state = self.shared.parts.consensus.state();
            let page = self.watched.read(&state, self.after);
            let page = page.map_err(|gone| Some(compacted(gone)))?;
            drop(state);
            for (index, batch) in page.batches {
                self.send(index, batch).await?;
                self.after = index;
            }
            match page.read_upto {
                Some(index) => self.after = self.after.max(index),
                None => break,
            }
        }
        self.after = self.after.max(upto);
        if self.has_begun(upto) && self.bookmark_at <= Instant::now() {
            self.send(self.after, W::bookmark(self.after)).await?;
        }
        Ok(())
    }

    /// Whether the log has come to where the watch begins. Of an index that it has yet to reach, nothing is complete.
    fn has_begun(&self, upto: LogIndex) -> bool {
        self.after <= upto
    }

    async fn send(&mut self, index: LogIndex, batch: W::Batch) -> Result<(), Option<Status>> {
        self.outbox.send(index, batch).await?;
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        Ok(())
    }
}

fn stopping() -> Status {
    Reason::Stopping.status("this peer is stopping; resume on another one")
}

/// The index after which the oldest that is kept comes.
fn oldest<W: Watched>(watched: &W, state: &State) -> LogIndex {
    match watched.read(state, LogIndex(0)) {
        Ok(_) => LogIndex(0),
        Err(compacted) => compacted.upto,
    }
}

fn compacted(compacted: Compacted) -> Status {
    let first = compacted.upto.0 + 1;
    Reason::Compacted.status_with(
        format!("{compacted}; the first index that can be watched is {first}"),
        [("first_index", first.to_string())],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_told_and_cut() {
        let (batches, mut unread) = mpsc::channel(BATCHES_WAITING_MAX);
        let outbox = Outbox(batches);
        for index in 0..BATCHES_WAITING_MAX as u64 {
            outbox.send(LogIndex(index), ()).await.unwrap();
        }
        let begun = Instant::now();
        let status = outbox.send(LogIndex(99), ()).await.unwrap_err().unwrap();
        assert_eq!(begun.elapsed(), UNREAD_MAX);
        assert_eq!(Reason::of(&status), Some(Reason::SlowConsumer));
        // One that reads again in time goes on; one that has gone ends the watch without a word.
        unread.recv().await.unwrap();
        outbox.send(LogIndex(99), ()).await.unwrap();
        drop(unread);
        assert!(outbox.send(LogIndex(100), ()).await.unwrap_err().is_none());
    }

    #[test]
    fn a_dropped_part_is_refused_with_where_it_begins() {
        let status = compacted(Compacted { upto: LogIndex(5) });
        assert_eq!(status.code(), tonic::Code::OutOfRange);
        assert_eq!(Reason::of(&status), Some(Reason::Compacted));
        let details = tonic_types::StatusExt::get_error_details(&status);
        assert_eq!(details.error_info().unwrap().metadata["first_index"], "6");
    }
}
