//! Bodies on their way through, frame by frame: nothing is gathered, and who takes slowly slows who
//! sends.

mod backlog;
mod pipe;
mod received;
mod untaken;
mod upload;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::Dialect;
use crate::bulk::{Bulk, Place};
use crate::grpc::{self, Code};
use crate::load::InFlight;
use crate::memory::Allotment;
use crate::running::Running;
use crate::upstream::Checkout;

pub(crate) use backlog::{Backlog, Part};
pub(crate) use pipe::{Answer, Client, Pipe};
pub(crate) use received::{Asking, OWED_MAX, ReceiveError, Received, Stream};
pub(crate) use untaken::Untaken;
pub(crate) use upload::{Fault, LINGER, Upload, UploadBody};

/// What the bodies of a worker have in common.
#[derive(Debug)]
pub(crate) struct Bodies {
    /// Where room comes from for those of requests that are kept to be sent again.
    pub(crate) kept: Allotment,
    /// Where large ones take turns.
    pub(crate) bulk: Rc<Bulk>,
}

/// Why an answer broke off after its head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the replica broke off its answer")]
    Upstream(#[source] ReceiveError),
    #[error("the replica was silent for {0:?}")]
    Silent(Duration),
    #[error("the request's time ran out")]
    Overdue,
    #[error("the request's body is larger than its service allows")]
    TooLarge,
}

/// The body of an answer to a client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// Made here.
    Whole(Full<Bytes>),
    /// A replica's. Boxed, since it passes through many hands.
    Streamed(Box<Streamed>),
}

impl ResponseBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }

    pub(crate) fn streamed(body: Streamed) -> Self {
        Self::Streamed(Box::new(body))
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
            Self::Streamed(body) => body.ending == Ending::Told || body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.inner.size_hint(),
        }
    }
}

impl Answer for ResponseBody {
    fn asked_last(&self) -> Option<Instant> {
        match self {
            Self::Whole(_) => None,
            Self::Streamed(body) => body.held.as_ref()?.checkout.upload()?.last(),
        }
    }

    fn end(&self) -> Option<Instant> {
        match self {
            Self::Whole(_) => None,
            Self::Streamed(body) => body.patience.end,
        }
    }

    fn overdue(&mut self) -> Result<Frame<Bytes>, BodyError> {
        match self {
            Self::Whole(_) => Err(BodyError::Overdue),
            Self::Streamed(body) => body.cut(BodyError::Overdue),
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

/// How the client is told that its answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By the connection's or the stream's end.
    Reset,
    /// By the trailers that end every call of gRPC.
    Trailers,
    /// It was told.
    Told,
}

impl Ending {
    /// In HTTP/1 a client may leave trailers unread, and would take the answer for whole.
    pub(crate) fn of<B>(request: &Request<B>, dialect: Dialect) -> Self {
        match dialect {
            Dialect::Grpc if request.version() == Version::HTTP_2 => Self::Trailers,
            Dialect::Grpc | Dialect::Http => Self::Reset,
        }
    }
}

/// A replica's answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Streamed {
    inner: Received,
    ending: Ending,
    /// `None` once the answer has ended. Dropped, with the connection, if it is cut short.
    held: Option<Held>,
    patience: Patience,
    place: Place,
    /// When its head came, until it is looked at again: what is there then came with the head.
    came: Option<Instant>,
}

impl Streamed {
    /// The body after a head that came at `now`.
    pub(crate) fn new(
        inner: Received,
        (held, now): (Held, Instant),
        patience: Patience,
        place: Place,
        ending: Ending,
    ) -> Self {
        let mut body = Self {
            inner,
            ending,
            held: Some(held),
            patience,
            place,
            came: Some(now),
        };
        body.finish_at_end();
        body
    }

    /// Once the last byte is read, the connection may serve another request.
    fn finish_at_end(&mut self) {
        if self.held.is_some() && self.inner.is_end_stream() {
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
            let now = self.came.unwrap_or_else(Instant::now);
            checkout.answered(now);
            drop(in_flight);
            running.end(now);
        }
    }

    /// Ends the answer before its end.
    fn cut(&mut self, mut error: BodyError) -> Result<Frame<Bytes>, BodyError> {
        if let Some(mut held) = self.held.take() {
            held.running.broke_off();
            let fault = held.checkout.fault();
            if fault == Some(Fault::TooLarge) {
                error = BodyError::TooLarge; // The replica's answer ended because the request did.
            }
            let is_asked = held.checkout.upload().is_some_and(Upload::is_wanted);
            let failed = match error {
                BodyError::Upstream(_) => fault.is_none(),
                // One that still waits for its client may well be silent.
                BodyError::Silent(_) => !is_asked,
                BodyError::Overdue | BodyError::TooLarge => false,
            };
            if failed {
                held.checkout.upstream.failed();
            }
            held.checkout.cut();
        }
        if self.ending != Ending::Trailers {
            return Err(error);
        }
        self.ending = Ending::Told;
        let code = match error {
            BodyError::Upstream(_) => Code::Unavailable,
            BodyError::Silent(_) | BodyError::Overdue => Code::DeadlineExceeded,
            BodyError::TooLarge => Code::ResourceExhausted,
        };
        Ok(Frame::trailers(grpc::end(code, &error.to_string())))
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ending == Ending::Told {
            return Poll::Ready(None);
        }
        if self.patience.is_over() && self.held.is_some() {
            return Poll::Ready(Some(self.cut(BodyError::Overdue)));
        }
        match self.place.poll_frame(&mut self.inner, cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.heard();
                if let (Some(held), Some(data)) = (&mut self.held, frame.data_ref()) {
                    held.running.sent(data.len());
                }
                self.finish_at_end();
                self.came = None;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(self.cut(BodyError::Upstream(error))))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                self.came = None;
                if self.place.waits() {
                    return Poll::Pending;
                }
                let upload = self.held.as_ref().and_then(|held| held.checkout.upload());
                let error = ready!(self.patience.poll(cx, upload.and_then(Upload::last)));
                Poll::Ready(Some(self.cut(error)))
            }
        }
    }
}

impl Drop for Streamed {
    /// The server stops polling after the last byte of a body whose length it knows. What is not whole by then was given
    /// up by the client.
    fn drop(&mut self) {
        self.inner.look_again();
        self.finish_at_end();
        if self.held.is_some() && self.inner.waits_for_its_end() {
            self.finish();
        }
        if self.held.is_some() && self.patience.is_over() {
            let _ = self.cut(BodyError::Overdue); // Its connection was ended for it.
        }
        if let Some(held) = self.held.take() {
            held.checkout.cut();
        }
    }
}

/// Measures how long a replica has kept the proxy waiting, and how long the whole request has lasted. Time in
/// which the client does not take what is there does not count as the replica's silence.
#[derive(Debug)]
pub(crate) struct Patience {
    silence_max: Duration,
    /// When the answer must have ended.
    end: Option<Instant>,
    silent_since: Option<Instant>,
    /// Armed at the first wait, and again only when it fires: a stream of many short waits costs
    /// one timer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(crate) fn new(silence_max: Duration, end: Option<Instant>) -> Self {
        Self {
            silence_max,
            end,
            silent_since: None,
            timer: None,
        }
    }

    fn heard(&mut self) {
        self.silent_since = None;
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Ready once the present silence has lasted its most, or the request. A replica that `took` a part of the request
    /// then was busy with that.
    fn poll(&mut self, cx: &mut Context<'_>, took: Option<Instant>) -> Poll<BodyError> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let silent = took.map_or(since, |took| took.max(since)) + self.silence_max;
        let end = self.end.map_or(silent, |end| end.min(silent));
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.end.is_some_and(|end| now >= end) {
                return Poll::Ready(BodyError::Overdue);
            }
            if now >= silent {
                return Poll::Ready(BodyError::Silent(self.silence_max));
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
        let mut silence = Patience::new(limit, None);
        let start = Instant::now();
        for _ in 0..5 {
            let wait = poll_fn(|cx| silence.poll(cx, None));
            let waited = tokio::time::timeout(Duration::from_secs(6), wait).await;
            assert!(waited.is_err(), "six seconds are not ten");
            silence.heard();
        }
        poll_fn(|cx| silence.poll(cx, None)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(40));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_no_silence_while_the_request_is_taken() {
        let limit = Duration::from_secs(10);
        let mut silence = Patience::new(limit, None);
        let start = Instant::now();
        for _ in 0..7 {
            let took = Instant::now();
            let wait = poll_fn(|cx| silence.poll(cx, Some(took)));
            let waited = tokio::time::timeout(Duration::from_secs(6), wait).await;
            assert!(waited.is_err(), "six seconds are not ten");
        }
        let took = Instant::now();
        poll_fn(|cx| silence.poll(cx, Some(took))).await;
        assert_eq!(start.elapsed(), Duration::from_secs(52));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_whole_request_comes_before_that_of_a_silence() {
        let start = Instant::now();
        let end = start + Duration::from_secs(3);
        let mut patience = Patience::new(Duration::from_secs(10), Some(end));
        assert!(!patience.is_over());
        let over = poll_fn(|cx| patience.poll(cx, None)).await;
        assert!(matches!(over, BodyError::Overdue), "{over}");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(patience.is_over(), "even if the replica never pauses");
    }
}
