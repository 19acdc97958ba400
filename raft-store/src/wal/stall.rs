//! Noticing that the disk does not answer, while it does not.
//!
//! A sync that takes a second says more about the disk than any error, and one that never returns says
//! nothing at all. So a thread looks at the writer's clock from outside: it reports a stall when one has
//! gone on for long enough, and its end. It decides nothing: what to do is the peer's choice.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::queue::lock;

/// The disk has not answered for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// When the write that it has not answered was begun.
    pub began: Instant,
}

#[derive(Debug, Default)]
struct Clock {
    /// When the write under way was begun.
    began: Option<Instant>,
    closed: bool,
}

/// What the writer, the thread that looks on and those who ask share.
#[derive(Debug)]
pub(super) struct Monitor {
    clock: Mutex<Clock>,
    closed: Condvar,
    stall: watch::Sender<Option<Stall>>,
}

/// A write that is under way; ends when dropped.
pub(super) struct UnderWay<'a>(&'a Monitor);

impl Monitor {
    pub(super) fn new() -> Self {
        Self {
            clock: Mutex::default(),
            closed: Condvar::new(),
            stall: watch::Sender::new(None),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Stall>> {
        self.stall.subscribe()
    }

    /// Notes that the disk is asked for something.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        lock(&self.clock).began = Some(Instant::now());
        UnderWay(self)
    }

    /// Starts the thread that looks on, and reports writes that take `longest` or more.
    pub(super) fn start(self: &Arc<Self>, longest: Duration) -> std::io::Result<JoinHandle<()>> {
        let monitor = Arc::clone(self);
        let thread = std::thread::Builder::new().name("raft-log-watch".to_owned());
        thread.spawn(move || monitor.run(longest))
    }

    pub(super) fn close(&self) {
        lock(&self.clock).closed = true;
        self.closed.notify_all();
    }

    fn run(&self, longest: Duration) {
        let mut clock = lock(&self.clock);
        while !clock.closed {
            if let Some(began) = clock.began
                && began.elapsed() >= longest
                && self.stall.borrow().is_none()
            {
                self.stall.send_replace(Some(Stall { began }));
                tracing::warn!(
                    seconds = began.elapsed().as_secs_f64(),
                    "the disk of the log does not answer"
                );
            }
            // Four looks in that time: a stall is reported at most a quarter later than it is one.
            let waited = self.closed.wait_timeout(clock, longest / 4);
            clock = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let monitor = self.0;
        // Held until the end is told, so that the one who looks on does not report it afterwards.
        let mut clock = lock(&monitor.clock);
        let began = clock.began.take();
        if monitor.stall.borrow().is_some() {
            monitor.stall.send_replace(None);
            let seconds = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
            tracing::warn!(seconds, "the disk of the log answers again");
        }
    }
}
