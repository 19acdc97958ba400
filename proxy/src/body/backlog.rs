//! What one client's connection of HTTP/2 holds of its answers.
//!
//! The library takes of each stream what the client has told room for, up to a bound of its own, and keeps it until the
//! socket takes it. A client that tells of much room on many streams, and then reads nothing, would have it keep all of
//! those bounds together. So all that it keeps is counted, and nothing more is read or handed over while that is much.
//!
//! Only what the client has told room for is counted: whoever reads its connection at all lets go of it, in whatever
//! order it takes its streams.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

/// How much is held before it is waited for: some times what keeps a socket busy.
const BYTES_MAX: usize = 1 << 20;

/// What is held, and who waits.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Cell<usize>,
    /// When the socket last took some of it while somebody waited.
    taken: Cell<Option<Instant>>,
    next: Cell<u64>,
    /// In the order in which they came. Nobody waits while there is room.
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Backlog {
    fn let_go(&self, bytes: usize) {
        let left = self.bytes.get() - bytes;
        self.bytes.set(left);
        if left < BYTES_MAX {
            for waker in self.waiting.take().into_values() {
                waker.wake();
            }
        }
    }
}

/// One stream's share in a backlog.
#[derive(Debug)]
pub(super) struct Share {
    backlog: Rc<Backlog>,
    ticket: Option<u64>,
}

impl Share {
    pub(super) fn new(backlog: Rc<Backlog>) -> Self {
        Self {
            backlog,
            ticket: None,
        }
    }

    /// Ready while more may be held. It must be polled by one task only.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.backlog.bytes.get() < BYTES_MAX {
            return Poll::Ready(());
        }
        let mut waiting = self.backlog.waiting.borrow_mut();
        if !self.ticket.is_some_and(|own| waiting.contains_key(&own)) {
            let ticket = self.backlog.next.get();
            self.backlog.next.set(ticket + 1);
            waiting.insert(ticket, cx.waker().clone());
            self.ticket = Some(ticket);
        }
        Poll::Pending
    }

    /// When the socket last took something for which this may have waited.
    pub(super) fn taken_last(&self) -> Option<Instant> {
        self.backlog.taken.get()
    }

    /// Counts a part until it is dropped.
    pub(super) fn count(&self, data: Bytes) -> Part {
        let backlog = &self.backlog;
        backlog.bytes.set(backlog.bytes.get() + data.len());
        Part {
            bytes: data.len(),
            data,
            counted: Some(Rc::clone(backlog)),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.backlog.waiting.borrow_mut().remove(&ticket);
        }
    }
}

/// A part of a body that was handed over to the library.
#[derive(Debug)]
pub(crate) struct Part {
    data: Bytes,
    /// How many bytes it had, and where they count.
    bytes: usize,
    counted: Option<Rc<Backlog>>,
}

impl From<Bytes> for Part {
    /// One that counts nowhere.
    fn from(data: Bytes) -> Self {
        Self {
            bytes: data.len(),
            data,
            counted: None,
        }
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        if let Some(backlog) = &self.counted
            && !backlog.waiting.borrow().is_empty()
        {
            backlog.taken.set(Some(Instant::now()));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(backlog) = &self.counted {
            backlog.let_go(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_woken_once_there_is_room_and_leaves_nothing_behind() {
        let backlog = Rc::new(Backlog::default());
        let mut cx = Context::from_waker(Waker::noop());
        let [mut first, mut second] = [(); 2].map(|()| Share::new(Rc::clone(&backlog)));
        assert!(first.poll_room(&mut cx).is_ready());
        let parts = [BYTES_MAX - 1, 1].map(|bytes| first.count(Bytes::from(vec![0; bytes])));
        for _ in 0..3 {
            assert!(first.poll_room(&mut cx).is_pending());
            assert!(second.poll_room(&mut cx).is_pending());
        }
        assert_eq!(backlog.waiting.borrow().len(), 2, "each is told once");
        drop(second);
        assert_eq!(backlog.waiting.borrow().len(), 1);
        drop(parts);
        assert!(backlog.waiting.borrow().is_empty());
        assert_eq!(backlog.bytes.get(), 0);
        assert!(first.poll_room(&mut cx).is_ready());
        drop(first.count(Bytes::from_static(b"uncounted in the end")));
        assert_eq!(backlog.bytes.get(), 0);
    }
}
