//! Watches: one task for each, which reads a part of the agreed state that is kept for watchers and hands it on in
//! batches, one per log index.
//!
//! What is kept is the buffer: a watch that is behind holds a page and a few batches of its own. One that does not
//! read at all is cut, so that it cannot hold its place for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use raftserve_model::LogIndex;
use raftserve_store::State;
use raftserve_store::state::Compacted;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use super::errors::Reason;
use super::shared::Shared;

/// How long a client may leave its stream unread while there is something for it. The connection's own buffers are
/// full by then, so a client this slow has stopped.
const UNREAD_MAX: Duration = Duration::from_secs(10);

/// How often a watch for which nothing happens gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// A stream of batches, with why it ended at its end.
pub(super) type Batches<B> = BoxStream<'static, Result<B, Status>>;

/// What is watched.
pub(super) trait Watched: Send + Sync + 'static {
    /// What a client gets of one index.
    type Batch: Send + 'static;

    /// How many batches may wait for the client: enough to keep the connection busy.
    const WAITING_MAX: usize;

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
        Some(from) => LogIndex(from.saturating_sub(1)),
    };
    let from_oldest = from == Some(0);
    if !from_oldest {
        // Told at once if it cannot be, as the call's status rather than in the stream.
        watched.read(&state, after).map_err(compacted)?;
    }
    let permit = shared.admit_stream()?;
    let (batches, receiver) = mpsc::channel(W::WAITING_MAX);
    let (told, why) = oneshot::channel();
    let known = consensus.clone();
    let watch = Watch {
        state: Box::new(move || known.state()),
        watched,
        begin: after,
        from_oldest,
        after,
        caught_up: false,
        bookmark_at: Instant::now(),
        outbox: Outbox(batches),
    };
    let (applied, closing) = (consensus.applied_paced(), shared.closing.clone());
    tokio::spawn(async move {
        let _permit = permit;
        // No one is left to be told if the client has gone.
        let _ = told.send(watch.run(applied, closing).await);
    });
    let ending = stream::once(why).filter_map(|why| async { why.ok().flatten().map(Err) });
    Ok(Response::new(
        ReceiverStream::new(receiver).map(Ok).chain(ending).boxed(),
    ))
}

/// One watch.
struct Watch<W: Watched> {
    /// The newest that is applied.
    state: Box<dyn Fn() -> Arc<State> + Send + Sync>,
    watched: W,
    /// Nothing up to here is asked for. The log may have yet to reach it: nothing is complete before.
    begin: LogIndex,
    /// Whether the oldest is asked for that is kept, and nothing was sent yet: what is dropped until then is not missed.
    from_oldest: bool,
    /// Everything up to this index has been sent.
    after: LogIndex,
    /// Whether a bookmark has said so.
    caught_up: bool,
    /// When the next one is due.
    bookmark_at: Instant,
    outbox: Outbox<W::Batch>,
}

/// Where a watch's batches go, until the client reads them.
struct Outbox<B>(mpsc::Sender<B>);

impl<B> Outbox<B> {
    /// Waits for room, though not for ever. A client that does not read is told to resume from `next`.
    ///
    /// # Errors
    /// Why the watch has to end, or nothing if the client is gone.
    async fn send(&self, batch: B, next: LogIndex) -> Result<(), Option<Status>> {
        match timeout(UNREAD_MAX, self.0.send(batch)).await {
            Ok(sent) => sent.map_err(|_| None),
            Err(_) => Err(Some(Reason::SlowConsumer.status_with(
                format!("the stream was not read for {UNREAD_MAX:?}; resume it from index {next}"),
                [("next_index", next.to_string())],
            ))),
        }
    }
}

impl<W: Watched> Watch<W> {
    /// Runs until the client is gone, or returns why it ended.
    async fn run(
        mut self,
        mut applied: watch::Receiver<LogIndex>,
        closing: CancellationToken,
    ) -> Option<Status> {
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
                () = sleep_until(self.bookmark_at), if self.begin <= upto => {}
            }
        }
    }

    /// Sends everything up to `upto`, and a bookmark if one is due.
    async fn catch_up(&mut self, upto: LogIndex) -> Result<(), Option<Status>> {
        loop {
            let state = (self.state)();
            let page = match self.watched.read(&state, self.after) {
                Err(gone) if self.from_oldest => {
                    (self.begin, self.after) = (gone.upto, gone.upto);
                    continue;
                }
                page => page.map_err(|gone| Some(compacted(gone)))?,
            };
            drop(state);
            for (index, batch) in page.batches {
                self.send(batch).await?;
                self.after = index;
            }
            match page.read_upto {
                Some(index) => self.after = self.after.max(index),
                None => break,
            }
        }
        self.after = self.after.max(upto);
        if self.begin <= upto && (!self.caught_up || self.bookmark_at <= Instant::now()) {
            self.send(W::bookmark(self.after)).await?;
            self.caught_up = true;
        }
        Ok(())
    }

    async fn send(&mut self, batch: W::Batch) -> Result<(), Option<Status>> {
        let next = LogIndex(self.after.0 + 1);
        self.outbox.send(batch, next).await?;
        self.from_oldest = false;
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        Ok(())
    }
}

fn stopping() -> Status {
    Reason::Stopping.status("this peer is stopping; resume on another one")
}

fn compacted(compacted: Compacted) -> Status {
    let first = compacted.upto.0 + 1;
    Reason::Compacted.status_with(
        format!("{compacted}; the first index that can be watched is {first}"),
        [("first_index", first.to_string())],
    )
}

#[cfg(test)]
mod tests;
