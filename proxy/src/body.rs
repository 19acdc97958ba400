//! Bodies on their way through, frame by frame: nothing is gathered, and who takes slowly slows who
//! sends.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::load::InFlight;
use crate::metrics::Running;
use crate::upstream::Checkout;

/// Why an answer broke off after its head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the replica broke off its answer")]
    Upstream(#[source] hyper::Error),
    #[error("the replica was silent for {0:?}")]
    Silent(Duration),
}

/// A request's body on its way to a replica.
#[derive(Debug)]
pub(crate) struct UploadBody {
    inner: Incoming,
    progress: Option<Progress>,
}

/// When the client last sent a part of its request, and the replica took it.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Rc<Cell<Instant>>);

impl Progress {
    pub(crate) fn last(&self) -> Instant {
        self.0.get()
    }
}

impl UploadBody {
    pub(crate) fn new(inner: Incoming) -> Self {
        let progress =
            (!inner.is_end_stream()).then(|| Progress(Rc::new(Cell::new(Instant::now()))));
        Self { inner, progress }
    }

    /// How far the upload got; `None` for a request without a body.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.progress.clone()
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(progress) = &self.progress {
            progress.0.set(Instant::now());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer to a client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// Made here.
    Whole(Full<Bytes>),
    /// A replica's.
    Streamed(Streamed),
}

impl ResponseBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Streamed(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.inner.size_hint(),
        }
    }
}

/// What a request holds until its answer has ended: its place in the counts, and its connection.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) in_flight: InFlight,
    pub(crate) running: Running,
    pub(crate) checkout: Checkout,
}

/// A replica's answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Streamed {
    inner: Incoming,
    /// `None` once the answer has ended. Dropped, with the connection, if it is cut short.
    held: Option<Held>,
    silence: Silence,
}

impl Streamed {
    pub(crate) fn new(inner: Incoming, held: Held, silence_max: Duration) -> Self {
        let mut body = Self {
            inner,
            held: Some(held),
            silence: Silence::new(silence_max),
        };
        body.finish_at_end();
        body
    }

    /// Once the last byte is read, the connection may serve another request.
    fn finish_at_end(&mut self) {
        if self.inner.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            let Held {
                in_flight,
                running,
                checkout,
            } = held;
            checkout.give_back();
            drop((in_flight, running));
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.silence.broken();
                self.finish_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.held = None;
                Poll::Ready(Some(Err(BodyError::Upstream(error))))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.silence.poll(cx));
                self.held = None;
                Poll::Ready(Some(Err(BodyError::Silent(self.silence.max))))
            }
        }
    }
}

impl Drop for Streamed {
    /// The server stops polling after the last byte of a body whose length it knows.
    fn drop(&mut self) {
        self.finish_at_end();
    }
}

/// Measures how long a replica has kept the proxy waiting. Time in which the client does not take
/// what is there does not count.
#[derive(Debug)]
struct Silence {
    max: Duration,
    since: Option<Instant>,
    /// Armed at the first wait, and again only when it fires: a stream of many short waits costs
    /// one timer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn new(max: Duration) -> Self {
        Self {
            max,
            since: None,
            timer: None,
        }
    }

    fn broken(&mut self) {
        self.since = None;
    }

    /// Ready once the present silence has lasted its most.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let end = since + self.max;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_one_silence_counts_not_their_sum() {
        let limit = Duration::from_secs(10);
        let mut silence = Silence::new(limit);
        let start = Instant::now();
        for _ in 0..5 {
            let wait = poll_fn(|cx| silence.poll(cx));
            let waited = tokio::time::timeout(Duration::from_secs(6), wait).await;
            assert!(waited.is_err(), "six seconds are not ten");
            silence.broken();
        }
        poll_fn(|cx| silence.poll(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(40));
    }
}
