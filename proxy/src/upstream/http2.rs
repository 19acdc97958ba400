//! One worker's HTTP/2 connections to one replica: few, each carrying many requests.
//!
//! `h2` is driven directly: a request's own task hands its head and body over and is woken by its answer, with no channel
//! and no further task between.

mod call;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{Builder, SendRequest};
use http::Request;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::dial::Dialer;
use super::socket::Socket;
use super::{ConnectError, Wire};
use crate::body::{Part, UploadBody};
use crate::config::ProxyConfig;

pub(super) use call::Call;

/// The most requests at once on one connection, if the replica takes more. As many as a client may have on
/// one of its own; beyond it, one lost packet would hold up too many.
const STREAMS_MAX: u32 = 256;

/// What one answer may have under way, and what is held of it at most while its client does not read. As large as it
/// takes to fill a link of 10 Gbit/s and 0.4 ms, or of 100 Mbit/s and 40 ms.
const STREAM_WINDOW: u32 = 512 << 10;

/// What all answers of a connection may have under way: a client that does not read holds up to a window of its stream,
/// for minutes, and however many do, the others must go on. So it is never what stops one.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;

/// What is buffered of one request's body towards the replica.
const SEND_BUFFER: usize = 64 << 10;

/// The largest head of an answer, as a list of fields: as large as one of a request.
const HEAD_BYTES_MAX: u32 = 64 << 10;

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
    /// Each request is sent by a clone: a handle that has a stream waiting for its turn takes no other, and asking it
    /// when it will would take the stream's place as who is woken. The connection ends with this one.
    sender: RefCell<SendRequest<Part>>,
    state: Rc<State>,
    idle_since: Cell<Instant>,
}

/// What a connection's task and its streams tell each other.
#[derive(Debug)]
struct State {
    streams: Cell<usize>,
    /// What the replica allows.
    streams_max: Cell<usize>,
    ended: Cell<bool>,
}

impl Connection {
    fn has_room(&self) -> bool {
        let streams = self.state.streams.get();
        // A replica that allows none yet still gets one, which waits until it does.
        streams < self.state.streams_max.get().clamp(1, STREAMS_MAX as usize)
    }

    fn is_over(&self) -> bool {
        self.state.ended.get()
            || self.state.streams.get() == 0 && self.idle_since.get().elapsed() >= IDLE_MAX
    }

    /// Whether it takes no more requests, although those on it may go on: the replica goes away.
    fn is_closing(&self) -> bool {
        self.closing().is_some()
    }

    /// Why it takes no more requests, if it does not.
    fn closing(&self) -> Option<h2::Error> {
        let mut nobody = Context::from_waker(Waker::noop());
        match self.sender.borrow_mut().poll_ready(&mut nobody) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        }
    }
}

/// A request's place on a connection, held until its answer has ended.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Rc<Connection>,
}

impl Stream {
    fn on(connection: &Rc<Connection>) -> Self {
        let streams = &connection.state.streams;
        streams.set(streams.get() + 1);
        Self {
            connection: Rc::clone(connection),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The connection takes no more. Nothing was sent, and here is the body.
    pub(super) fn send(&self, head: Request<()>, body: UploadBody) -> Result<Call, UploadBody> {
        let sender = self.connection.sender.borrow().clone();
        Call::begin(sender, head, body)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let streams = self.connection.state.streams.get() - 1;
        self.connection.state.streams.set(streams);
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
        loop {
            let (at, busiest) = connections
                .iter()
                .enumerate()
                .filter(|(_, each)| each.has_room())
                .max_by_key(|(_, each)| each.state.streams.get())?;
            if !busiest.is_closing() {
                return Some(Stream::on(busiest));
            }
            connections.remove(at);
        }
    }

    /// A place on a connection that is being opened, or is opened now. However many requests wait, only one
    /// connection is opened at a time, for as long as the service allows at least. Each waits for it as long as its own
    /// `limit`: one that another opened with a shorter limit is then opened anew.
    pub(super) async fn connect(
        self: &Rc<Self>,
        dialer: &Rc<Dialer>,
        address: SocketAddr,
        config: &ProxyConfig,
        limit: Duration,
    ) -> Result<Stream, ConnectError> {
        // What is said once it is connected takes longer than the limit is for.
        let end = Instant::now() + limit + LOOK_EVERY * LOOKS_MAX;
        loop {
            let mut dialing = self.dial(dialer, address, config, limit);
            let dialed = timeout_at(end, dialing.wait_for(Option::is_some)).await;
            let outcome = match dialed {
                Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
                Ok(Err(_)) => Ok(()), // Its task was ended: look again.
                Err(_) => Err(ConnectError::Timeout(limit)),
            };
            match outcome {
                Err(ConnectError::Timeout(shorter)) if shorter < limit => continue,
                outcome => outcome?,
            }
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
        limit: Duration,
    ) -> Dialing {
        if let Some(dialing) = &*self.dialing.borrow() {
            return dialing.clone();
        }
        let (done, dialing) = watch::channel(None);
        *self.dialing.borrow_mut() = Some(dialing.clone());
        let (pool, dialer, config) = (Rc::clone(self), Rc::clone(dialer), config.clone());
        tokio::task::spawn_local(async move {
            let opened = open(&dialer, address, &config, limit.max(dialer.limit())).await;
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
    limit: Duration,
) -> Result<Rc<Connection>, ConnectError> {
    let stream = dialer.open(address, Wire::Http2, config, limit).await?;
    let (sender, connection) = builder()
        .handshake(stream)
        .await
        .map_err(|error| ConnectError::Handshake(Arc::new(error)))?;
    let state = Rc::new(State {
        streams: Cell::new(0),
        streams_max: Cell::new(UNTOLD),
        ended: Cell::new(false),
    });
    tokio::task::spawn_local(drive(connection, Rc::clone(&state)));
    // A request beyond what the replica allows would wait for one before it to end, so its word is awaited.
    for look in 0..LOOKS_MAX {
        if state.streams_max.get() != UNTOLD || state.ended.get() {
            break;
        }
        match look {
            0..YIELDS => yield_now().await,
            _ => sleep(LOOK_EVERY).await,
        }
    }
    let connection = Connection {
        sender: RefCell::new(sender),
        state,
        idle_since: Cell::new(Instant::now()),
    };
    // Whoever waits for a connection would open one after the other at a replica that goes away each time.
    match connection.closing() {
        Some(error) => Err(ConnectError::Handshake(Arc::new(error))),
        None => Ok(Rc::new(connection)),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(UNTOLD)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Runs a connection to its end, which is told to the requests on it.
async fn drive(connection: h2::client::Connection<Socket, Part>, state: Rc<State>) {
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        let done = connection.as_mut().poll(cx);
        state
            .streams_max
            .set(connection.max_concurrent_send_streams());
        done.map(drop)
    })
    .await;
    state.ended.set(true);
}
