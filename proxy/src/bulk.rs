//! Large bodies take turns, so that nobody else waits for all of them.
//!
//! A body that is there as fast as it is taken has its task busy for as long as the runtime lets it, and a worker with some
//! hundred of them needs seconds until it comes back to a small request. So who passes a large body waits for a place before
//! each part. In one turn of the worker's loop (it asks the kernel what is there, and runs what that woke) only so many bytes
//! are let through, first come, first served: whatever else is there waits for that much, however many bodies are under way.
//! HAProxy's scheduler has a class of its own for such work ("bulk" tasklets, since 2.3) for the same reason.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::task::yield_now;

/// How much is let through in a turn: one part of the largest size.
const TURN_BYTES: usize = 256 << 10;

/// How much of a body is there at once, if it is one that has to wait for a place.
const AT_ONCE_BYTES: usize = 16 << 10;

/// The turns of one worker.
#[derive(Debug)]
pub(crate) struct Bulk {
    /// What may still be passed in this turn.
    left: Cell<usize>,
    /// Whether anything was passed in it.
    used: Cell<bool>,
    /// Who begins the next one, while it waits to be needed.
    next: RefCell<Option<Waker>>,
    line: RefCell<Line>,
}

/// Who waits, in order. Numbers are never given again.
#[derive(Debug, Default)]
struct Line {
    /// Those who have a number below this may go.
    called: u64,
    /// Those from `called` on; `None` has left.
    waiting: VecDeque<Option<Waker>>,
}

impl Default for Bulk {
    fn default() -> Self {
        Self {
            left: Cell::new(TURN_BYTES),
            used: Cell::default(),
            next: RefCell::default(),
            line: RefCell::default(),
        }
    }
}

impl Bulk {
    /// Begins a new turn whenever the last one was used or somebody waits, for ever. Each turn calls one at least, so that who
    /// is called and has no use for it now, as a client takes nothing, keeps nobody waiting.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            poll_fn(|cx| {
                if self.used.replace(false) || !self.line.borrow().waiting.is_empty() {
                    return Poll::Ready(());
                }
                *self.next.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            yield_now().await; // Until the kernel was asked again.
            self.begin();
        }
    }

    /// Begins a turn.
    fn begin(&self) {
        self.left.set(TURN_BYTES);
        self.call();
    }

    /// A place in the line, for one body.
    pub(crate) fn place(self: &Rc<Self>) -> Place {
        Place {
            bulk: Rc::clone(self),
            number: None,
            at_once: 0,
            large: false,
        }
    }

    /// Lets the first go who still waits.
    fn call(&self) {
        let mut line = self.line.borrow_mut();
        while let Some(first) = line.waiting.pop_front() {
            line.called += 1;
            if let Some(waker) = first {
                drop(line);
                waker.wake();
                break;
            }
        }
    }

    fn passed(&self, bytes: usize) {
        let left = self.left.get().saturating_sub(bytes);
        self.left.set(left);
        if left > 0 {
            self.call();
        }
        self.used.set(true);
        self.wake_next();
    }

    fn wake_next(&self) {
        if let Some(next) = self.next.take() {
            next.wake();
        }
    }
}

/// Where one body is in the line.
#[derive(Debug)]
pub(crate) struct Place {
    bulk: Rc<Bulk>,
    /// While it waits.
    number: Option<u64>,
    /// What came since nothing was there for the last time.
    at_once: usize,
    /// Whether that is much, or was the time before.
    large: bool,
}

impl Place {
    /// Ready once the next part may be passed. It must then be told [how large](Self::passed) that was, even if there was
    /// none: the next one waits for it.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.large {
            return Poll::Ready(());
        }
        let line = &mut *self.bulk.line.borrow_mut();
        let Some(number) = self.number else {
            if line.waiting.is_empty() && self.bulk.left.get() > 0 {
                return Poll::Ready(());
            }
            self.number = Some(line.called + line.waiting.len() as u64);
            line.waiting.push_back(Some(cx.waker().clone()));
            self.bulk.wake_next();
            return Poll::Pending;
        };
        let Some(ahead) = number.checked_sub(line.called) else {
            self.number = None;
            return Poll::Ready(());
        };
        let kept = &mut line.waiting[ahead as usize];
        if !kept.as_ref().is_some_and(|kept| kept.will_wake(cx.waker())) {
            *kept = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether it is this that the body waits for.
    pub(crate) fn waits(&self) -> bool {
        self.number.is_some()
    }

    /// So many bytes were read. They are passed on right after that, so that this stands for the work.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.at_once += bytes;
        self.large |= self.at_once >= AT_ONCE_BYTES;
        if self.large {
            self.bulk.passed(bytes);
        }
    }

    /// The next frame of a body, once it may be passed.
    pub(crate) fn poll_frame<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        ready!(self.poll(cx));
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.passed(frame.data_ref().map_or(0, Bytes::len)),
            Poll::Ready(_) => self.passed(0),
            Poll::Pending => {
                self.passed(0);
                self.drained();
            }
        }
        polled
    }

    /// Nothing more is there now.
    pub(crate) fn drained(&mut self) {
        self.large = self.at_once >= AT_ONCE_BYTES;
        self.at_once = 0;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(number) = self.number else {
            return;
        };
        let mut line = self.bulk.line.borrow_mut();
        if let Some(ahead) = number.checked_sub(line.called) {
            line.waiting[ahead as usize] = None;
        } else {
            drop(line);
            self.bulk.call(); // It was called, and does not come.
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::timeout;

    use super::*;

    fn is_ready(place: &mut Place) -> bool {
        place.poll(&Context::from_waker(Waker::noop())).is_ready()
    }

    /// Places of bodies of which much has come at once, in a turn of which nothing is left.
    fn full<const COUNT: usize>() -> (Rc<Bulk>, [Place; COUNT]) {
        let bulk = Rc::<Bulk>::default();
        let mut places = std::array::from_fn(|_| bulk.place());
        for place in &mut places {
            assert!(is_ready(place), "nothing has come of it");
            place.passed(TURN_BYTES / COUNT);
        }
        (bulk, places)
    }

    #[test]
    fn who_waits_is_served_in_order_as_far_as_a_turn_goes() {
        let (bulk, [mut a, mut b, mut c]) = full();
        a.passed(TURN_BYTES);
        for _ in 0..2 {
            assert!(![&mut b, &mut c, &mut a].into_iter().any(is_ready));
        }
        bulk.begin();
        assert!(!is_ready(&mut c) && !is_ready(&mut a) && is_ready(&mut b));
        b.passed(TURN_BYTES - 1);
        assert!(!is_ready(&mut a) && is_ready(&mut c), "a byte is left");
        assert!(!is_ready(&mut b), "behind who waits");
        c.passed(1);
        assert!(!is_ready(&mut a));
        bulk.begin();
        assert!(is_ready(&mut a));
    }

    #[test]
    fn who_finds_nothing_or_leaves_keeps_nobody_waiting() {
        let (bulk, [mut a, mut b, mut c, mut d]) = full();
        a.passed(1);
        assert!(![&mut a, &mut b, &mut c, &mut d].into_iter().any(is_ready));
        drop(b); // Still waiting.
        bulk.begin();
        assert!(is_ready(&mut a));
        a.passed(0);
        drop(c); // Called.
        assert!(is_ready(&mut d));
    }

    #[test]
    fn only_what_is_there_at_once_makes_a_body_large() {
        let (bulk, [mut full]) = full();
        full.passed(1);
        let mut place = bulk.place();
        for _ in 0..100 {
            assert!(is_ready(&mut place));
            place.passed(AT_ONCE_BYTES - 1);
            place.drained();
        }
        for _ in 0..2 {
            assert!(is_ready(&mut place));
            place.passed(AT_ONCE_BYTES / 2);
        }
        place.drained();
        assert!(!is_ready(&mut place), "it was large until then");
        bulk.begin();
        assert!(is_ready(&mut place));
        place.passed(1);
        place.drained();
        full.passed(TURN_BYTES);
        assert!(is_ready(&mut place), "no more than a byte was there");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_called_and_does_not_come_keeps_nobody_waiting() {
        let (bulk, [mut full, mut absent, mut other]) = full();
        let local = LocalSet::new();
        local.spawn_local(Rc::clone(&bulk).run());
        full.passed(1);
        assert!(!is_ready(&mut absent) && !is_ready(&mut other));
        let comes = local.run_until(poll_fn(|cx| other.poll(cx)));
        let comes = timeout(Duration::from_secs(1), comes).await;
        comes.expect("it is called in its turn");
        assert!(is_ready(&mut absent), "it was called before");
    }

    #[tokio::test]
    async fn whatever_else_is_there_waits_for_one_turn() {
        const BODIES: usize = 50;
        const PARTS: usize = 100;
        let local = LocalSet::new();
        let bulk = Rc::<Bulk>::default();
        local.spawn_local(Rc::clone(&bulk).run());
        let passed = Rc::<Cell<usize>>::default();
        let bodies = local.run_until(async {
            let bodies: Vec<_> = (0..BODIES)
                .map(|_| {
                    let (mut place, passed) = (bulk.place(), Rc::clone(&passed));
                    spawn_local(async move {
                        for _ in 0..PARTS {
                            poll_fn(|cx| place.poll(cx)).await;
                            place.passed(TURN_BYTES);
                            passed.set(passed.get() + 1);
                        }
                    })
                })
                .collect();
            // Each passes a first part before it is known to be large.
            while passed.get() < BODIES {
                yield_now().await;
            }
            while passed.get() < BODIES * PARTS {
                let before = passed.get();
                yield_now().await;
                assert!(
                    passed.get() - before <= 2,
                    "{} in a turn",
                    passed.get() - before
                );
            }
            bodies
        });
        for body in bodies.await {
            body.await.expect("no panic");
        }
    }
}
