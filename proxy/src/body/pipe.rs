//! A body on its way into a stream of HTTP/2.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tokio::time::Instant;

use super::upload::{UploadBody, UploadError};
use crate::limit::Limit;

/// How many bytes of a body go without asking the receiver for room: a message as most are, which then takes one step.
/// What the receiver does not take waits here, so all streams of a connection together may make us hold 1 MiB so.
const UNASKED_MAX: usize = 4 << 10;

/// Sends a body, as fast as the receiver takes it.
#[derive(Debug)]
pub(crate) struct Pipe<B> {
    body: B,
    out: SendStream<Bytes>,
    /// A part that waits for room, and whether it is the last.
    waits: Option<(Bytes, bool)>,
    /// How many bytes may still go without asking.
    unasked: usize,
    /// How long a receiver may leave no room, if not for ever.
    patience: Option<Duration>,
    /// The end of that, once there was no room; armed anew only when it fires.
    limit: Option<Limit>,
    stalled: bool,
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes, Error: Error + 'static> + Unpin,
{
    pub(crate) fn new(body: B, out: SendStream<Bytes>, patience: Option<Duration>) -> Self {
        Self {
            body,
            out,
            waits: None,
            unasked: UNASKED_MAX,
            patience,
            limit: None,
            stalled: false,
        }
    }

    /// Ready once all was handed over, or the stream has ended before. A body that breaks off resets it, and so does a
    /// receiver that leaves no room for too long: else it would hold for ever what the body holds.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waits.is_some() && !ready!(self.poll_room(cx)) {
                self.out.send_reset(Reason::CANCEL);
                return Poll::Ready(());
            }
            if let Some((data, last)) = self.waits.take()
                && (self.out.send_data(data, last).is_err() || last)
            {
                return Poll::Ready(());
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // The receiver may have lost interest meanwhile.
                return self.out.poll_reset(cx).map(|_| ());
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.out.send_reset(reason(&error));
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.out.send_data(Bytes::new(), true); // Else it has ended anyway.
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    if data.len() > self.unasked {
                        // Room for one byte: what is asked for beyond it is taken from others before it is used.
                        self.unasked = 0;
                        self.out.reserve_capacity(1);
                        self.waits = Some((data, last));
                        continue;
                    }
                    self.unasked -= data.len();
                    if self.out.send_data(data, last).is_err() || last {
                        return Poll::Ready(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let _ = self.out.send_trailers(trailers);
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Ready once there is room, or never will be: sending then fails. `false` if there was none for too long.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.out.capacity() == 0 {
            match self.out.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => break,
                Poll::Pending => return self.poll_patience(cx).map(|()| false),
            }
        }
        self.stalled = false;
        Poll::Ready(true)
    }

    /// Ready once there was no room for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience else {
            return Poll::Pending;
        };
        if !std::mem::replace(&mut self.stalled, true) {
            let end = Instant::now() + patience;
            match &mut self.limit {
                Some(limit) => limit.set(end),
                None => self.limit = Some(Limit::new(end)),
            }
        }
        self.limit
            .as_mut()
            .map_or(Poll::Pending, |limit| limit.poll(cx))
    }
}

impl Pipe<UploadBody> {
    /// As [`Self::poll`]. A body that is cut while one of its parts waits for room resets the stream as well: the room
    /// may never come.
    pub(crate) fn poll_until_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll(cx).is_pending() {
            ready!(self.body.poll_cut(cx));
            self.out.send_reset(Reason::CANCEL);
        }
        Poll::Ready(())
    }
}

/// How a stream ends whose body broke off so: as the one that it came by, if that was reset, and as one that is not
/// wanted any more, if it was cut.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(UploadError::Cut) = error.downcast_ref() {
            return Reason::CANCEL;
        }
        if let Some(reason) = error.downcast_ref().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::io;

    use h2::{RecvStream, client, server};
    use http::{Request, Response, Uri};
    use http_body::Frame;
    use http_body_util::BodyExt;
    use tokio::io::duplex;
    use tokio::time::timeout;

    use super::super::{Received, Stream};
    use super::*;

    /// Far above what anything here takes.
    const LIMIT: Duration = Duration::from_secs(20);

    type Breaks = fn() -> Box<dyn Error + Send + Sync>;

    /// A body of so many parts of so many bytes each, which then ends or breaks.
    struct Parts<'a> {
        left: usize,
        bytes: usize,
        taken: &'a Cell<usize>,
        /// How it ends, after a pause.
        breaks: Option<Breaks>,
        paused: bool,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("it broke")]
    struct Broke(#[source] Box<dyn Error + Send + Sync>);

    impl Body for Parts<'_> {
        type Data = Bytes;
        type Error = Broke;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Broke>>> {
            if self.left == 0 && self.breaks.is_some() && !self.paused {
                self.paused = true; // A reset would overtake what was not written yet.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(self.breaks.take().map(|breaks| Err(Broke(breaks()))));
            }
            self.left -= 1;
            self.taken.set(self.taken.get() + self.bytes);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; self.bytes])))))
        }
    }

    /// Answers one request with this body, and lets `read` have the answer's.
    async fn answered<T>(body: Parts<'_>, read: impl AsyncFnOnce(Received) -> T) -> T {
        let (near, far) = duplex(64 << 10);
        let serve = async {
            let mut connection = server::handshake(near).await.expect("a client is there");
            let accepted = connection.accept().await.expect("a request comes");
            let (_request, mut respond) = accepted.expect("it is a good one");
            let out = respond.send_response(Response::new(()), false);
            let mut pipe = Pipe::new(body, out.expect("the client waits"), None);
            let mut piped = false;
            poll_fn(|cx| {
                let closed = connection.poll_closed(cx).map(drop);
                piped = piped || pipe.poll(cx).is_ready();
                closed
            })
            .await;
            assert!(piped, "it noticed that the stream has ended");
        };
        let call = async {
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_static("http://replica/");
            let (mut sender, connection) = client::handshake(far).await.expect("a server is there");
            let (answer, _) = sender
                .send_request(request, true)
                .expect("it is a good request");
            drop(sender);
            let read = async {
                let (head, frames): (_, RecvStream) =
                    answer.await.expect("it is answered").into_parts();
                read(Received::Http2(Stream::new(&head.headers, frames))).await
            };
            let (read, closed) = tokio::join!(read, connection);
            closed.expect("it ends well");
            read
        };
        let both = async { tokio::join!(serve, call).1 };
        timeout(LIMIT, both).await.expect("in time")
    }

    #[tokio::test]
    async fn whole_bodies_arrive_however_they_are_cut() {
        for (left, bytes) in [
            (0, 0),
            (1, 1),
            (1, 4 << 10),
            (5000, 300),
            (9, 100_000),
            (3, 0),
        ] {
            let taken = Cell::new(0);
            let parts = Parts {
                left,
                bytes,
                taken: &taken,
                breaks: None,
                paused: false,
            };
            let read = answered(parts, async |body| body.collect().await);
            let whole = read.await.expect("it ends well").to_bytes();
            assert_eq!(whole.len(), left * bytes);
        }
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_stops_the_sender() {
        let taken = Cell::new(0);
        // Many times what may be taken.
        let parts = Parts {
            left: 1 << 10,
            bytes: 1 << 10,
            taken: &taken,
            breaks: None,
            paused: false,
        };
        let read = answered(parts, async |body| {
            let mut before = 0;
            while taken.get() != before || before == 0 {
                before = taken.get();
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
            drop(body);
        });
        read.await;
        // The window of a stream that nobody chose is 65,535 bytes.
        let most = 65_535 + UNASKED_MAX + (2 << 10);
        assert!(taken.get() <= most, "{} bytes", taken.get());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_resets_the_stream_as_it_was_reset_itself() {
        let cases: [(Breaks, Reason); 2] = [
            (|| Box::new(h2::Error::from(Reason::CANCEL)), Reason::CANCEL),
            (
                || Box::new(io::Error::other("no disk")),
                Reason::INTERNAL_ERROR,
            ),
        ];
        for (breaks, reason) in cases {
            let taken = Cell::new(0);
            let parts = Parts {
                left: 2,
                bytes: 10,
                taken: &taken,
                breaks: Some(breaks),
                paused: false,
            };
            let read = answered(parts, async |body| body.collect().await);
            let error = read.await.expect_err("it broke off");
            let super::super::ReceiveError::Http2(error) = error else {
                panic!("{error:?}");
            };
            assert_eq!(error.reason(), Some(reason));
        }
    }
}
