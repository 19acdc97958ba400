//! A body as it comes from the other side.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::LINGER;
use super::untaken::{Counted, Untaken};
use crate::headers::clean_trailers;
use crate::http2::server::STREAM_WINDOW;
use crate::turns::Taking;

/// How many bytes of a body over HTTP/2 may have been taken before the sender is told that there is room for more.
/// Most messages end before it, and are told of all at once. It is far below the window of a stream.
pub(crate) const OWED_MAX: u32 = 2 << 10;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

/// A body that is received: of a client's request, or of a replica's answer.
#[derive(Debug)]
pub(crate) enum Received {
    /// A client's, whose connection wants to know how far it was taken.
    Request(Incoming, Taking),
    /// A replica's.
    Http1(Incoming),
    Http2(Stream),
}

/// Whether a body was asked for whose sender wants to be told before it sends any of it (RFC 9110, 10.1.1).
#[derive(Debug, Default)]
pub(crate) struct Asking {
    asked: AtomicBool,
    waker: AtomicWaker,
}

impl Asking {
    /// Ends once it was asked for.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        match self.asked.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A body over HTTP/2.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Where it counts, if it is of a request. It goes before the frames do.
    counted: Option<Counted>,
    frames: RecvStream,
    /// What is to come, if the other side has said so.
    left: Option<u64>,
    /// What was taken, and is not told of yet, unless it counts elsewhere. What is owed at the end the library settles by itself.
    owed: u32,
    /// Whether all data was taken: only trailers may follow.
    data_ended: bool,
    /// Whether nothing follows, as far as was asked.
    ended: Cell<bool>,
    /// Whether the library was asked since a part was last taken. That takes a lock.
    asked: Cell<bool>,
    /// Who has to be told that it is asked for, until then.
    asking: Option<Arc<Asking>>,
    of_request: bool,
}

impl Stream {
    /// What follows a head with these fields.
    pub(crate) fn new(headers: &HeaderMap, frames: RecvStream) -> Self {
        let ended = frames.is_end_stream();
        let left = length(headers).or(ended.then_some(0));
        Self {
            counted: None,
            frames,
            left,
            owed: 0,
            data_ended: false,
            ended: Cell::new(ended),
            asked: Cell::new(true),
            asking: None,
            of_request: false,
        }
    }

    /// The same of a client's request, which counts among those of its connection. If the client waits to be told to go on,
    /// who has to tell it.
    pub(crate) fn request(
        headers: &HeaderMap,
        frames: RecvStream,
        among: &Rc<Untaken>,
    ) -> (Self, Option<Arc<Asking>>) {
        let mut body = Self::new(headers, frames);
        body.of_request = true;
        if !body.ended.get() {
            let flow = body.frames.flow_control().clone();
            body.counted = Some(among.count(flow));
        }
        let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        if !body.ended.get() && headers.get(EXPECT).is_some_and(expects) {
            body.asking = Some(Arc::default());
        }
        let asking = body.asking.clone();
        (body, asking)
    }

    /// Whether nothing follows. What ends without a further part may still be found only by asking for one.
    fn is_ended(&self) -> bool {
        if !self.ended.get() && !self.asked.replace(true) {
            self.ended.set(self.frames.is_end_stream());
        }
        self.ended.get()
    }

    fn took(&mut self, bytes: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes as u64);
        }
        // No frame has more bytes than three of its own can count.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(counted) = &self.counted {
            return counted.took(bytes);
        }
        self.owed = self.owed.saturating_add(bytes);
        if self.owed >= OWED_MAX {
            // It fails only for more than was received.
            let _ = self
                .frames
                .flow_control()
                .release_capacity(self.owed as usize);
            self.owed = 0;
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        if let Some(asking) = self.asking.take() {
            asking.ask();
        }
        if !self.data_ended {
            match ready!(self.frames.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.took(data.len());
                    self.asked.set(false);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(broke_off(error)),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.frames.poll_trailers(cx)) {
            Ok(trailers) => {
                self.ended.set(true);
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            }
            Err(error) => broke_off(error),
        })
    }
}

/// A frame of a request, as it goes on. `None` if nothing is left of its trailers: it ends without.
fn cleaned(frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            (!trailers.is_empty()).then(|| Frame::trailers(trailers))
        }
        Err(frame) => Some(frame),
    }
}

/// What comes in place of the rest. Whoever answers early and wants no more says so without an error (RFC 9113, 8.1).
fn broke_off(error: h2::Error) -> Option<Result<Frame<Bytes>, ReceiveError>> {
    match error.reason() {
        Some(Reason::NO_ERROR) => None,
        _ => Some(Err(error.into())),
    }
}

/// The length that a message says it has. The library checks it.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Received {
    /// What is held of it before anybody takes it: all that may come, if it has told its length or waits to be asked for,
    /// else what has come so far. Of HTTP/1 it is no more than one read takes in, which is not counted.
    pub(crate) fn untaken(&mut self) -> u64 {
        match self {
            Self::Request(..) | Self::Http1(_) => 0,
            Self::Http2(body) => match (body.left, &body.asking) {
                (Some(left), _) => left.min(u64::from(STREAM_WINDOW)),
                (None, Some(_)) => u64::from(STREAM_WINDOW),
                (None, None) => body.frames.flow_control().used_capacity() as u64,
            },
        }
    }

    /// Whether it comes unasked, of a length that nobody knows, and so may fill a window while nobody takes it.
    pub(crate) fn comes_unforeseen(&self) -> bool {
        match self {
            Self::Request(..) | Self::Http1(_) => false,
            Self::Http2(body) => body.left.is_none() && body.asking.is_none() && !body.is_ended(),
        }
    }

    /// Has it find out anew whether it has ended.
    pub(crate) fn look_again(&self) {
        if let Self::Http2(body) = self {
            body.asked.set(false);
        }
    }

    /// Whether all that it has by its length was taken, and only its end has not come. Dropped then, it would be reset,
    /// and what of its request is still on its way with it; so it has [`LINGER`] to come.
    pub(crate) fn waits_for_its_end(&mut self) -> bool {
        let Self::Http2(body) = self else {
            return false;
        };
        if body.left != Some(0) || body.is_ended() {
            return false;
        }
        // As long as anything of it is held it is not reset.
        let held = body.frames.flow_control().clone();
        spawn_local(async move {
            sleep(LINGER).await;
            drop(held);
        });
        true
    }

    /// A client's request.
    pub(crate) fn request(body: Incoming, mut taking: Taking) -> Self {
        if body.is_end_stream() {
            taking.ended();
        }
        Self::Request(body, taking)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let received = self.get_mut();
        let of_request = match received {
            Self::Request(..) => true,
            Self::Http1(_) => false,
            Self::Http2(body) => body.of_request,
        };
        let frame = match received {
            Self::Request(body, taking) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                let last = match &frame {
                    Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
                    Some(Err(_)) => false,
                    None => true,
                };
                if last {
                    taking.ended();
                }
                frame.map(|frame| frame.map_err(ReceiveError::from))
            }
            Self::Http1(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(ReceiveError::from))
            }
            Self::Http2(body) => ready!(body.poll_frame(cx)),
        };
        Poll::Ready(match of_request {
            true => frame.and_then(|frame| frame.map(cleaned).transpose()),
            false => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Request(body, _) | Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Request(body, _) | Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.left.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use h2::{client, server};
    use http::{HeaderName, Method, Request};
    use http_body_util::BodyExt;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_request_cannot_say_in_its_trailers_whose_it_is() {
        let (near, far) = duplex(64 << 10);
        let call = async {
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.uri_mut() = "http://svc/".parse().expect("an address");
            let mut trailers = HeaderMap::new();
            for name in [
                "x-forwarded-client-cert",
                "x_forwarded_client-cert",
                "authorization",
                "host",
                "x-up",
                "cookie",
            ] {
                let value = HeaderValue::from_static("1");
                trailers.append(HeaderName::from_static(name), value);
            }
            let (mut sender, connection) = client::handshake(far).await.expect("a server is there");
            let sent = sender.send_request(request, false);
            let (_answer, mut out) = sent.expect("it is a good request");
            out.send_trailers(trailers).expect("the stream is open");
            connection.await
        };
        let serve = async {
            let mut connection = server::handshake(near).await.expect("a client is there");
            let accepted = connection.accept().await.expect("a request comes");
            let (request, _respond) = accepted.expect("it is a good one");
            let (head, frames) = request.into_parts();
            let (body, _) = Stream::request(&head.headers, frames, &Rc::default());
            tokio::select! {
                whole = Received::Http2(body).collect() => whole.expect("it ends well"),
                _ = connection.accept() => unreachable!("there is no other"),
            }
        };
        let whole = tokio::select! {
            whole = serve => whole,
            ended = call => unreachable!("the server is there: {ended:?}"),
        };
        let expected = HeaderMap::from_iter([(
            HeaderName::from_static("x-up"),
            HeaderValue::from_static("1"),
        )]);
        assert_eq!(whole.trailers(), Some(&expected));
    }
}
