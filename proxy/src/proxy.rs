//! The handle of a running proxy.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use raftserve_model::{ReplicaId, ServiceId};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::config::ProxyConfig;
use crate::control::{Control, Order, PortStatus, Stop};
use crate::lack::Lack;
use crate::listener;
use crate::load::PeerLoads;
use crate::memory::MemoryBudget;
use crate::metrics::Metrics;
use crate::routes::{Listener, Routes};
use crate::session::Sessions;
use crate::tls::{Tls, TlsError};
use crate::worker::{Command, Shared, Transport, Worker};

/// How many commands may wait for a worker: one for each of the twenty service ports and some. The
/// control waits when it is full.
const COMMANDS_MAX: usize = 64;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shared port is taken or not allowed: choose another.
    #[error("cannot listen on {address}")]
    Listen {
        /// The shared port.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// The system gave no thread, or no event queue for it.
    #[error("cannot start a proxy thread")]
    Thread(#[source] io::Error),
}

/// A running data plane. Dropped without [`Self::shutdown`], it cuts what runs.
pub struct Proxy {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    shared: Arc<Shared>,
    ports: watch::Receiver<Vec<PortStatus>>,
    orders: mpsc::Sender<Order>,
}

impl Proxy {
    /// Opens the shared port and starts the workers.
    ///
    /// Replicas that refuse a connection are told to `connect_failures`, so that they can be probed
    /// at once; a report that finds it full is dropped.
    ///
    /// # Errors
    /// The shared port cannot be had, or the system gives no threads.
    pub fn start(
        config: ProxyConfig,
        routes: Arc<Routes>,
        sessions: Arc<dyn Sessions>,
        connect_failures: Option<mpsc::Sender<ReplicaId>>,
    ) -> Result<Self, StartError> {
        let count = config.worker_count();
        let listen = config.listen;
        let refused = |source| StartError::Listen {
            address: listen,
            source,
        };
        let sockets = listener::open(listen, count).map_err(refused)?;
        let address = sockets[0].local_addr().map_err(refused)?;
        let tls = config.tls.clone().map(Tls::start).transpose()?;
        let (mut tls_sockets, mut tls_address) = (Vec::new(), None);
        if let Some(listen) = config.tls.as_ref().map(|tls| tls.listen) {
            let refused = |source| StartError::Listen {
                address: listen,
                source,
            };
            tls_sockets = listener::open(listen, count).map_err(refused)?;
            tls_address = Some(tls_sockets[0].local_addr().map_err(refused)?);
        }
        let mut tls_sockets = tls_sockets.into_iter();
        let room = config.connections_max.min(Semaphore::MAX_PERMITS);
        let http2_windows = MemoryBudget::new(config.http2_windows_bytes);
        let http2_heads = MemoryBudget::new(config.http2_heads_bytes);
        let kept_bodies = MemoryBudget::new(config.kept_bodies_bytes);
        let shared = Arc::new(Shared {
            config,
            routes,
            sessions,
            loads: Arc::default(),
            metrics: Metrics::new(count),
            connect_failures,
            queues: watch::Sender::new(0),
            lack: Lack::default(),
            tls,
            room: Arc::new(Semaphore::new(room)),
            http2_windows: Arc::new(http2_windows),
            http2_heads: Arc::new(http2_heads),
            http2_heads_refused: AtomicU64::default(),
            kept_bodies: Arc::new(kept_bodies),
        });
        let (ended_sender, ended) = mpsc::channel(1);
        let mut workers = Vec::with_capacity(count);
        for (index, socket) in sockets.into_iter().enumerate() {
            let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
            let open = Command::Open {
                port: address.port(),
                socket,
                listener: Listener::Shared,
                transport: Transport::Clear,
            };
            let tls = tls_sockets.next().zip(tls_address);
            let tls = tls.map(|(socket, address)| Command::Open {
                port: address.port(),
                socket,
                listener: Listener::Shared,
                transport: Transport::Tls,
            });
            for open in [open].into_iter().chain(tls) {
                let sent = commands.try_send(open);
                sent.expect("the queue is new and its receiver is here");
            }
            let shared = Arc::clone(&shared);
            let ended = ended_sender.clone();
            let run = move || Worker::new(index, shared).run(receiver);
            spawn(format!("proxy-{index}"), run, ended)?;
            workers.push(commands);
        }
        drop(ended_sender);
        let (ports_sender, ports) = watch::channel(Vec::new());
        let (orders, receiver) = mpsc::channel(1);
        let control = Control {
            shared: Arc::clone(&shared),
            address,
            workers,
            ended,
            ports: ports_sender,
            open: BTreeMap::new(),
        };
        spawn(
            "proxy-control".to_owned(),
            move || control.run(receiver),
            (),
        )?;
        Ok(Self {
            address,
            tls_address,
            shared,
            ports,
            orders,
        })
    }

    /// The shared port, as it was opened.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The port with TLS, as it was opened.
    #[must_use]
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// The services' own ports at this peer, and which of them could not be opened.
    #[must_use]
    pub fn ports(&self) -> watch::Receiver<Vec<PortStatus>> {
        self.ports.clone()
    }

    /// The requests that this peer has in flight, by replica; replicas without any are left out.
    #[must_use]
    pub fn loads(&self) -> Vec<(ReplicaId, u32)> {
        self.shared.loads.own()
    }

    /// Where the loads of other peers are told.
    #[must_use]
    pub fn peer_loads(&self) -> Arc<PeerLoads> {
        Arc::clone(&self.shared.loads)
    }

    /// The counters, for whoever tells them while the proxy's owner keeps the proxy.
    #[must_use]
    pub fn metrics(&self) -> MetricsHandle {
        MetricsHandle(Arc::clone(&self.shared))
    }

    /// All counters in Prometheus's text format.
    #[must_use]
    pub fn render_prometheus(&self) -> String {
        self.shared.render()
    }

    /// The requests that wait for services without a ready replica, for whoever can start one.
    #[must_use]
    pub fn queues(&self) -> Queues {
        Queues(Arc::clone(&self.shared))
    }

    /// For whoever knows that [`Self::shutdown`] will be called soon, while the proxy's owner keeps the proxy.
    #[must_use]
    pub fn announcer(&self) -> Announcer {
        Announcer(self.orders.downgrade())
    }

    /// Stops without failing a request, if `grace` suffices: answers tell clients to go elsewhere
    /// while connections are still accepted for the configured linger, which began earlier if the stop
    /// was announced; then the listeners close once their queues are empty, idle connections close, and
    /// running requests finish. What still runs when `grace` ends is cut. Returns when all is done.
    pub async fn shutdown(self, grace: Duration) {
        let (stopped, done) = oneshot::channel();
        let stop = Order::Stop(Stop { grace, stopped });
        if self.orders.send(stop).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// Tells a proxy that it will be stopped soon.
#[derive(Clone, Debug)]
pub struct Announcer(mpsc::WeakSender<Order>);

impl Announcer {
    /// From now on answers tell clients to go elsewhere. All is served on, and connections are accepted, until the proxy is
    /// stopped. Cannot be taken back; nothing happens where it was announced before, or the proxy is gone.
    pub async fn announce(&self) {
        if let Some(orders) = self.0.upgrade() {
            let _ = orders.send(Order::Announce).await;
        }
    }
}

/// What waits at a proxy for services that have no ready replica.
#[derive(Clone)]
pub struct Queues(Arc<Shared>);

impl Queues {
    /// Changes whenever a service is to be woken up: when the first request of it begins to wait, not with each, and when
    /// one that was let go finds no ready replica any more and waits on.
    #[must_use]
    pub fn begun(&self) -> watch::Receiver<u64> {
        self.0.queues.subscribe()
    }

    /// How many requests wait, by service; services without any are left out.
    #[must_use]
    pub fn lengths(&self) -> Vec<(ServiceId, u64)> {
        self.0.metrics.queued()
    }
}

/// The counters of a proxy.
#[derive(Clone)]
pub struct MetricsHandle(Arc<Shared>);

impl MetricsHandle {
    /// All counters in Prometheus's text format.
    #[must_use]
    pub fn render_prometheus(&self) -> String {
        self.0.render()
    }
}

/// Starts a thread that runs one future on a runtime of its own, and waits until the runtime stands.
/// `ended` is dropped once nothing of the future or its tasks is left.
fn spawn<F: Future<Output = ()>>(
    name: String,
    make: impl FnOnce() -> F + Send + 'static,
    ended: impl Send + 'static,
) -> Result<(), StartError> {
    let (started, result) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(make());
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
        drop(ended);
    };
    let thread = thread::Builder::new().name(name).spawn(body);
    thread.map_err(StartError::Thread)?;
    let started = result
        .recv()
        .expect("the thread answers before it does anything else");
    started.map_err(StartError::Thread)
}
