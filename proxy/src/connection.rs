//! One client connection: HTTP/1.1 or cleartext HTTP/2, told apart by its first bytes.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use raftserve_model::ReplicaId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

use crate::answer::Refusal;
use crate::body::Received;
use crate::drain::{Phase, Watch};
use crate::forward;
use crate::guard::Guard;
use crate::http2::server;
use crate::lifetime::Lifetime;
use crate::protocol::{self, Protocol};
use crate::routes::Listener;
use crate::tls;
use crate::tracer::Trace;
use crate::worker::Worker;

/// How long a connection without a request yet holds up a proxy that closes: a client sends its first
/// request right after it has connected, so this is some round trips, and a busy host.
pub(crate) const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);

/// The largest head of a request, as a list of fields in HTTP/2 and as text in HTTP/1.
pub(crate) const HEAD_BYTES_MAX: u32 = 64 << 10;

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
    /// Set once the connection has switched to another protocol.
    pub(crate) tunnelled: Arc<AtomicBool>,
    pub(crate) lifetime: Lifetime,
    /// How the short path failed at the request that comes next.
    pub(crate) unsent: RefCell<Option<Unsent>>,
}

/// A first try of a request that came to nothing, and may be followed by another.
#[derive(Debug)]
pub(crate) struct Unsent {
    /// The replica that was tried.
    pub(crate) replica: ReplicaId,
    /// The answer, if there is no other.
    pub(crate) why: Refusal,
    /// Whether the replica may have got it: another try is then within the budget only.
    pub(crate) sent: bool,
    /// Its spans so far, if they are to be told.
    pub(crate) trace: Option<Rc<Trace>>,
}

/// Serves a connection until it ends. Its errors are the client's affair, and told to no one.
pub(crate) async fn serve<S>(worker: Rc<Worker>, stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut watch = worker.drain.watch();
    let detect = begin(&worker, protocol::detect(stream), &mut watch).await;
    let Some((protocol, stream)) = detect else {
        return;
    };
    match protocol {
        // Nothing else begins a connection that was agreed to speak HTTP/2 (RFC 9113, 3.4).
        Protocol::Http1 if client.agreed_on_http2 => {}
        Protocol::Http1 => serve_http1(worker, stream, client, watch).await,
        // Boxed, so that connections of HTTP/1 are no larger for it.
        Protocol::Http2 => Box::pin(server::serve(worker, stream, client, watch)).await,
    }
}

/// Serves a connection with TLS until it ends.
pub(crate) async fn serve_tls(worker: Rc<Worker>, stream: TcpStream, mut client: Client) {
    let Some(tls) = &worker.shared.tls else {
        return;
    };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let mut watch = worker.drain.watch();
    let Some(stream) = begin(&worker, handshake, &mut watch).await else {
        return;
    };
    drop(watch);
    let certificates = stream.get_ref().1.peer_certificates();
    client.certificate = certificates.and_then(tls::client_certificate);
    client.agreed_on_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    serve(worker, stream, client).await;
}

/// Awaits what a connection begins with. When the proxy closes, one that was just accepted still has
/// its first request on the way, and gets [`FIRST_REQUEST_WITHIN`].
pub(crate) async fn begin<T>(
    worker: &Worker,
    first: impl Future<Output = io::Result<T>>,
    watch: &mut Watch,
) -> Option<T> {
    let mut first = pin!(first);
    let mut limit = pin!(sleep(worker.shared.config.header_timeout));
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

async fn serve_http1<S>(worker: Rc<Worker>, stream: S, client: Client, watch: Watch)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Guard::new(stream, Arc::clone(&client.tunnelled));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(worker.shared.config.header_timeout)
        .max_header_size(HEAD_BYTES_MAX as usize)
        .serve_connection(TokioIo::new(stream), service(worker, Rc::new(client)))
        .with_upgrades();
    until_done(pin!(connection), watch, Phase::Ending, |connection| {
        connection.graceful_shutdown();
    })
    .await;
}

fn service(
    worker: Rc<Worker>,
    client: Rc<Client>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = http::Response<crate::body::ResponseBody>,
    Error = Infallible,
    Future: 'static,
> {
    service_fn(move |request| {
        // Boxed, so that an idle connection has no room for it.
        let request = Request::map(request, Received::Http1);
        let answer = forward::serve(Rc::clone(&worker), Rc::clone(&client), request);
        Box::pin(answer).map(Ok::<_, Infallible>)
    })
}

/// Polls a connection to its end, and tells it once when the worker's phase asks it to finish.
async fn until_done<C, E>(
    mut connection: Pin<&mut C>,
    mut watch: Watch,
    phase: Phase,
    finish: impl Fn(Pin<&mut C>),
) where
    C: Future<Output = Result<(), E>>,
{
    let mut told = false;
    // A broken connection was the client's doing, and is no news.
    let _ = poll_fn(|cx| {
        let done = connection.as_mut().poll(cx);
        if done.is_ready() || told || watch.poll(cx) < phase {
            return done;
        }
        // Only now, after what had already arrived was read.
        told = true;
        finish(connection.as_mut());
        connection.as_mut().poll(cx)
    })
    .await;
}
