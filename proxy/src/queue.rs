//! Requests that wait while a service has no ready replica: in order, bounded in number, bytes and time.
//!
//! Each worker has a line of its own for each service, and the bounds hold over all of them, so for the peer.
//! When a replica becomes ready the line is let go in small groups, through the service's policy: the first
//! replica of several does not get all of it. Each group is larger by as many as have come since the one before, so a
//! line that moves gets shorter whatever the load.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::metrics::count_shared;

/// What one service's waiting requests may hold at a peer: their heads, and their bodies over HTTP/2, of which a window
/// may come before anybody reads. One that tells its length counts with that, any other as it comes, until it counts with
/// a window. Of a body over HTTP/1, only what the kernel and one read took in is held. A thousand requests with prompts
/// as most are have room.
pub(crate) const BYTES_MAX: u64 = 64 << 20;

/// By how much each group shortens the line, for each ready replica.
const GROUP: usize = 16;

/// The pause between two groups: the next replica to become ready finds a line that is still there.
pub(crate) const GROUP_EVERY: Duration = Duration::from_millis(10);

/// What waits for one service at this peer, over all workers.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    requests: AtomicU64,
    bytes: AtomicU64,
    pub(crate) queued: AtomicU64,
    pub(crate) turned_away: AtomicU64,
    pub(crate) gave_up: AtomicU64,
    /// All waits that ended with a replica, in microseconds.
    pub(crate) waited_micros: AtomicU64,
}

impl Waiting {
    /// How many requests wait now.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Takes a place for a request that holds so many bytes. `None` if a bound is reached.
    fn enter(self: &Arc<Self>, bytes: u64, requests_max: u64) -> Option<Share> {
        let share = Share {
            waiting: Arc::clone(self),
            bytes,
            first: self.requests.fetch_add(1, Ordering::Relaxed) == 0,
        };
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Dropped again, it takes back what it added.
        (self.requests() <= requests_max && held <= BYTES_MAX).then_some(share)
    }
}

/// What one request adds to the counts, until dropped.
#[derive(Debug)]
struct Share {
    waiting: Arc<Waiting>,
    bytes: u64,
    /// Nothing waited before it.
    first: bool,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.waiting.requests.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One worker's line for one service.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Arc<Waiting>,
    line: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    next: Cell<u64>,
    /// Whether somebody is letting it go.
    moving: Cell<bool>,
    /// What `next` was when the last group was let go.
    next_before: Cell<u64>,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Queue {
    pub(crate) fn new(waiting: Arc<Waiting>) -> Self {
        Self {
            waiting,
            line: RefCell::default(),
            next: Cell::new(0),
            moving: Cell::new(false),
            next_before: Cell::new(0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.line.borrow().is_empty()
    }

    /// Lines up.
    ///
    /// # Errors
    /// As many wait as may.
    pub(crate) fn enter(self: &Rc<Self>, bytes: u64, requests_max: u32) -> Result<Place, Full> {
        let Some(share) = self.waiting.enter(bytes, u64::from(requests_max)) else {
            count_shared(&self.waiting.turned_away);
            return Err(Full);
        };
        count_shared(&self.waiting.queued);
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let (turn, called) = oneshot::channel();
        self.line.borrow_mut().push_back((ticket, turn));
        Ok(Place {
            queue: Rc::clone(self),
            ticket,
            called,
            share,
        })
    }

    /// Calls a group: as many as have lined up since the last one, and [`GROUP`] more for each ready replica. True if
    /// somebody is still in the line.
    pub(crate) fn call_group(&self, ready: usize) -> bool {
        let next = self.next.get();
        let came = next - self.next_before.replace(next);
        let came = usize::try_from(came).unwrap_or(usize::MAX);
        self.call(came.saturating_add(ready * GROUP))
    }

    /// Calls the first `most` of the line. True if somebody is still in it.
    fn call(&self, most: usize) -> bool {
        let mut line = self.line.borrow_mut();
        let mut left = most;
        while left > 0
            && let Some((_, turn)) = line.pop_front()
        {
            // One that has just left takes no place of the group.
            left -= usize::from(turn.send(()).is_ok());
        }
        !line.is_empty()
    }

    /// Ends all waits: the service is gone.
    pub(crate) fn dismiss(&self) {
        self.line.borrow_mut().clear();
    }

    /// Begins to move, unless it moves already or nobody waits.
    pub(crate) fn begins_to_move(&self) -> bool {
        let begins = !self.is_empty() && !self.moving.replace(true);
        if begins {
            self.next_before.set(self.next.get());
        }
        begins
    }

    pub(crate) fn stands(&self) {
        self.moving.set(false);
    }
}

/// A request's place in a line. It leaves the line when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Rc<Queue>,
    ticket: u64,
    called: oneshot::Receiver<()>,
    share: Share,
}

impl Place {
    /// Whether nothing waited for this service before.
    pub(crate) fn is_first(&self) -> bool {
        self.share.first
    }

    /// Waits for its turn. `false` if that will not come.
    pub(crate) fn poll_called(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.called.poll_unpin(cx).map(|called| called.is_ok())
    }

    /// Lines up again where it stood: it was called, and found nobody.
    pub(crate) fn returns(&mut self) {
        let (turn, called) = oneshot::channel();
        self.called = called;
        let mut line = self.queue.line.borrow_mut();
        let at = line.partition_point(|&(ticket, _)| ticket < self.ticket);
        line.insert(at, (self.ticket, turn));
    }

    /// It holds so many bytes by now.
    ///
    /// # Errors
    /// All that wait hold too many with them: it may wait no longer.
    pub(crate) fn holds(&mut self, bytes: u64) -> Result<(), Full> {
        let waiting = &self.share.waiting;
        let more = bytes.saturating_sub(self.share.bytes);
        let held = waiting.bytes.fetch_add(more, Ordering::Relaxed) + more;
        self.share.bytes += more;
        if held > BYTES_MAX {
            count_shared(&waiting.turned_away);
            return Err(Full);
        }
        Ok(())
    }

    /// It waited in vain, or so long.
    pub(crate) fn ended(&self, waited: Duration, served: bool) {
        let waiting = &self.share.waiting;
        match served {
            true => {
                let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
                waiting.waited_micros.fetch_add(micros, Ordering::Relaxed);
            }
            false => count_shared(&waiting.gave_up),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut line = self.queue.line.borrow_mut();
        // Tickets rise along the line.
        if let Ok(at) = line.binary_search_by_key(&self.ticket, |&(ticket, _)| ticket) {
            line.remove(at);
        }
    }
}
