//! One client connection: HTTP/1.1 or cleartext HTTP/2, told apart by its first bytes.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use raftserve_model::ReplicaId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::answer::Refusal;
use crate::body::{Received, ResponseBody};
use crate::client_bound::{ClientBound, OverTcp};
use crate::drain::{Phase, Watch};
use crate::forward;
use crate::guard::Guard;
use crate::http2::server;
use crate::lifetime::Lifetime;
use crate::limit::Limit;
use crate::prefixed::Prefixed;
use crate::protocol::{self, Protocol};
use crate::routes::Listener;
use crate::tls;
use crate::tracer::Trace;
use crate::turns::{Answering, Taking, Turns};
use crate::worker::Worker;

/// How long a connection without a request yet holds up a proxy that closes: a client sends its first
/// request right after it has connected, so this is some round trips, and a busy host.
pub(crate) const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);

/// How long the last word to a client may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// The largest head of a request, as a list of fields in HTTP/2 and as text in HTTP/1.
pub(crate) const HEAD_BYTES_MAX: u32 = 64 << 10;

/// How much of a request is read at first, after a rest: as much as most are.
const FIRST_BYTES: usize = 2 << 10;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// The client's address as text.
    pub(crate) address: HeaderValue,
    /// Which port it came in by.
    pub(crate) listener: Listener,
    /// `http` or `https`.
    pub(crate) proto: &'static str,
    /// What its certificate says, if it has shown one.
    pub(crate) certificate: Option<HeaderValue>,
    /// Whether the handshake has agreed on HTTP/2.
    pub(crate) agreed_on_http2: bool,
    /// Where it is between its requests and their answers, as long as the library has it.
    pub(crate) turns: Arc<Turns>,
    pub(crate) lifetime: Lifetime,
    /// When the answer that is on its way must have ended, if it must. Known over HTTP/1 only.
    pub(crate) answer_end: Cell<Option<Instant>>,
    /// How the short path failed at the request that comes next.
    pub(crate) unsent: RefCell<Option<Unsent>>,
    /// Its place among those that may be connected, if there was one: whatever holds the client, as a tunnel does, holds it.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
}

/// A first try of a request that came to nothing, and may be followed by another.
#[derive(Debug)]
pub(crate) struct Unsent {
    /// When the request came.
    pub(crate) began: Instant,
    /// The replica that was tried.
    pub(crate) replica: ReplicaId,
    /// The answer, if there is no other.
    pub(crate) why: Refusal,
    /// Whether the replica may have got it: another try is then within the budget only.
    pub(crate) sent: bool,
    /// Whether that was over a connection which had been kept.
    pub(crate) kept: bool,
    /// Its spans so far, if they are to be told.
    pub(crate) trace: Option<Rc<Trace>>,
}

/// Serves a connection until it ends. Its first head must have come when it is `head_by`. Its errors are the client's
/// affair, and told to no one.
pub(crate) async fn serve<S>(worker: Rc<Worker>, stream: S, client: Client, head_by: Instant)
where
    S: AsyncRead + AsyncWrite + OverTcp + Unpin + Send + 'static,
{
    let watch = worker.drain.watch();
    let bound = ClientBound::new(worker.shared.config.client_user_timeout);
    let mut lent = Lent {
        worker,
        client: Rc::new(client),
        bound,
        watch,
        limit: Limit::new(head_by),
    };
    let mut stream = Box::pin(lent.serve(stream)).await;
    while let Some(rests) = stream {
        stream = match lent.next(rests).await {
            Some(goes_on) => Box::pin(lent.carry(goes_on)).await,
            None => None,
        };
    }
}

/// Serves a connection with TLS until it ends. The handshake has no time of its own: it ends with that for the first head.
pub(crate) async fn serve_tls(
    worker: Rc<Worker>,
    stream: TcpStream,
    mut client: Client,
    head_by: Instant,
) {
    let Some(tls) = &worker.shared.tls else {
        return;
    };
    let mut watch = worker.drain.watch();
    if begin(stream.readable(), &mut watch, head_by)
        .await
        .is_none()
    {
        return;
    }
    drop(watch);
    // One that is under way has its whole time, even if the proxy closes.
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let Ok(Ok(stream)) = timeout_at(head_by, handshake).await else {
        return;
    };
    let certificates = stream.get_ref().1.peer_certificates();
    client.certificate = certificates.and_then(tls::client_certificate);
    client.agreed_on_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    serve(worker, stream, client, head_by).await;
}

/// Awaits what a connection begins with, until it is `by` at the latest. When the proxy closes, one that was just
/// accepted still has its first request on the way, and gets [`FIRST_REQUEST_WITHIN`].
pub(crate) async fn begin<T>(
    first: impl Future<Output = io::Result<T>>,
    watch: &mut Watch,
    by: Instant,
) -> Option<T> {
    let mut first = pin!(first);
    let mut limit = pin!(sleep_until(by));
    let mut shortened = false;
    poll_fn(|cx| {
        if let Poll::Ready(done) = first.as_mut().poll(cx) {
            return Poll::Ready(done.ok());
        }
        if !shortened && watch.poll(cx) == Phase::Ending {
            shortened = true;
            let end = Instant::now() + FIRST_REQUEST_WITHIN;
            let end = end.min(limit.deadline());
            limit.as_mut().reset(end);
        }
        limit.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// A connection while the library has it, or may have it.
pub(crate) struct Lent {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Rc<Client>,
    pub(crate) bound: ClientBound,
    pub(crate) watch: Watch,
    pub(crate) limit: Limit,
}

impl Lent {
    /// Serves a connection from its beginning until it has ended, or from a head that must have come when the limit ends.
    /// The stream, if it rests.
    pub(crate) async fn serve<S>(&mut self, stream: S) -> Option<S>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin + Send + 'static,
    {
        let (detect, head_by) = (protocol::detect(stream), self.limit.end());
        let (protocol, stream) = begin(detect, &mut self.watch, head_by).await?;
        match protocol {
            // Nothing else begins a connection that was agreed to speak HTTP/2 (RFC 9113, 3.4).
            Protocol::Http1 if self.client.agreed_on_http2 => None,
            Protocol::Http1 => self.carry(stream).await,
            Protocol::Http2 => {
                let (worker, client) = (Rc::clone(&self.worker), Rc::clone(&self.client));
                let watch = worker.drain.watch();
                // Boxed, so that connections of HTTP/1 are no larger for it.
                Box::pin(server::serve(worker, stream, client, (watch, head_by))).await;
                None
            }
        }
    }

    /// Awaits the beginning of the next request on a stream that rests. A connection costs little meanwhile: nothing of
    /// the library is left of it.
    async fn next<S>(&mut self, mut stream: S) -> Option<Prefixed<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let read = poll_fn(|cx| {
            // Not kept: the connection would be larger by it.
            let mut first = [0; FIRST_BYTES];
            let mut room = ReadBuf::new(&mut first);
            if let Poll::Ready(read) = Pin::new(&mut stream).poll_read(cx, &mut room) {
                let read = read.ok().map(|()| room.filled().to_vec());
                return Poll::Ready(read.filter(|read| !read.is_empty()));
            }
            if self.watch.poll(cx) == Phase::Ending {
                return Poll::Ready(None);
            }
            self.limit.poll(cx).map(|()| None)
        });
        let Some(read) = read.await else {
            // Boxed, for the same reason.
            Box::pin(close(stream)).await;
            return None;
        };
        Some(Prefixed::new(read, stream))
    }

    /// Has the library serve a connection of HTTP/1, whose next head must have come when the limit ends, until it has
    /// ended. The stream, if it rests.
    async fn carry<S>(&mut self, stream: Prefixed<S>) -> Option<S>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin + Send + 'static,
    {
        let client = &self.client;
        let turns = &client.turns;
        turns.restart();
        let stream = Guard::new(stream, Arc::clone(turns), self.bound.take());
        let mut connection = http1::Builder::new()
            .max_header_size(HEAD_BYTES_MAX as usize)
            .serve_connection(
                TokioIo::new(stream),
                service(Rc::clone(&self.worker), Rc::clone(client)),
            )
            .with_upgrades();
        let config = &self.worker.shared.config;
        let (watch, limit) = (&mut self.watch, &mut self.limit);
        let mut head_by = limit.end();
        // How many requests had come when it was last found to wait for one.
        let mut waits = Some(0);
        let mut told = false;
        let rests = poll_fn(|cx| {
            // A broken connection was the client's doing, and is no news.
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            // Only now, after what had already arrived was read.
            if !told && watch.poll(cx) == Phase::Ending {
                told = true;
                Pin::new(&mut connection).graceful_shutdown();
                if Pin::new(&mut connection).poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
            }
            if turns.is_busy() || !turns.is_flushed() {
                waits = None;
                // The library does not ask an answer's body while the client takes nothing.
                let Some(end) = client.answer_end.get().filter(|_| !turns.is_flushed()) else {
                    return Poll::Pending;
                };
                limit.set(end);
                return limit.poll(cx).map(|()| false);
            }
            if waits != Some(turns.begun()) {
                waits = Some(turns.begun());
                let now = Instant::now();
                head_by = now + config.header_timeout;
                limit.set(head_by.min(now + config.http1_rest_after));
            }
            loop {
                ready!(limit.poll(cx));
                // First: blank lines alone would rest for ever.
                if Instant::now() >= head_by {
                    return Poll::Ready(false);
                }
                if !told && turns.is_at_rest() {
                    return Poll::Ready(true);
                }
                limit.set(head_by);
            }
        })
        .await;
        limit.set(head_by);
        let parts = connection.into_parts().filter(|_| rests)?;
        let (stream, bound) = parts.io.into_inner().into_parts();
        self.bound = bound;
        let (unread, stream) = stream.into_parts();
        // Anything else was part of a request, and nobody would know of which.
        (is_blank(&parts.read_buf) && is_blank(&unread)).then_some(stream)
    }
}

/// Whether these bytes, which came between two requests, mean nothing (RFC 9112, 2.2).
pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

/// Says that nothing more comes, as TLS wants to have it said, to whoever still listens.
pub(crate) async fn close(mut stream: impl AsyncWrite + Unpin) {
    // A client that is gone need not hear it.
    let _ = timeout(CLOSE_WITHIN, stream.shutdown()).await;
}

fn service(
    worker: Rc<Worker>,
    client: Rc<Client>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = http::Response<Answering<ResponseBody>>,
    Error = Infallible,
    Future: Unpin + 'static,
> {
    service_fn(move |request| {
        let turns = Arc::clone(&client.turns);
        turns.begin();
        let taking = Taking::new(Arc::clone(&turns));
        let request = Request::map(request, |body| Received::request(body, taking));
        let answer = forward::serve(Rc::clone(&worker), Rc::clone(&client), request);
        // Boxed, so that an idle connection has no room for it.
        Box::pin(answer)
            .map(|answer| Ok::<_, Infallible>(answer.map(|it| Answering::new(it, turns))))
    })
}
