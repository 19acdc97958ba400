//! A worker: a thread with a runtime, listeners and connections of its own. It shares with the others
//! only what is atomic.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderValue;
use raftserve_model::ReplicaId;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::answer::Refusal;
use crate::body::Bodies;
use crate::config::{Http1Path, ProxyConfig};
use crate::connection::{self, Client};
use crate::drain::{Drain, Phase};
use crate::fast;
use crate::lack::Lack;
use crate::lifetime::Lifetime;
use crate::listener;
use crate::load::PeerLoads;
use crate::memory::{Allotment, MemoryBudget};
use crate::metrics::{self, Metrics, count, count_shared};
use crate::queue;
use crate::routes::{Listener, Routes};
use crate::session::Sessions;
use crate::tls::Tls;
use crate::tracer::Tracer;
use crate::upstream::{ConnectError, Upstream};
use crate::view::{Registries, ServiceView, View};

/// How long a listener rests after a failed accept. It fails when no more files may be opened, and
/// would fail again at once.
const ACCEPT_REST: Duration = Duration::from_millis(20);

/// How often unused connections to replicas are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) routes: Arc<Routes>,
    pub(crate) sessions: Arc<dyn Sessions>,
    pub(crate) loads: Arc<PeerLoads>,
    pub(crate) metrics: Metrics,
    pub(crate) connect_failures: Option<mpsc::Sender<ReplicaId>>,
    /// Changes whenever a service's first request begins to wait for a replica.
    pub(crate) queues: watch::Sender<u64>,
    pub(crate) lack: Lack,
    pub(crate) tls: Option<Tls>,
    /// One permit for each client connection, as long as its socket is open. Whoever waits for one is served in turn, on
    /// whichever worker it is.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) http2_windows: Arc<MemoryBudget>,
    pub(crate) http2_heads: Arc<MemoryBudget>,
    /// How many requests were refused since there was no room for their heads.
    pub(crate) http2_heads_refused: AtomicU64,
    pub(crate) kept_bodies: Arc<MemoryBudget>,
}

impl Shared {
    /// All counters in Prometheus's text format.
    pub(crate) fn render(&self) -> String {
        let mut text = self.metrics.render(&self.loads);
        let log = self.config.access_log.as_ref();
        let tracer = self.config.tracer.as_ref();
        for (name, help, dropped) in [
            (
                "raftserve_proxy_access_log_dropped_total",
                "Requests that the access log could not tell.",
                log.map(AccessLog::dropped),
            ),
            (
                "raftserve_proxy_traces_dropped_total",
                "Requests whose spans could not be exported.",
                tracer.map(Tracer::dropped),
            ),
            (
                "raftserve_proxy_http2_heads_refused_total",
                "Requests over HTTP/2 that were refused since there was no room for their heads.",
                Some(self.http2_heads_refused.load(Ordering::Relaxed)),
            ),
        ] {
            if let Some(dropped) = dropped {
                metrics::family(&mut text, name, "counter", help);
                metrics::sample(&mut text, name, "", dropped);
            }
        }
        for (name, help, value) in self.bounded() {
            metrics::family(&mut text, name, "gauge", help);
            metrics::sample(&mut text, name, "", value);
        }
        if let Some(tls) = &self.tls {
            text.push_str(&tls.render());
        }
        text
    }

    /// What clients have of that of which the whole peer has only so much, and how much that is.
    fn bounded(&self) -> [(&'static str, &'static str, u64); 8] {
        let places = self.config.connections_max.min(Semaphore::MAX_PERMITS);
        let taken = places - self.room.available_permits().min(places);
        let bytes = |budget: &MemoryBudget| budget.bytes() - budget.left();
        [
            (
                "raftserve_proxy_open_connections",
                "Client connections that are open.",
                taken as u64,
            ),
            (
                "raftserve_proxy_open_connections_max",
                "How many client connections may be open at once.",
                places as u64,
            ),
            (
                "raftserve_proxy_http2_windows_bytes",
                "What HTTP/2 clients may send or have sent of bodies that nobody has taken, beyond the protocol's first 64 KiB.",
                bytes(&self.http2_windows),
            ),
            (
                "raftserve_proxy_http2_windows_max_bytes",
                "The most of this that all clients together are given.",
                self.http2_windows.bytes(),
            ),
            (
                "raftserve_proxy_http2_heads_bytes",
                "Heads of requests over HTTP/2 beyond the first 2 KiB of each.",
                bytes(&self.http2_heads),
            ),
            (
                "raftserve_proxy_http2_heads_max_bytes",
                "The most of this; a request whose head is beyond it is refused, and may be sent again.",
                self.http2_heads.bytes(),
            ),
            (
                "raftserve_proxy_kept_bodies_bytes",
                "Bodies of requests kept to be sent again.",
                bytes(&self.kept_bodies),
            ),
            (
                "raftserve_proxy_kept_bodies_max_bytes",
                "The most of this; a body beyond it is sent once.",
                self.kept_bodies.bytes(),
            ),
        ]
    }
}

/// How a port's clients are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Clear,
    Tls,
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept from this socket.
    Open {
        port: u16,
        socket: std::net::TcpListener,
        listener: Listener,
        transport: Transport,
    },
    /// Take what its queue holds and what is under way to it, and close it.
    Close {
        port: u16,
        closed: oneshot::Sender<()>,
    },
    /// Tell clients to go elsewhere.
    Drain,
    /// Close all listeners, finish what runs, and end; at this time at the latest.
    Finish { by: Instant },
}

/// One worker's state, never shared with another thread.
pub(crate) struct Worker {
    index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) drain: Rc<Drain>,
    pub(crate) buffers: Rc<fast::Buffers>,
    pub(crate) date: fast::Date,
    pub(crate) bodies: Bodies,
    view: RefCell<Rc<View>>,
    tasks: TaskTracker,
}

struct Open {
    port: u16,
    close: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Worker {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            index,
            bodies: Bodies {
                kept: Allotment::new(Arc::clone(&shared.kept_bodies)),
                bulk: Rc::default(),
            },
            shared,
            drain: Rc::default(),
            buffers: Rc::default(),
            date: fast::Date::default(),
            view: RefCell::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// The view of the present routes. Deriving it from a new table is the only part that costs more
    /// than a comparison.
    pub(crate) fn view(&self) -> Rc<View> {
        let table = self.shared.routes.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.table, &table) {
            let registries = Registries {
                loads: &self.shared.loads,
                metrics: &self.shared.metrics,
                worker: self.index,
            };
            *view = Rc::new(view.next(Arc::clone(&table), &registries));
        }
        Rc::clone(&view)
    }

    /// Lets the requests go, group by group, whose services have a ready replica again.
    fn move_queues(self: &Rc<Self>, view: &View) {
        for id in view.to_move() {
            let worker = Rc::clone(self);
            tokio::task::spawn_local(async move {
                // The view of this moment: the service, and who is ready, may change between groups.
                while let Some(service) = worker.view().service(id).cloned() {
                    let ready = service.ready_count();
                    if ready == 0 || !service.queue.call_group(ready) {
                        service.queue.stands();
                        break;
                    }
                    sleep(queue::GROUP_EVERY).await;
                }
            });
        }
    }

    /// Runs something that must end before the worker does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(self.tasks.track_future(task));
    }

    /// Notes that a replica refused a connection, and tells whoever wants to probe it. If they are
    /// behind, they know enough already.
    pub(crate) fn connect_failed(&self, service: &ServiceView, upstream: &Upstream) {
        count(&service.counters.connect_failures);
        upstream.refused();
        if let Some(failures) = &self.shared.connect_failures {
            let _ = failures.try_send(upstream.replica);
        }
    }

    /// Notes that no connection to a replica was had, against the replica if it may be its fault. What to answer if
    /// there is no other.
    pub(crate) fn unconnected(
        &self,
        service: &ServiceView,
        upstream: &Upstream,
        error: &ConnectError,
    ) -> Refusal {
        let why = match error {
            ConnectError::Local(_) => {
                count(&service.counters.connects_lacking);
                self.shared.lack.met(upstream.replica, error);
                return Refusal::Exhausted;
            }
            // A rule's own patience says nothing of the replica: others give it more time.
            ConnectError::Timeout(limit)
                if *limit < service.route.traffic.upstream.connect_timeout =>
            {
                count(&service.counters.connect_failures);
                return Refusal::ConnectTimeout;
            }
            // Whoever has the places was connected.
            ConnectError::Full(_) => return Refusal::Full,
            ConnectError::Leaves => {
                upstream.failed();
                return Refusal::Refused;
            }
            ConnectError::Timeout(_) => Refusal::ConnectTimeout,
            ConnectError::Failed(_) => Refusal::Unreachable,
            ConnectError::Handshake(_) => Refusal::NoHttp2,
        };
        self.connect_failed(service, upstream);
        why
    }

    /// Does what it is told until it has finished. A sender that is gone means: finish at once.
    pub(crate) async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        tokio::task::spawn_local(Rc::clone(&self.bodies.bulk).run());
        let mut open: Vec<Open> = Vec::new();
        let mut published = self.shared.routes.published();
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let by = loop {
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                Ok(()) = published.changed() => {
                    // Lets go of replicas that left, even without a request.
                    self.move_queues(&self.view());
                    continue;
                }
                _ = sweep.tick() => {
                    self.view().sweep(&self.shared.config);
                    continue;
                }
            };
            match command {
                Some(Command::Open {
                    port,
                    socket,
                    listener,
                    transport,
                }) => {
                    open.extend(self.open(port, socket, (listener, transport)));
                }
                Some(Command::Close { port, closed }) => {
                    let at = open.iter().position(|open| open.port == port);
                    let open = at.map(|at| open.swap_remove(at));
                    self.spawn(async move {
                        if let Some(open) = open {
                            open.close(Instant::now() + listener::HANDSHAKE_WITHIN)
                                .await;
                        }
                        let _ = closed.send(());
                    });
                }
                Some(Command::Drain) => self.drain.enter(Phase::Draining),
                Some(Command::Finish { by }) => break by,
                None => break Instant::now(),
            }
        };
        let close_by = by.min(Instant::now() + listener::HANDSHAKE_WITHIN);
        join_all(open.into_iter().map(|open| open.close(close_by))).await;
        self.drain.enter(Phase::Draining);
        self.drain.enter(Phase::Closing);
        self.tasks.close();
        let idle_until = by.min(Instant::now() + self.shared.config.idle_grace);
        if timeout_at(idle_until, self.tasks.wait()).await.is_err() {
            self.drain.enter(Phase::Ending);
            let _ = timeout_at(by, self.tasks.wait()).await;
        }
    }

    fn open(
        self: &Rc<Self>,
        port: u16,
        socket: std::net::TcpListener,
        kind: (Listener, Transport),
    ) -> Option<Open> {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(port, %error, "a worker cannot listen");
                return None;
            }
        };
        let (close, closing) = oneshot::channel();
        let task = Rc::clone(self).accept(socket, kind, closing);
        let task = tokio::task::spawn_local(task);
        Some(Open { port, close, task })
    }

    async fn accept(
        self: Rc<Self>,
        socket: TcpListener,
        kind: (Listener, Transport),
        closing: oneshot::Receiver<Instant>,
    ) {
        let by = tokio::select! {
            biased;
            by = closing => by.unwrap_or_else(|_| Instant::now()),
            never = self.accept_all(&socket, kind) => match never {},
        };
        let accept = async |socket: &TcpListener| self.accept_all(socket, kind).await;
        for (stream, peer) in listener::close(socket, by, accept).await {
            let nonblocking = stream.set_nonblocking(true);
            if let Ok(stream) = nonblocking.and_then(|()| TcpStream::from_std(stream)) {
                // Without room it would be reset, and there are no more of them than the queue holds.
                let permit = Arc::clone(&self.shared.room).try_acquire_owned().ok();
                self.serve(stream, peer, kind, permit);
            }
        }
    }

    async fn accept_all(
        self: &Rc<Self>,
        socket: &TcpListener,
        kind: (Listener, Transport),
    ) -> Infallible {
        let mut fails = false;
        loop {
            let accepted = self.accept_one(socket, kind).await;
            let failed_before = std::mem::replace(&mut fails, accepted.is_err());
            if let Err(error) = accepted {
                if !failed_before {
                    tracing::warn!(%error, "cannot accept connections; this is not told again until one is accepted");
                }
                sleep(ACCEPT_REST).await;
            }
        }
    }

    /// Accepts a connection once there is one, and room for it.
    async fn accept_one(
        self: &Rc<Self>,
        socket: &TcpListener,
        kind: (Listener, Transport),
    ) -> io::Result<()> {
        loop {
            let room = Arc::clone(&self.shared.room);
            let permit = room.acquire_owned().await.expect("it is never closed");
            let accepted = poll_fn(|cx| Poll::Ready(socket.poll_accept(cx))).await;
            if let Poll::Ready(accepted) = accepted {
                let (stream, peer) = accepted?;
                self.serve(stream, peer, kind, Some(permit));
                return Ok(());
            }
            // A port that nobody connects to takes no room: it asks for some again when it is woken by a connection.
            drop(permit);
            woken().await;
        }
    }

    fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        (listener, transport): (Listener, Transport),
        permit: Option<OwnedSemaphorePermit>,
    ) {
        count_shared(&self.shared.metrics.connections);
        if tune(&stream, &self.shared.config).is_err() {
            return; // It was reset already.
        }
        let address = HeaderValue::try_from(peer.ip().to_canonical().to_string());
        let client = Client {
            address: address.expect("an address is made of visible characters"),
            listener,
            proto: match transport {
                Transport::Clear => "http",
                Transport::Tls => "https",
            },
            certificate: None,
            agreed_on_http2: false,
            turns: Arc::default(),
            unsent: RefCell::default(),
            answer_end: Cell::default(),
            lifetime: Lifetime::begin(Instant::now(), &self.shared.config, Lifetime::draw()),
            _permit: permit,
        };
        let worker = Rc::clone(self);
        let head_by = Instant::now() + self.shared.config.header_timeout;
        if transport == Transport::Tls {
            return self.spawn(connection::serve_tls(worker, stream, client, head_by));
        }
        // Each has a task of its own size.
        match self.shared.config.http1_path {
            Http1Path::Fast => self.spawn(fast::serve(worker, stream, client)),
            Http1Path::Hyper => self.spawn(connection::serve(worker, stream, client, head_by)),
        }
    }
}

/// Awaits whatever this task was last registered with.
async fn woken() {
    let mut slept = false;
    poll_fn(|_| match std::mem::replace(&mut slept, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    })
    .await;
}

impl Open {
    /// Takes what its queue holds and what is under way to it, until it is `by` at the latest, and closes it.
    async fn close(self, by: Instant) {
        let _ = self.close.send(by);
        let _ = self.task.await;
    }
}

fn tune(stream: &TcpStream, config: &ProxyConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(config.client_user_timeout))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(config.client_user_timeout))
}
