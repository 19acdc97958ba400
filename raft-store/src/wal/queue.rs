//! What waits to be written, and what readers, those who queue and the writer share.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::format::EncodedEntry;
use super::stall::Monitor;
use super::view::View;
use super::{Failed, Work};
use crate::entry::{LogId, Vote};

/// The most bytes of entries in one group, so that the first waiter of a long queue does not wait for all of
/// it: about 30 ms at the bandwidth of a modest disk. Larger appends are parted; only a single entry may
/// be above it.
pub(super) const GROUP_BYTES_MAX: usize = 8 << 20;

/// Told once its item is durable, or never will be.
pub(super) type Done = Box<dyn FnOnce(Result<(), Failed>) + Send>;

/// Something to write.
pub(super) enum Item {
    Entries {
        entries: Vec<EncodedEntry>,
        epoch: u64,
        /// Room in the queue, given back when written.
        permit: OwnedSemaphorePermit,
        done: Done,
    },
    Vote(Vote, Done),
    Truncate {
        keep: Option<LogId>,
        epoch: u64,
        done: Done,
    },
    /// Rides along with the next group: losing it costs a slower start, nothing else.
    Committed(Option<LogId>),
    Purge(LogId),
}

impl Item {
    /// Bytes of its entries.
    fn bytes(&self) -> usize {
        match self {
            Self::Entries { entries, .. } => entries.iter().map(|it| it.body().len()).sum(),
            Self::Vote(..) | Self::Truncate { .. } | Self::Committed(_) | Self::Purge(_) => 0,
        }
    }
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Whether anything in `items` cannot wait for company.
    urgent: bool,
    closed: bool,
}

/// What the writer shares with those who queue.
pub(super) struct Shared {
    pub(super) view: Mutex<View>,
    waiting: Mutex<Waiting>,
    ready: Condvar,
    failure: watch::Sender<Option<Failed>>,
    pub(super) work: Mutex<Work>,
    pub(super) monitor: Arc<Monitor>,
}

/// A lock whose holders do not panic halfway through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(view: View) -> Self {
        Self {
            view: Mutex::new(view),
            waiting: Mutex::default(),
            ready: Condvar::new(),
            failure: watch::Sender::new(None),
            work: Mutex::default(),
            monitor: Arc::new(Monitor::new()),
        }
    }

    /// Queues an item; reports to its waiter at once if the log has failed or is closed.
    pub(super) fn push(&self, item: Item) {
        let mut waiting = lock(&self.waiting);
        let failure = self.failure.borrow().clone();
        if let Some(failed) = failure.or_else(|| waiting.closed.then(Failed::closed)) {
            drop(waiting);
            return finish([item], &Err(failed));
        }
        if let Item::Committed(_) = item {
            // Only the newest mark counts, so waiting marks stay one.
            if let Some(Item::Committed(_)) = waiting.items.back() {
                waiting.items.pop_back();
            }
        } else {
            waiting.urgent = true;
        }
        waiting.items.push_back(item);
        if waiting.urgent {
            self.ready.notify_one();
        }
    }

    /// What to write next; none once the log is closed and all is written.
    pub(super) fn take(&self) -> Option<Vec<Item>> {
        let mut waiting = lock(&self.waiting);
        while !waiting.urgent && !waiting.closed {
            let woken = self.ready.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let mut taken = Vec::new();
        while let Some(item) = waiting.items.front() {
            bytes += item.bytes();
            if bytes > GROUP_BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(waiting.items.pop_front());
        }
        waiting.urgent &= !waiting.items.is_empty();
        (!taken.is_empty() || !waiting.closed).then_some(taken)
    }

    /// Whether the writer would not wait.
    #[cfg(test)]
    pub(super) fn has_work(&self) -> bool {
        lock(&self.waiting).urgent
    }

    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.ready.notify_one();
    }

    /// Ends all writing, for the first reason given; everything that waits is told.
    pub(super) fn fail(&self, failed: Failed) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| failed.clone());
            first
        });
        if first {
            tracing::error!(reason = %failed, "the log takes no more writes");
        }
        let mut waiting = lock(&self.waiting);
        let items: Vec<Item> = waiting.items.drain(..).collect();
        drop(waiting);
        finish(items, &Err(self.failure().unwrap_or(failed)));
    }

    pub(super) fn failure(&self) -> Option<Failed> {
        self.failure.borrow().clone()
    }

    pub(super) fn watch_failure(&self) -> watch::Receiver<Option<Failed>> {
        self.failure.subscribe()
    }
}

/// Reports to every waiter, in order.
pub(super) fn finish(items: impl IntoIterator<Item = Item>, outcome: &Result<(), Failed>) {
    for item in items {
        match item {
            Item::Entries { permit, done, .. } => {
                drop(permit);
                done(outcome.clone());
            }
            Item::Vote(_, done) | Item::Truncate { done, .. } => done(outcome.clone()),
            Item::Committed(_) | Item::Purge(_) => {}
        }
    }
}
