//! One worker's connections to one replica.

mod dial;
mod exchange;
mod http2;
mod plain;
mod reach;
mod socket;
mod trust;
mod vigil;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::future::Either;
use http::{Request, Response, StatusCode, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use raftserve_model::{ReplicaId, ServiceVersion};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::body::{Fault, Received, Upload, UploadBody};
use crate::config::ProxyConfig;
use crate::deadline;
use crate::health::Health;
use crate::limit::Limit;
use crate::load::{Gauge, InFlight};
use crate::metrics::{Latencies, ReplicaCounters, count};
use crate::policy::PeakEwma;
use crate::triage::Triage;

use exchange::{GivenUp, Unanswered, over_http1, over_http2};

pub(crate) use dial::Dialer;
pub(crate) use exchange::{INTERIMS_MAX, Untaken};
pub use reach::{ReachError, ReplicaDialer};
pub(crate) use vigil::{FITS_BYTES, Long, has_left, long, look_every, set_bound, shorten};

/// What a request that broke off counts as having taken, at least.
const FAILED_TOOK: Duration = Duration::from_secs(1);

/// How many unused limits are kept of one replica: as many requests as it may well have at once.
const LIMITS_MAX: usize = 256;

/// Why no connection was had. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Failed(#[source] Arc<io::Error>),
    /// This process, or its host, has no more files, memory or ports for one. It says nothing of the replica.
    #[error("this peer cannot open a connection")]
    Local(#[source] Arc<io::Error>),
    /// The replica accepted the connection, and broke off or spoke something else as HTTP/2 began.
    #[error("cannot begin HTTP/2 on the connection")]
    Handshake(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The replica left the connection without an error as HTTP/2 began: GOAWAY.
    #[error("the replica leaves its connections (GOAWAY)")]
    Leaves,
    /// Connections were opened, and others had taken all places on them. It says nothing of the replica.
    #[error("no place on a connection within {0:?}")]
    Full(Duration),
}

/// What is spoken to a replica. A request is made for one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

impl Wire {
    /// What this request was made for.
    pub(crate) fn of(request: &Request<UploadBody>) -> Self {
        match request.version() {
            Version::HTTP_2 => Self::Http2,
            _ => Self::Http1,
        }
    }
}

/// How an exchange failed.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// Nothing of the request was sent, or the replica said that it did not act on it: here it is again.
    NotSent(Box<Request<UploadBody>>, Untaken),
    /// The client's body came to nothing.
    Client(Fault),
    /// The connection broke. The replica may have acted on the request.
    Broke,
    /// The replica stayed silent for too long.
    Silent,
}

/// A replica as one worker reaches it.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) replica: ReplicaId,
    pub(crate) address: SocketAddr,
    pub(crate) gauge: Arc<Gauge>,
    /// The most recently used last: it is taken first, so that a burst's surplus goes idle and ends.
    idle: RefCell<Vec<Idle>>,
    http2: Rc<http2::Pool>,
    plain: plain::Pool,
    dialer: RefCell<Rc<Dialer>>,
    pub(crate) health: RefCell<Health>,
    triage: Rc<Triage>,
    pub(crate) counters: Arc<ReplicaCounters>,
    version: Cell<ServiceVersion>,
    latencies: RefCell<Arc<Latencies>>,
    /// Whether it may get requests that no session binds.
    ready: Cell<bool>,
    /// Unused ones, which stay armed: see [`Limit`].
    limits: RefCell<Vec<Limit>>,
    /// How long it took to answer this worker, if its service's policy wants to know.
    seen: Cell<Option<PeakEwma>>,
}

/// A connection of HTTP/1.
#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<UploadBody>,
    /// Ends it at once. By itself it would first write what it holds, for as long as its replica takes nothing.
    task: AbortHandle,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

impl Upstream {
    pub(crate) fn new(
        replica: ReplicaId,
        address: SocketAddr,
        gauge: Arc<Gauge>,
        triage: Rc<Triage>,
        counters: Arc<ReplicaCounters>,
        dialer: Rc<Dialer>,
    ) -> Self {
        Self {
            replica,
            address,
            gauge,
            idle: RefCell::default(),
            http2: Rc::default(),
            plain: plain::Pool::default(),
            dialer: RefCell::new(dialer),
            health: RefCell::new(Health::new(Instant::now())),
            triage,
            counters,
            version: Cell::default(),
            latencies: RefCell::default(),
            ready: Cell::new(false),
            limits: RefCell::default(),
            seen: Cell::new(None),
        }
    }

    /// Whether to measure how long it takes to answer. What was measured is kept meanwhile.
    pub(crate) fn measure(&self, measure: bool) {
        let seen = self.seen.get();
        self.seen.set(measure.then(|| seen.unwrap_or_default()));
    }

    /// What one more request here costs, as far as this worker has seen, beside those in flight.
    pub(crate) fn cost(&self, now: Instant) -> u64 {
        let seen = self.seen.get().unwrap_or_default();
        seen.cost(self.gauge.total(), now)
    }

    /// A request ended so long after its last part was sent.
    pub(crate) fn saw(&self, since: Instant, answered: bool) {
        if let Some(mut seen) = self.seen.get() {
            let now = Instant::now();
            let took = now.saturating_duration_since(since);
            // A replica that fails fast must not look fast.
            let took = if answered {
                took
            } else {
                took.max(FAILED_TOOK)
            };
            seen.observe(took, now);
            self.seen.set(Some(seen));
        }
    }

    /// Whether it is ready from now on. One that becomes so begins as a new one.
    pub(crate) fn set_ready(&self, ready: bool) {
        if ready && !self.ready.get() {
            self.triage.readied(&self.health);
        }
        self.ready.set(ready);
    }

    /// How it is connected to from now on.
    pub(crate) fn set_dialer(&self, dialer: &Rc<Dialer>) {
        let before = self.dialer.replace(Rc::clone(dialer));
        if !before.speaks_like(dialer) {
            self.clear();
        }
    }

    fn dialer(&self) -> Rc<Dialer> {
        Rc::clone(&self.dialer.borrow())
    }

    /// Which version of its service it counts as from now on.
    pub(crate) fn set_version(&self, version: ServiceVersion, latencies: Arc<Latencies>) {
        self.version.set(version);
        *self.latencies.borrow_mut() = latencies;
    }

    pub(crate) fn version(&self) -> ServiceVersion {
        self.version.get()
    }

    pub(crate) fn latencies(&self) -> Arc<Latencies> {
        Arc::clone(&self.latencies.borrow())
    }

    /// A request begins here.
    pub(crate) fn begin(&self) -> InFlight {
        count(&self.counters.requests);
        InFlight::start(&self.gauge)
    }

    /// It refused a connection.
    pub(crate) fn refused(&self) {
        count(&self.counters.failures);
        self.note(self.triage.refused(&self.health));
    }

    /// It answered with this status. Those of a gateway say that it cannot serve.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.counters.answered(status);
        match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => self.note(self.triage.failed(&self.health)),
            _ => self.health.borrow_mut().succeeded(),
        }
    }

    /// A request that it got came to nothing.
    pub(crate) fn failed(&self) {
        count(&self.counters.failures);
        self.note(self.triage.failed(&self.health));
    }

    fn note(&self, ejected: bool) {
        if ejected {
            count(&self.counters.ejections);
        }
    }

    /// Takes an open connection that has room for a request, if there is one.
    pub(crate) fn checkout(
        self: &Rc<Self>,
        wire: Wire,
        config: &ProxyConfig,
        now: Instant,
    ) -> Option<Checkout> {
        let link = match wire {
            Wire::Http1 => Link::Http1(self.unused(config, now)?),
            Wire::Http2 => Link::Http2(self.http2.checkout()?),
        };
        Some(self.checked_out(link, config))
    }

    fn unused(&self, config: &ProxyConfig, now: Instant) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let sender = &idle[at].connection.sender;
            if sender.is_closed() {
                idle.remove(at);
            } else if now.saturating_duration_since(idle[at].since) >= config.upstream_idle {
                // All before it are older.
                idle.drain(..=at);
                break;
            } else if sender.is_ready() {
                return Some(idle.remove(at).connection);
            }
        }
        None
    }

    /// Opens a connection, within `limit` if that is not what the service's settings say.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        wire: Wire,
        config: &ProxyConfig,
        limit: Option<Duration>,
    ) -> Result<Checkout, ConnectError> {
        let dialer = self.dialer();
        let limit = limit.unwrap_or(dialer.limit());
        let link = match wire {
            Wire::Http1 => Link::Http1(self.connect_http1(&dialer, config, limit).await?),
            Wire::Http2 => {
                let opened = self.http2.connect(&dialer, self.address, config, limit);
                Link::Http2(opened.await?)
            }
        };
        self.health.borrow_mut().connected();
        Ok(self.checked_out(link, config))
    }

    async fn connect_http1(
        &self,
        dialer: &Dialer,
        config: &ProxyConfig,
        limit: Duration,
    ) -> Result<Http1, ConnectError> {
        let opened = dialer.open(self.address, Wire::Http1, config, limit);
        let stream = opened.await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Failed(Arc::new(io::Error::other(error))))?;
        // Its end is told to the request on it; between requests it matters to no one.
        let task = tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await;
        });
        let task = task.abort_handle();
        Ok(Http1 { sender, task })
    }

    /// Takes an open, unused connection with nothing on it, if there is one.
    pub(crate) fn checkout_plain(&self, config: &ProxyConfig) -> Option<TcpStream> {
        self.plain.take(config)
    }

    /// Opens a connection with nothing on it.
    pub(crate) async fn open_plain(&self, config: &ProxyConfig) -> Result<TcpStream, ConnectError> {
        let stream = self.dialer().open_clear(self.address, config).await?;
        self.health.borrow_mut().connected();
        Ok(stream)
    }

    /// Keeps a connection for another request, if there is room.
    pub(crate) fn give_back_plain(&self, stream: TcpStream, config: &ProxyConfig) {
        self.plain.give(stream, config);
    }

    fn checked_out(self: &Rc<Self>, link: Link, config: &ProxyConfig) -> Checkout {
        Checkout {
            upstream: Rc::clone(self),
            link,
            upload: None,
            idle_max: config.upstream_idle_max,
        }
    }

    /// A limit with this end.
    fn limit(&self, end: Instant) -> Limit {
        let Some(mut limit) = self.limits.borrow_mut().pop() else {
            return Limit::new(end);
        };
        limit.set(end);
        limit
    }

    /// Keeps a limit for another request.
    fn give_back_limit(&self, limit: Limit) {
        let mut limits = self.limits.borrow_mut();
        if limits.len() < LIMITS_MAX {
            limits.push(limit);
        }
    }

    /// Closes all unused connections.
    pub(crate) fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.http2.clear();
        self.plain.clear();
    }

    /// Closes the connections that were unused for too long.
    pub(crate) fn sweep(&self, config: &ProxyConfig) {
        self.http2.sweep();
        let now = Instant::now();
        self.idle.borrow_mut().retain(|idle| {
            !idle.connection.sender.is_closed()
                && now.duration_since(idle.since) < config.upstream_idle
        });
        self.plain.sweep(now, config);
    }
}

/// A connection, or a place on one, in use by one request. Dropping it ends that use: of HTTP/1, the
/// connection.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) upstream: Rc<Upstream>,
    link: Link,
    /// That of the request which was sent.
    upload: Option<Upload>,
    idle_max: usize,
}

#[derive(Debug)]
enum Link {
    Http1(Http1),
    Http2(http2::Stream),
}

impl Checkout {
    /// Sends the request, which it `began` to do just now, and waits for the head of its answer. The wait may last for
    /// `silence_max` from when the last of the body was taken.
    pub(crate) async fn exchange(
        &mut self,
        mut request: Box<Request<UploadBody>>,
        began: Instant,
        silence_max: Duration,
    ) -> Result<Box<Response<Received>>, ExchangeError> {
        deadline::tell(&mut request, began);
        let upload = request.body().upload();
        let given_up = GivenUp::new(match &self.link {
            Link::Http1(connection) if !upload.is_empty() => Some(&connection.task),
            Link::Http1(_) | Link::Http2(_) => None,
        });
        let mut limit = self.upstream.limit(began + silence_max);
        let outcome = {
            let mut exchange = pin!(match &mut self.link {
                Link::Http1(connection) => Either::Left(over_http1(connection, request)),
                // Boxed, so that requests over HTTP/1 have no room for it.
                Link::Http2(stream) => {
                    Either::Right(Box::pin(over_http2(stream, request, upload.clone())))
                }
            });
            poll_fn(|cx| {
                if let Poll::Ready(outcome) = exchange.as_mut().poll(cx) {
                    return Poll::Ready(Some(outcome));
                }
                loop {
                    ready!(limit.poll(cx));
                    let last = upload.last().map(|last| last + silence_max);
                    match last.filter(|&later| later > limit.end()) {
                        Some(later) => limit.set(later),
                        None => return Poll::Ready(None),
                    }
                }
            })
            .await
        };
        given_up.settle();
        let sent = || upload.last().map_or(began, |last| last.max(began));
        self.upstream.give_back_limit(limit);
        match outcome {
            Some(Ok(response)) => {
                self.upstream.saw(sent(), true);
                upload.settle();
                self.upload = Some(upload);
                Ok(response)
            }
            Some(Err(Unanswered::NotSent(request, why))) => {
                if why == Untaken::Stream {
                    self.upstream.saw(sent(), false);
                }
                Err(ExchangeError::NotSent(request, why))
            }
            Some(Err(Unanswered::Sent)) => {
                self.upstream.saw(sent(), false);
                // The library may go on with the body of one that came to nothing.
                self.abort();
                Err(upload
                    .fault()
                    .map_or(ExchangeError::Broke, ExchangeError::Client))
            }
            // Nobody answers what has not come.
            None if upload.is_wanted() => Err(ExchangeError::Client(Fault::Stalled)),
            None => {
                self.upstream.saw(sent(), false);
                self.abort();
                Err(ExchangeError::Silent)
            }
        }
    }

    /// Why the client's body came to nothing, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.upload.as_ref().and_then(Upload::fault)
    }

    /// The request that was sent, as far as it has a body.
    pub(crate) fn upload(&self) -> Option<&Upload> {
        self.upload.as_ref()
    }

    /// Ends the request where it is: neither side gets more of it.
    pub(crate) fn cut(self) {
        if let Some(upload) = &self.upload {
            upload.cut();
        }
        self.abort();
    }

    /// Ends a connection that has no other request, whatever waits in it for its replica.
    fn abort(&self) {
        if let Link::Http1(connection) = &self.link {
            connection.task.abort();
        }
    }

    /// The answer is whole since `now`. The connection is kept for another request, if it is open and there is room; what
    /// is left of this one has a moment.
    pub(crate) fn answered(mut self, now: Instant) {
        if let Some(upload) = self.upload.take() {
            upload.answered(match &self.link {
                Link::Http1(connection) => Some(connection.task.clone()),
                Link::Http2(_) => None, // It has others.
            });
        }
        self.give_back(now);
    }

    /// Keeps the connection, unused since `now`, for another request, if it is open and there is room.
    pub(crate) fn give_back(self, now: Instant) {
        let Self {
            upstream,
            link,
            idle_max,
            ..
        } = self;
        let Link::Http1(connection) = link else {
            return; // The pool has its connection.
        };
        let mut idle = upstream.idle.borrow_mut();
        if !connection.sender.is_closed() && idle.len() < idle_max {
            idle.push(Idle {
                connection,
                since: now,
            });
        }
    }
}
