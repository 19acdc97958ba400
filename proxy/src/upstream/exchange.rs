//! A request sent over either wire, until its answer begins or it is certain that none will.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::ext::on_informational;
use tokio::task::AbortHandle;

use super::{Http1, http2};
use crate::body::{Received, Upload, UploadBody};
use crate::headers::is_plainly_framed;

/// The most interim answers before an answer. Who has more to say of a request that it has not answered only keeps a
/// worker busy.
pub(crate) const INTERIMS_MAX: u32 = 100;

/// What came of a request without an answer.
pub(super) enum Unanswered {
    /// Nothing of it was sent, or the replica did not act on it.
    NotSent(Box<Request<UploadBody>>, Untaken),
    /// It was sent, or may have been.
    Sent,
}

/// Why a replica did not act on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untaken {
    /// Its connection could not be used any more.
    Connection,
    /// It leaves the connection, without an error: GOAWAY.
    Leaves,
    /// It refused this request alone: REFUSED_STREAM. The connection is as good as before.
    Stream,
}

/// What came of a request. Boxed, since it passes through many hands.
pub(super) type Outcome = Result<Box<Response<Received>>, Unanswered>;

/// Ends the connection of a request with a body that is given up before its answer. Left to itself it would first write
/// what it holds, for as long as its replica takes nothing.
pub(super) struct GivenUp(Option<AbortHandle>);

impl GivenUp {
    pub(super) fn new(connection: Option<&AbortHandle>) -> Self {
        Self(connection.cloned())
    }

    /// It was answered, or is known not to be.
    pub(super) fn settle(mut self) {
        self.0 = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.abort();
        }
    }
}

/// The request is handed over at once: what is awaited has no room for it.
pub(super) fn over_http1(
    connection: &mut Http1,
    mut request: Box<Request<UploadBody>>,
) -> impl Future<Output = Outcome> + use<> {
    bound_interims(&mut request, connection.task.clone());
    let answer = connection.sender.try_send_request(*request);
    answer.map(|answer| match answer {
        // The library takes it, and leaves the other coding on the body.
        Ok(answer) if !is_plainly_framed(answer.headers()) => Err(Unanswered::Sent),
        Ok(answer) => Ok(Box::new(answer.map(Received::Http1))),
        Err(mut error) => Err(match error.take_message() {
            Some(request) => Unanswered::NotSent(Box::new(request), Untaken::Connection),
            None => Unanswered::Sent,
        }),
    })
}

/// Ends the connection of a request that has more than [`INTERIMS_MAX`] interim answers: the library skips them all.
fn bound_interims(request: &mut Request<UploadBody>, connection: AbortHandle) {
    let came = AtomicU32::new(0);
    on_informational(request, move |_| {
        if came.fetch_add(1, Ordering::Relaxed) >= INTERIMS_MAX {
            connection.abort();
        }
    });
}

/// Only HTTP/2 tells of a request that was sent and not acted on, so a copy of the head is kept until it is answered.
pub(super) async fn over_http2(
    stream: &http2::Stream,
    request: Box<Request<UploadBody>>,
    upload: Upload,
) -> Outcome {
    let (head, body) = request.into_parts();
    let copy = head.clone();
    let not_sent = |body, why| {
        let request = Request::from_parts(copy, body);
        Unanswered::NotSent(Box::new(request), why)
    };
    let mut call = match stream.send(Request::from_parts(head, ()), body) {
        Ok(call) => call,
        Err(body) => return Err(not_sent(body, Untaken::Connection)),
    };
    let answer = poll_fn(|cx| call.poll(cx).map_ok(Box::new)).await;
    answer.map_err(|error| {
        let untaken = untaken(&error, || stream.is_closing());
        let again = untaken.and_then(|why| Some((upload.again()?, why)));
        again.map_or(Unanswered::Sent, |(body, why)| not_sent(body, why))
    })
}

/// Why the replica did not act on the request, if it told so (RFC 9113, 6.8 and 8.7): it refused the stream, or goes
/// away and its last stream is an earlier one. One that goes away may refuse what comes until that is known.
fn untaken(error: &h2::Error, is_closing: impl FnOnce() -> bool) -> Option<Untaken> {
    if !error.is_remote() {
        return None;
    }
    match error.reason() {
        _ if http2::is_leave(error) => Some(Untaken::Leaves),
        _ if error.is_go_away() => Some(Untaken::Connection),
        Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => Some(match is_closing() {
            true => Untaken::Leaves,
            false => Untaken::Stream,
        }),
        _ => None,
    }
}
