//! The service `Events`: one task per watch, which reads the agreed trail and hands it on in batches,
//! one per log index.
//!
//! The trail itself is the buffer: a watch that is behind holds no events of its own beyond a few
//! batches. One that does not read at all is cut, so that it cannot hold its place for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use raftserve_model::{LogIndex, ServiceName};
use raftserve_store::State;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::errors::Reason;
use super::gate::admitted;
use super::shared::{Shared, service_name};
use super::v1::{self, events_server::Events};
use super::view;

/// How many batches may wait for the client: enough to keep the connection busy.
const BATCHES_WAITING_MAX: usize = 16;

/// How many events are read from the trail in one go.
const EVENTS_READ_MAX: usize = 256;

/// How long a client may leave its stream unread while there is something for it. The connection's
/// own buffers hold thousands of events, so a client this slow has stopped.
const UNREAD_MAX: Duration = Duration::from_secs(10);

/// How often a watch for which nothing happens gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct EventsApi(pub(super) Arc<Shared>);

type Batches = BoxStream<'static, Result<v1::WatchEventsResponse, Status>>;

#[tonic::async_trait]
impl Events for EventsApi {
    type WatchStream = Batches;

    async fn watch(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Batches>, Status> {
        let (asked, _held) = admitted(request);
        let filter = match asked.service_name.as_str() {
            "" => None,
            name => Some(service_name("service_name", name)?),
        };
        let consensus = &self.0.parts.consensus;
        let applied = *consensus.applied().borrow();
        let state = consensus.state();
        let after = match asked.from_index {
            None => applied,
            Some(0) => oldest(&state),
            Some(from) => LogIndex(from - 1),
        };
        // Told at once if it cannot be, as the call's status rather than in the stream.
        read(&state, after, filter.as_ref())?;
        let permit = self.0.admit_stream()?;
        let (batches, receiver) = mpsc::channel(BATCHES_WAITING_MAX);
        let (told, why) = oneshot::channel();
        let watch = Watch {
            shared: Arc::clone(&self.0),
            filter,
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
}

/// One watch.
struct Watch {
    shared: Arc<Shared>,
    filter: Option<ServiceName>,
    /// Everything up to this index has been sent.
    after: LogIndex,
    /// When a bookmark is due, once the stream has caught up.
    bookmark_at: Instant,
    outbox: Outbox,
}

/// Where a watch's batches go, until the client reads them.
struct Outbox(mpsc::Sender<v1::WatchEventsResponse>);

impl Outbox {
    /// Waits for room, though not for ever.
    ///
    /// # Errors
    /// Why the watch has to end, or nothing if the client is gone.
    async fn send(&self, batch: v1::WatchEventsResponse) -> Result<(), Option<Status>> {
        let index = batch.log_index;
        match timeout(UNREAD_MAX, self.0.send(batch)).await {
            Ok(sent) => sent.map_err(|_| None),
            Err(_) => Err(Some(Reason::SlowConsumer.status_with(
                format!("the stream was not read for {UNREAD_MAX:?}; resume it from index {index}"),
                [("next_index", index.to_string())],
            ))),
        }
    }
}

impl Watch {
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
            let page = read(&state, self.after, self.filter.as_ref()).map_err(Some)?;
            drop(state);
            for batch in page.batches {
                let index = LogIndex(batch.log_index);
                self.send(batch).await?;
                self.after = index;
            }
            match page.read_upto {
                Some(index) => self.after = self.after.max(index),
                None => break,
            }
        }
        self.after = self.after.max(upto);
        if self.has_begun(upto) && self.bookmark_at <= Instant::now() {
            self.send(v1::WatchEventsResponse {
                log_index: self.after.0,
                events: Vec::new(),
            })
            .await?;
        }
        Ok(())
    }

    /// Whether the log has come to where the watch begins. Of an index that it has yet to reach, nothing is complete.
    fn has_begun(&self, upto: LogIndex) -> bool {
        self.after <= upto
    }

    async fn send(&mut self, batch: v1::WatchEventsResponse) -> Result<(), Option<Status>> {
        self.outbox.send(batch).await?;
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        Ok(())
    }
}

fn stopping() -> Status {
    Reason::Stopping.status("this peer is stopping; resume on another one")
}

/// Part of the trail.
struct Page {
    /// What matches, whole indices only.
    batches: Vec<v1::WatchEventsResponse>,
    /// The last index read; none if the end was reached.
    read_upto: Option<LogIndex>,
}

/// The index after which the oldest kept event comes.
fn oldest(state: &State) -> LogIndex {
    match state.events_after(LogIndex(0)) {
        Ok(_) => LogIndex(0),
        Err(compacted) => compacted.upto,
    }
}

/// Reads on after `after`: some hundred events, to the end of an index.
fn read(state: &State, after: LogIndex, filter: Option<&ServiceName>) -> Result<Page, Status> {
    let events = state.events_after(after).map_err(|compacted| {
        let first = compacted.upto.0 + 1;
        Reason::Compacted.status_with(
            format!("{compacted}; the first index that can be watched is {first}"),
            [("first_index", first.to_string())],
        )
    })?;
    let mut page = Page {
        batches: Vec::new(),
        read_upto: None,
    };
    let mut last = None;
    for (count, event) in events.enumerate() {
        if count >= EVENTS_READ_MAX && last != Some(event.index) {
            page.read_upto = last;
            break;
        }
        last = Some(event.index);
        if filter.is_some_and(|wanted| event.service.as_ref() != Some(wanted)) {
            continue;
        }
        let shown = view::event(event);
        match page.batches.last_mut() {
            Some(batch) if batch.log_index == event.index.0 => batch.events.push(shown),
            _ => page.batches.push(v1::WatchEventsResponse {
                log_index: event.index.0,
                events: vec![shown],
            }),
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests;
