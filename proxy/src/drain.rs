//! How far a worker has gone in stopping, and the waking of its connections when that changes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};

/// How far a worker has gone in stopping. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Still accepts. HTTP/1 answers carry `connection: close`, HTTP/2 connections got GOAWAY.
    Draining,
    /// Accepts no more. Running requests finish, and idle connections wait for one more, whose answer says that
    /// they close: one that closed by itself would meet a request on its way.
    Closing,
    /// Idle connections close, too.
    Ending,
}

/// A worker's phase. Reading it costs a load; a connection is woken only when it changes.
#[derive(Debug)]
pub(crate) struct Drain {
    phase: Cell<Phase>,
    next: Cell<u64>,
    /// One for each watching connection.
    wakers: RefCell<HashMap<u64, Waker>>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: Cell::new(Phase::Serving),
            next: Cell::new(0),
            wakers: RefCell::default(),
        }
    }
}

impl Drain {
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(self.phase.get().max(phase));
        for waker in self.wakers.borrow().values() {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn watch(self: &Rc<Self>) -> Watch {
        let id = self.next.get();
        self.next.set(id + 1);
        Watch {
            drain: Rc::clone(self),
            id,
            registered: false,
        }
    }
}

/// One connection's view of the phase. It must be polled by one task only.
#[derive(Debug)]
pub(crate) struct Watch {
    drain: Rc<Drain>,
    id: u64,
    registered: bool,
}

impl Watch {
    /// The phase now. The task of the first call is woken when it changes.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        if !self.registered {
            self.registered = true;
            let waker = cx.waker().clone();
            self.drain.wakers.borrow_mut().insert(self.id, waker);
        }
        self.drain.phase()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.drain.wakers.borrow_mut().remove(&self.id);
    }
}
