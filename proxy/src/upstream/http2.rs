//! One worker's HTTP/2 connections to one replica: few, each carrying many requests.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::dial::{Dialer, Socket};
use super::{ConnectError, Wire};
use crate::body::UploadBody;
use crate::config::ProxyConfig;
use crate::connection::LocalExecutor;

/// The most requests at once on one connection, if the replica takes more. As many as a client may have on
/// one of its own; beyond it, one lost packet would hold up too many.
const STREAMS_MAX: usize = 256;

/// What one answer may have under way. As large as it takes to fill a link of 10 Gbit/s and 1.5 ms, or of
/// 100 Mbit/s and 150 ms.
const STREAM_WINDOW: u32 = 2 << 20;

/// What all answers of a connection may have under way: a client that does not read holds up to a window
/// of it, and must not stop the others.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What is buffered of one request's body towards the replica.
const SEND_BUFFER: usize = 64 << 10;

/// After how much silence, with requests running, a replica is asked for a sign of life, and how long that
/// may take.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// How many requests the replica allows at once before it has said so: no number that one would choose.
const UNTOLD: usize = 99_991;

/// How often, and how many times, a new connection is looked at for what its replica allows: first at each
/// turn of the worker, which suffices for a replica that is near. One that says nothing is taken as it is.
const YIELDS: u32 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(1);
const LOOKS_MAX: u32 = 100;

/// How long an unused connection is kept. A replica that closes it says so first (GOAWAY), and what it did
/// not act on is sent again: so unlike in HTTP/1, closing too late costs no request.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How the opening of a connection ended, once it has.
type Dialing = watch::Receiver<Option<Result<(), ConnectError>>>;

/// The HTTP/2 connections of one worker to one replica.
#[derive(Debug, Default)]
pub(super) struct Pool {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Ends when the connection that is being opened is there, or failed.
    dialing: RefCell<Option<Dialing>>,
}

#[derive(Debug)]
struct Connection {
    sender: http2::SendRequest<UploadBody>,
    streams: Cell<usize>,
    /// What the replica allows.
    streams_max: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
}

impl Connection {
    fn has_room(&self) -> bool {
        let streams = self.streams.get();
        // A replica that allows none yet still gets one, which waits until it does.
        streams < self.streams_max.get().clamp(1, STREAMS_MAX)
    }

    fn is_over(&self) -> bool {
        let stale = self.streams.get() == 0 && self.idle_since.get().elapsed() >= IDLE_MAX;
        stale || self.sender.is_closed()
    }
}

/// A request's place on a connection, held until its answer has ended.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) sender: http2::SendRequest<UploadBody>,
    connection: Rc<Connection>,
}

impl Stream {
    fn on(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self {
            sender: connection.sender.clone(),
            connection: Rc::clone(connection),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let streams = self.connection.streams.get() - 1;
        self.connection.streams.set(streams);
        if streams == 0 {
            self.connection.idle_since.set(Instant::now());
        }
    }
}

impl Pool {
    /// A place on the busiest connection that has one, so that surplus connections go idle and end.
    pub(super) fn checkout(&self) -> Option<Stream> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|each| !each.is_over());
        connections
            .iter()
            .filter(|each| each.has_room())
            .max_by_key(|each| each.streams.get())
            .map(Stream::on)
    }

    /// A place on a connection that is being opened, or is opened now. However many requests wait, only one
    /// connection is opened at a time.
    pub(super) async fn connect(
        self: &Rc<Self>,
        dialer: &Rc<Dialer>,
        address: SocketAddr,
        config: &ProxyConfig,
    ) -> Result<Stream, ConnectError> {
        loop {
            let mut dialing = self.dial(dialer, address, config);
            let outcome = match dialing.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
                Err(_) => Ok(()), // Its task was ended: look again.
            };
            outcome?;
            if let Some(stream) = self.checkout() {
                return Ok(stream);
            }
        }
    }

    /// Begins to open a connection, unless one is being opened. It belongs to all who wait for it, so it is
    /// a task of its own.
    fn dial(
        self: &Rc<Self>,
        dialer: &Rc<Dialer>,
        address: SocketAddr,
        config: &ProxyConfig,
    ) -> Dialing {
        if let Some(dialing) = &*self.dialing.borrow() {
            return dialing.clone();
        }
        let (done, dialing) = watch::channel(None);
        *self.dialing.borrow_mut() = Some(dialing.clone());
        let (pool, dialer, config) = (Rc::clone(self), Rc::clone(dialer), config.clone());
        tokio::task::spawn_local(async move {
            let opened = open(&dialer, address, &config).await;
            *pool.dialing.borrow_mut() = None;
            let outcome = opened.map(|connection| pool.connections.borrow_mut().push(connection));
            done.send_replace(Some(outcome));
        });
        dialing
    }

    /// Takes no more requests on the present connections. Those on them finish.
    pub(super) fn clear(&self) {
        self.connections.borrow_mut().clear();
    }

    pub(super) fn sweep(&self) {
        self.connections.borrow_mut().retain(|each| !each.is_over());
    }
}

async fn open(
    dialer: &Dialer,
    address: SocketAddr,
    config: &ProxyConfig,
) -> Result<Rc<Connection>, ConnectError> {
    let stream = dialer.open(address, Wire::Http2, config).await?;
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_max_send_streams(UNTOLD)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_WITHIN)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Handshake(Arc::new(error)))?;
    // A request beyond what the replica allows would wait for one before it to end, so its word is awaited.
    for look in 0..LOOKS_MAX {
        if connection.current_max_send_streams() != UNTOLD || sender.is_closed() {
            break;
        }
        match look {
            0..YIELDS => yield_now().await,
            _ => sleep(LOOK_EVERY).await,
        }
    }
    let streams_max = Rc::new(Cell::new(connection.current_max_send_streams()));
    tokio::task::spawn_local(drive(connection, Rc::clone(&streams_max)));
    Ok(Rc::new(Connection {
        sender,
        streams: Cell::new(0),
        streams_max,
        idle_since: Cell::new(Instant::now()),
    }))
}

/// Runs a connection to its end, which is told to the requests on it.
async fn drive(
    connection: http2::Connection<TokioIo<Socket>, UploadBody, LocalExecutor>,
    streams_max: Rc<Cell<usize>>,
) {
    let mut connection = pin!(connection);
    let _ = poll_fn(|cx| {
        let done = connection.as_mut().poll(cx);
        streams_max.set(connection.current_max_send_streams());
        done
    })
    .await;
}
