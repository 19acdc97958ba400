//! Where a connection of HTTP/1 is between its requests and their answers.
//!
//! The library does not tell, and holds 16 KiB and more of buffers as long as a connection is its own. So whoever stands
//! around it tells here what passes: the stream below it, the service above it, and the bodies of both.
//! From that follows when the library holds nothing of value, and can be done without until the next request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// What has passed on one connection. All of it happens on one thread: it is atomic only because a stream that switches to
/// another protocol has to be able to move to another one.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The connection has switched to another protocol.
    tunnelled: AtomicBool,
    /// Nothing more will be sent to the client.
    shut: AtomicBool,
    /// The client is amid a request, as far as the library has read.
    amid: AtomicBool,
    /// Heads of requests that the library has read.
    heads: AtomicU32,
    /// Requests that it has handed over.
    begun: AtomicU32,
    /// Requests whose body was let go of, and those of them whose body was taken to its end.
    left: AtomicU32,
    taken: AtomicU32,
    /// Answers that were handed over whole.
    answered: AtomicU32,
    /// How many were so when last all was written.
    flushed: AtomicU32,
}

fn add(number: &AtomicU32) {
    let before = number.load(Ordering::Relaxed);
    number.store(before.wrapping_add(1), Ordering::Relaxed);
}

impl Turns {
    /// The library begins anew, with a connection that was [at rest](Self::is_at_rest).
    pub(crate) fn restart(&self) {
        self.amid.store(false, Ordering::Relaxed);
        let numbers = [&self.heads, &self.begun, &self.left, &self.taken];
        for number in numbers.into_iter().chain([&self.answered, &self.flushed]) {
            number.store(0, Ordering::Relaxed);
        }
    }

    /// The library has read so many heads by now, and maybe a part of a request after the last whole one.
    pub(crate) fn read(&self, heads: u32, between: bool) {
        self.heads.store(heads, Ordering::Relaxed);
        self.amid.store(!between, Ordering::Relaxed);
    }

    /// All that the library had to write was written.
    pub(crate) fn flushed(&self) {
        let answered = self.answered.load(Ordering::Relaxed);
        self.flushed.store(answered, Ordering::Relaxed);
    }

    /// The library closes the connection.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
    }

    /// The connection has switched to another protocol.
    pub(crate) fn tunnel(&self) {
        self.tunnelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_tunnelled(&self) -> bool {
        self.tunnelled.load(Ordering::Relaxed)
    }

    /// A request was handed over.
    pub(crate) fn begin(&self) {
        add(&self.begun);
    }

    /// How many requests were handed over.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether a request is on its way to a replica, or its answer to the client.
    pub(crate) fn is_busy(&self) -> bool {
        let begun = self.begun();
        [&self.left, &self.answered]
            .iter()
            .any(|number| number.load(Ordering::Relaxed) != begun)
    }

    /// Whether every request has its answer, and all of that was written: the library lets go of a body before that.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Relaxed) == self.begun()
    }

    /// Whether the library has nothing to do, and holds no byte of either side.
    pub(crate) fn is_at_rest(&self) -> bool {
        let begun = self.begun();
        let numbers = [&self.heads, &self.left, &self.taken];
        let mut numbers = numbers.into_iter().chain([&self.answered, &self.flushed]);
        let stands = [&self.tunnelled, &self.shut, &self.amid];
        numbers.all(|number| number.load(Ordering::Relaxed) == begun)
            && stands.iter().all(|flag| !flag.load(Ordering::Relaxed))
    }
}

/// A request's body, as far as its connection is concerned. Dropped, it is let go of.
#[derive(Debug)]
pub(crate) struct Taking(
    /// `None` once all of it was taken.
    Option<Arc<Turns>>,
);

impl Taking {
    pub(crate) fn new(turns: Arc<Turns>) -> Self {
        Self(Some(turns))
    }

    /// All of it was taken.
    pub(crate) fn ended(&mut self) {
        if let Some(turns) = self.0.take() {
            add(&turns.left);
            add(&turns.taken);
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(turns) = &self.0 {
            add(&turns.left);
        }
    }
}

/// An answer's body on its way into the library, which drops it once it has all of it.
#[derive(Debug)]
pub(crate) struct Answering<B> {
    body: B,
    turns: Arc<Turns>,
}

impl<B> Answering<B> {
    pub(crate) fn new(body: B, turns: Arc<Turns>) -> Self {
        Self { body, turns }
    }
}

impl<B> Drop for Answering<B> {
    fn drop(&mut self) {
        add(&self.turns.answered);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that has to have passed of one request, in the order in which it may.
    const STEPS: usize = 5;

    fn pass(turns: &Arc<Turns>, step: usize, parts: &mut (Option<Taking>, Option<Answering<()>>)) {
        match step {
            0 => turns.read(1, false),
            1 => {
                turns.begin();
                parts.0 = Some(Taking::new(Arc::clone(turns)));
                parts.1 = Some(Answering::new((), Arc::clone(turns)));
            }
            2 => {
                turns.read(1, true);
                parts.0.as_mut().expect("it was made").ended();
                parts.0 = None;
            }
            3 => parts.1 = None,
            _ => turns.flushed(),
        }
    }

    #[test]
    fn a_connection_rests_before_its_first_request_and_after_all_of_one_has_passed() {
        let turns = Arc::new(Turns::default());
        for _ in 0..2 {
            let mut parts = (None, None);
            for step in 0..STEPS {
                assert!(turns.is_at_rest() == (step == 0), "{step}: {turns:?}");
                assert!(turns.is_busy() == (2..4).contains(&step), "{step}");
                assert!(turns.is_flushed() == (step < 2), "{step}");
                pass(&turns, step, &mut parts);
            }
            assert!(turns.is_at_rest());
            turns.restart();
        }
    }

    #[test]
    fn it_never_rests_once_bytes_may_be_left_over() {
        for skipped in 2..STEPS {
            let turns = Arc::new(Turns::default());
            let mut parts = (None, None);
            for step in (0..STEPS).filter(|&step| step != skipped) {
                pass(&turns, step, &mut parts);
            }
            assert!(!turns.is_at_rest(), "{skipped}");
        }
        let given_up = Arc::new(Turns::default());
        given_up.read(1, true);
        given_up.begin();
        drop(Taking::new(Arc::clone(&given_up)));
        drop(Answering::new((), Arc::clone(&given_up)));
        given_up.flushed();
        assert!(!given_up.is_at_rest() && !given_up.is_busy());
    }

    #[test]
    fn it_does_not_rest_when_it_is_closed_or_has_switched_or_has_read_another_head() {
        let spoil: [fn(&Turns); 3] = [Turns::shut, Turns::tunnel, |turns| turns.read(1, true)];
        for spoil in spoil {
            let turns = Turns::default();
            assert!(turns.is_at_rest());
            spoil(&turns);
            assert!(!turns.is_at_rest(), "{turns:?}");
        }
    }
}
