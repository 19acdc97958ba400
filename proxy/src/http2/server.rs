//! A client's connection of HTTP/2.
//!
//! `h2` is driven directly: between it and a request's own future the general library would put a second future for
//! each stream, boxed bodies, and a lock for each part of them.

use std::future::{poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::{Allowance, Calm, Heard, Pulse, Window};
use crate::body::{
    self, Asking, Backlog, OWED_MAX, Part, Pipe, Received, ResponseBody, Stream, Untaken,
};
use crate::connection::{Client, HEAD_BYTES_MAX, begin};
use crate::drain::{Phase, Watch};
use crate::forward;
use crate::lifetime::{Due, Retirement};
use crate::memory::{Allotment, Taken, head_memory};
use crate::worker::Worker;

/// The most streams at once on one connection; clients that need more open another one. It bounds what one connection
/// may make the proxy hold.
const STREAMS_MAX: u32 = 256;

/// What one request's body may have under way, and what is held of it at most while nobody takes it. As large as it takes
/// to fill a link of 100 Mbit/s and 20 ms.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;

/// What all bodies of a connection may have under way at most: one whose replica does not read, or that waits for one, holds
/// up to a window of its stream, and however many do, those to other services must go on. So it is what stops one only once
/// the peer's budget for windows has no more.
pub(crate) const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;

/// What small frames may cost beside their bytes while they are held: as much as the library has for the largest window. By
/// itself it would follow the present one, and end a connection whose streams hold some thousands of small messages.
const SMALL_FRAMES_COST_MAX: usize = CONNECTION_WINDOW as usize / 2;

/// What the head of each request may hold. What is beyond it counts with that of all others.
const HEAD_FREE: u64 = 2 << 10;

/// What is owed to a stream leaves most of its window.
const _: () = assert!(OWED_MAX <= STREAM_WINDOW / 16);

/// What is buffered of one answer, as far as its connection's [`Backlog`] allows it.
const SEND_BUFFER: usize = 400 << 10;

/// How many streams may break the protocol before the connection ends.
const ERRORS_MAX: usize = 1024;

/// How often a silent connection is pinged, and how long its answer may take.
const PING: Duration = Duration::from_secs(20);

/// How long a connection that is short of room waits before it sees whether others have given some back: they do so without a
/// word to it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Serves a connection until it ends, whose settings must have come by a time. Its errors are the client's affair, and
/// told to no one.
pub(crate) async fn serve<S>(
    worker: Rc<Worker>,
    stream: S,
    client: Rc<Client>,
    (mut watch, by): (Watch, Instant),
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let stream = Heard::new(stream);
    let heard = stream.at();
    let stream = Calm::new(stream);
    let (allowance, data) = (stream.allowance(), stream.data());
    let mut watched = Some(&allowance);
    let handshake = builder().handshake::<_, Part>(stream);
    let handshake = async { handshake.await.map_err(io::Error::other) };
    let Some(mut connection) = begin(handshake, &mut watch, by).await else {
        return;
    };
    let mut pulse = connection
        .ping_pong()
        .map(|pings| Pulse::new(pings, heard, PING, PING));
    let config = &worker.shared.config;
    let mut retirement = Retirement::new(&client.lifetime, config);
    // Each request that runs holds the client, beside those that do already.
    let holders = Rc::strong_count(&client);
    let busy = || Rc::strong_count(&client) > holders;
    let (backlog, untaken) = (Rc::default(), Rc::<Untaken>::default());
    let shared = &worker.shared;
    let mut window = Window::new(Arc::clone(&shared.http2_windows), Instant::now());
    let heads = Allotment::new(Arc::clone(&shared.http2_heads));
    let mut told = false;
    let mut look_again: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        loop {
            if window.is_due(data.get()) {
                let size = window.look(Instant::now(), data.get(), untaken.bytes());
                untaken.set_short(window.is_short());
                connection.set_target_window_size(size);
            }
            while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                let Some(Ok((request, mut respond))) = accepted else {
                    return Poll::Ready(());
                };
                let Ok(head) = hold_head(&heads, &request) else {
                    // It was not looked at, and may be sent again (RFC 9113, 8.7).
                    shared.http2_heads_refused.fetch_add(1, Ordering::Relaxed);
                    respond.send_reset(Reason::REFUSED_STREAM);
                    continue;
                };
                let to = To {
                    worker: Rc::clone(&worker),
                    backlog: Rc::clone(&backlog),
                    untaken: Rc::clone(&untaken),
                    allowance: Rc::clone(&allowance),
                    head,
                };
                begin_stream(to, &client, (request, respond));
            }
            if watched.take_if(|it| it.is_exceeded()).is_some() {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            let over = |pulse: &mut Pulse| pulse.poll(cx).is_ready();
            if pulse.take_if(over).is_some() {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                continue;
            }
            let due = retirement.poll(cx, &client.lifetime, busy, config);
            if due == Poll::Ready(Due::Cut) {
                return Poll::Ready(());
            }
            if told || due.is_pending() && watch.poll(cx) < Phase::Draining {
                if window.is_due(data.get()) {
                    cx.waker().wake_by_ref(); // Once those have run whom it came for.
                }
                if window.is_short() {
                    let timer = look_again.get_or_insert_with(|| Box::pin(sleep(LOOK_AGAIN)));
                    if timer.as_mut().poll(cx).is_ready() {
                        look_again = None;
                        cx.waker().wake_by_ref();
                    }
                }
                return Poll::Pending;
            }
            // Only now, after what had already arrived was read.
            told = true;
            connection.graceful_shutdown();
        }
    })
    .await;
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .data_frame_budget(SMALL_FRAMES_COST_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_local_error_reset_streams(Some(ERRORS_MAX))
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Who answers on a connection, what that holds, and what it may be in vain.
struct To {
    worker: Rc<Worker>,
    backlog: Rc<Backlog>,
    untaken: Rc<Untaken>,
    allowance: Rc<Allowance>,
    /// What its request's head holds, until the answer begins.
    head: Option<Taken>,
}

/// Counts the head of a request, as far as it is no usual one.
fn hold_head<B>(heads: &Allotment, request: &Request<B>) -> Result<Option<Taken>, ()> {
    match head_memory(request).saturating_sub(HEAD_FREE) {
        0 => Ok(None),
        more => heads.take(more).map(Some).ok_or(()),
    }
}

/// Begins to serve a request.
fn begin_stream(
    to: To,
    client: &Rc<Client>,
    (request, respond): (Request<RecvStream>, SendResponse<Part>),
) {
    let (head, frames) = request.into_parts();
    let (body, asking) = Stream::request(&head.headers, frames, &to.untaken);
    let request = Request::from_parts(head, Received::Http2(body));
    // Boxed, so that a stream whose answer has begun has no room for it.
    let served = Box::pin(forward::serve(
        Rc::clone(&to.worker),
        Rc::clone(client),
        request,
    ));
    match asking {
        None => tokio::task::spawn_local(answer(to, served, respond)),
        // Boxed: few do.
        Some(asking) => tokio::task::spawn_local(Box::pin(go_on(to, served, respond, asking))),
    };
}

/// Tells the client to go on once its body is asked for, if that is before its answer, and sends the answer.
async fn go_on(
    to: To,
    mut served: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    mut respond: SendResponse<Part>,
    asking: Arc<Asking>,
) {
    let answered = poll_fn(|cx| match served.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(Some(response))),
        Poll::Pending if asking.poll(cx).is_ready() => Poll::Ready(Some(None)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    });
    match answered.await {
        None => to.allowance.taken_back(),
        Some(Some(response)) => answer(to, Box::pin(ready(response)), respond).await,
        Some(None) => {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            // It fails only if the stream has ended, which is found out just below.
            let _ = respond.send_informational(go_on);
            answer(to, served, respond).await;
        }
    }
}

/// Sends the answer that comes of `served`, unless the client loses interest before.
async fn answer(
    to: To,
    served: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    mut respond: SendResponse<Part>,
) {
    let Some(response) = await_answer(served, &mut respond).await else {
        to.allowance.taken_back();
        return;
    };
    let To {
        worker,
        backlog,
        head,
        ..
    } = to;
    drop(head);
    let (mut head, body) = response.into_parts();
    let last = body.is_end_stream();
    let length = body.size_hint().exact().filter(|_| !last);
    complete(&mut head.headers, length, || {
        worker.date.field(Instant::now())
    });
    let patience = worker.shared.config.client_user_timeout;
    drop(worker);
    let Ok(out) = respond.send_response(Response::from_parts(head, ()), last) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return;
    };
    if !last {
        let client = body::Client { patience, backlog };
        let mut pipe = Pipe::new(body, out, Some(client));
        poll_fn(|cx| pipe.poll(cx)).await;
    }
}

async fn await_answer(
    mut served: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    respond: &mut SendResponse<Part>,
) -> Option<Response<ResponseBody>> {
    poll_fn(|cx| match served.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await
}

/// Adds what every answer tells, and the length of its body if that is known, where it does not tell them itself.
fn complete(headers: &mut HeaderMap, length: Option<u64>, date: impl FnOnce() -> HeaderValue) {
    headers.entry(DATE).or_insert_with(date);
    if let Some(length) = length {
        headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
}
