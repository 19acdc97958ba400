//! One worker's connections to one replica.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use raftserve_model::ReplicaId;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::UploadBody;
use crate::config::ProxyConfig;
use crate::load::Gauge;

/// How long a replica that refused a connection is picked only if there is no other. Long enough for
/// a probe to find it dead, short enough that a replica which came back is not missed.
const SUSPECT_FOR: Duration = Duration::from_secs(1);

/// How long an unused TCP connection stays unprobed: a tunnel to a dead host is found within minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Why no connection was had. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Failed(#[source] io::Error),
    #[error("cannot begin HTTP on the connection")]
    Handshake(#[source] hyper::Error),
}

/// How an exchange failed.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// Nothing of the request was sent: here it is again.
    NotSent(Box<Request<UploadBody>>),
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
    /// The same, of connections without a library on them.
    plain: RefCell<Vec<Plain>>,
    suspect_until: Cell<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<UploadBody>,
    since: Instant,
}

#[derive(Debug)]
struct Plain {
    stream: TcpStream,
    since: Instant,
}

impl Plain {
    /// Whether nothing has come on it, the end included. Costs no system call, as long as nothing has.
    fn is_quiet(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.stream.poll_read_ready(&mut cx).is_pending()
            || matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Upstream {
    pub(crate) fn new(replica: ReplicaId, address: SocketAddr, gauge: Arc<Gauge>) -> Self {
        Self {
            replica,
            address,
            gauge,
            idle: RefCell::default(),
            plain: RefCell::default(),
            suspect_until: Cell::new(None),
        }
    }

    /// Whether it refused a connection of this worker lately.
    pub(crate) fn is_suspect(&self) -> bool {
        match self.suspect_until.get() {
            None => false,
            Some(until) if Instant::now() < until => true,
            Some(_) => {
                self.suspect_until.set(None);
                false
            }
        }
    }

    pub(crate) fn suspect(&self) {
        self.suspect_until.set(Some(Instant::now() + SUSPECT_FOR));
    }

    /// Takes an open, unused connection, if there is one.
    pub(crate) fn checkout(self: &Rc<Self>, config: &ProxyConfig) -> Option<Checkout> {
        let mut idle = self.idle.borrow_mut();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let sender = &idle[at].sender;
            if sender.is_closed() {
                idle.remove(at);
            } else if idle[at].since.elapsed() >= config.upstream_idle {
                // All before it are older.
                idle.drain(..=at);
                break;
            } else if sender.is_ready() {
                let sender = idle.remove(at).sender;
                return Some(self.checked_out(sender, config));
            }
        }
        None
    }

    /// Opens a connection.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        config: &ProxyConfig,
    ) -> Result<Checkout, ConnectError> {
        let stream = self.open(config).await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Handshake)?;
        // Its end is told to the request on it; between requests it matters to no one.
        tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(self.checked_out(sender, config))
    }

    /// Opens a connection with nothing on it.
    pub(crate) async fn open(&self, config: &ProxyConfig) -> Result<TcpStream, ConnectError> {
        let limit = config.connect_timeout;
        let stream = timeout(limit, TcpStream::connect(self.address))
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
            .and_then(|stream| self.tune(stream, config))
            .map_err(ConnectError::Failed)?;
        self.suspect_until.set(None);
        Ok(stream)
    }

    /// Takes an open, unused connection without a library on it, if there is one.
    pub(crate) fn checkout_plain(&self, config: &ProxyConfig) -> Option<TcpStream> {
        let mut plain = self.plain.borrow_mut();
        while let Some(last) = plain.pop() {
            if last.since.elapsed() >= config.upstream_idle {
                plain.clear(); // All before it are older.
            } else if last.is_quiet() {
                return Some(last.stream);
            }
        }
        None
    }

    /// Keeps a connection for another request, if there is room.
    pub(crate) fn give_back_plain(&self, stream: TcpStream, config: &ProxyConfig) {
        let mut plain = self.plain.borrow_mut();
        if plain.len() < config.upstream_idle_max {
            let since = Instant::now();
            plain.push(Plain { stream, since });
        }
    }

    fn tune(&self, stream: TcpStream, config: &ProxyConfig) -> io::Result<TcpStream> {
        if self.address.ip().is_loopback() && stream.local_addr()? == self.address {
            // With no listener there, TCP may connect a socket to itself (RFC 9293, 3.5, figure 7).
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(config.tcp_user_timeout))?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
        Ok(stream)
    }

    fn checked_out(
        self: &Rc<Self>,
        sender: http1::SendRequest<UploadBody>,
        config: &ProxyConfig,
    ) -> Checkout {
        Checkout {
            upstream: Rc::clone(self),
            sender,
            idle_max: config.upstream_idle_max,
        }
    }

    /// Closes all unused connections.
    pub(crate) fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.plain.borrow_mut().clear();
    }

    /// Closes the connections that were unused for too long.
    pub(crate) fn sweep(&self, config: &ProxyConfig) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|idle| {
            !idle.sender.is_closed() && now.duration_since(idle.since) < config.upstream_idle
        });
        self.plain.borrow_mut().retain(|plain| {
            now.duration_since(plain.since) < config.upstream_idle && plain.is_quiet()
        });
    }
}

/// A connection in use by one request. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) upstream: Rc<Upstream>,
    sender: http1::SendRequest<UploadBody>,
    idle_max: usize,
}

impl Checkout {
    /// Sends the request and waits for the head of its answer. The wait may last for `silence_max`
    /// from when the last of the body was taken.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<UploadBody>,
        silence_max: Duration,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let progress = request.body().progress();
        let mut exchange = std::pin::pin!(self.sender.try_send_request(request));
        let mut end = Instant::now() + silence_max;
        loop {
            match timeout_at(end, &mut exchange).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(mut error)) => {
                    return Err(match error.take_message() {
                        Some(request) => ExchangeError::NotSent(Box::new(request)),
                        None => ExchangeError::Broke,
                    });
                }
                Err(_) => {
                    let last = progress
                        .as_ref()
                        .map(|progress| progress.last() + silence_max);
                    match last.filter(|&later| later > end) {
                        Some(later) => end = later,
                        None => return Err(ExchangeError::Silent),
                    }
                }
            }
        }
    }

    /// Keeps the connection for another request, if it is open and there is room.
    pub(crate) fn give_back(self) {
        let Self {
            upstream,
            sender,
            idle_max,
        } = self;
        let mut idle = upstream.idle.borrow_mut();
        if !sender.is_closed() && idle.len() < idle_max {
            let since = Instant::now();
            idle.push(Idle { sender, since });
        }
    }
}
