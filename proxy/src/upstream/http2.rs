//! One worker's HTTP/2 connections to one replica: few, each carrying many requests.
//!
//! `h2` is driven directly: a request's own task hands its head and body over and is woken by its answer, with no channel
//! and no further task between.

mod call;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
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

/// How many connections are opened at once to one replica: few enough that it is not overrun, and enough that a burst
/// finds its places within a few round trips where each has few.
const DIALS_MAX: usize = 16;

/// How the opening of a connection ended, once it has.
type Dialed = Option<Result<(), ConnectError>>;

/// A connection that is being opened. Whoever waits for it has a receiver.
type Dialing = watch::Sender<Dialed>;

/// The HTTP/2 connections of one worker to one replica.
#[derive(Debug, Default)]
pub(super) struct Pool {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// The connections that are being opened. Each is its task's.
    dials: RefCell<Vec<Weak<Dialing>>>,
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
    /// How many requests it may have at once. A replica that allows none yet still gets one, which waits until it does.
    fn places(&self) -> usize {
        self.state.streams_max.get().clamp(1, STREAMS_MAX as usize)
    }

    fn has_room(&self) -> bool {
        self.state.streams.get() < self.places()
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

    /// Whether its connection takes no more requests.
    pub(super) fn is_closing(&self) -> bool {
        self.connection.is_closing()
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

    /// A place on a connection that is being opened, or is opened now: as many at once as those that wait need, up to
    /// [`DIALS_MAX`], each for as long as the service allows at least. Each waits for one as long as its own `limit`: one
    /// that another opened with a shorter limit is then opened anew.
    pub(super) async fn connect(
        self: &Rc<Self>,
        dialer: &Rc<Dialer>,
        address: SocketAddr,
        config: &ProxyConfig,
        limit: Duration,
    ) -> Result<Stream, ConnectError> {
        // What is said once it is connected takes longer than the limit is for.
        let end = Instant::now() + limit + LOOK_EVERY * LOOKS_MAX;
        let mut opened = false;
        loop {
            let mut dialing = self.dial(dialer, address, config, limit);
            let dialed = timeout_at(end, dialing.wait_for(Option::is_some)).await;
            let outcome = match dialed {
                Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
                Ok(Err(_)) => continue, // Its task was ended: look again.
                Err(_) if opened => Err(ConnectError::Full(limit)),
                Err(_) => Err(ConnectError::Timeout(limit)),
            };
            match outcome {
                Err(ConnectError::Timeout(shorter)) if shorter < limit => continue,
                outcome => outcome?,
            }
            opened = true;
            if let Some(stream) = self.checkout() {
                return Ok(stream);
            }
        }
    }

    /// Begins to open a connection, unless one is being opened that may have room, or as many are as may. It belongs to
    /// all who wait for it, so it is a task of its own.
    fn dial(
        self: &Rc<Self>,
        dialer: &Rc<Dialer>,
        address: SocketAddr,
        config: &ProxyConfig,
        limit: Duration,
    ) -> watch::Receiver<Dialed> {
        let mut dials = self.dials.borrow_mut();
        dials.retain(|dial| dial.strong_count() > 0);
        // As many as the last connection has.
        let connections = self.connections.borrow();
        let places = connections
            .last()
            .map_or(STREAMS_MAX as usize, |each| each.places());
        let begun = dials.iter().filter_map(Weak::upgrade);
        if let Some(dial) = begun.min_by_key(|dial| dial.receiver_count())
            && (dials.len() >= DIALS_MAX || dial.receiver_count() < places)
        {
            return dial.subscribe();
        }
        let done = Rc::new(Dialing::new(None));
        let dialing = done.subscribe();
        dials.push(Rc::downgrade(&done));
        let (pool, dialer, config) = (Rc::clone(self), Rc::clone(dialer), config.clone());
        tokio::task::spawn_local(async move {
            let opened = open(&dialer, address, &config, limit.max(dialer.limit())).await;
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
        Some(error) if is_leave(&error) => Err(ConnectError::Leaves),
        Some(error) => Err(ConnectError::Handshake(Arc::new(error))),
        None => Ok(Rc::new(connection)),
    }
}

/// Whether a replica leaves its connection, and nothing is wrong with that.
pub(super) fn is_leave(error: &h2::Error) -> bool {
    error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::future::join_all;
    use raftserve_model::spec::UpstreamSettings;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    /// How far the replica is: so long after a connection was accepted it says how many requests it takes.
    const FAR: Duration = Duration::from_millis(90);

    /// A replica that takes so many requests at once on each connection.
    async fn far(streams_max: u8) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    sleep(FAR).await;
                    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams_max];
                    stream.write_all(&settings).await.expect("the proxy reads");
                    std::future::pending::<()>().await;
                });
            }
        });
        address
    }

    /// What comes of so many that want a place at once, and keep it.
    async fn burst(
        streams_max: u8,
        count: usize,
        limit: Duration,
    ) -> Vec<Result<Stream, ConnectError>> {
        let wait = async {
            let address = far(streams_max).await;
            let pool = Rc::<Pool>::default();
            let settings = UpstreamSettings {
                connect_timeout: limit,
                ..UpstreamSettings::default()
            };
            let dialer = Rc::new(Dialer::new(&settings, Duration::from_secs(10)));
            let config = ProxyConfig::default();
            let all = (0..count).map(|_| pool.connect(&dialer, address, &config, limit));
            join_all(all).await
        };
        LocalSet::new().run_until(wait).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_to_a_far_replica_finds_its_places_in_time() {
        let places = burst(10, 300, Duration::from_secs(1)).await;
        assert!(places.iter().all(Result::is_ok), "{:?}", places.last());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_while_connections_are_opened_holds_it_against_nobody() {
        let places = burst(1, 100, Duration::from_millis(100)).await;
        let served = places.iter().filter(|place| place.is_ok()).count();
        assert!((DIALS_MAX..100).contains(&served), "{served}");
        for failed in places.into_iter().filter_map(Result::err) {
            assert!(matches!(failed, ConnectError::Full(_)), "{failed}");
        }
    }
}
