//! The proxy's own control: opens and closes the services' ports as the routes change, forgets what is
//! stale, and leads the workers to their end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use raftserve_model::ServiceId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::listener;
use crate::routes::{Listener, RouteTable};
use crate::worker::{Command, Shared, Transport};

/// How often peers' reports are looked at for their age: a tenth of their time to live.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

/// How often a port that was taken is tried again, unused counters are forgotten, and certificates are looked at.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Whether a service's own port is open here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It accepts.
    Open,
    /// It could not be opened, and is tried again each second.
    Refused {
        /// What the system said.
        reason: String,
    },
}

/// One service's own port at this peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// The service.
    pub service: ServiceId,
    /// Its port.
    pub port: u16,
    /// Whether it is open.
    pub state: PortState,
}

/// What the control is told.
pub(crate) enum Order {
    /// Clients are to learn that this proxy stops soon.
    Announce,
    Stop(Stop),
}

/// Stop within `grace`, and say so when done.
pub(crate) struct Stop {
    pub(crate) grace: Duration,
    pub(crate) stopped: oneshot::Sender<()>,
}

/// The control of one proxy; its `run` is a thread's whole life.
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    /// The shared port, with 0 resolved.
    pub(crate) address: SocketAddr,
    pub(crate) workers: Vec<mpsc::Sender<Command>>,
    /// Closes once each worker has ended.
    pub(crate) ended: mpsc::Receiver<()>,
    pub(crate) ports: watch::Sender<Vec<PortStatus>>,
    /// Which service each open port serves.
    pub(crate) open: BTreeMap<u16, ServiceId>,
}

impl Control {
    /// Runs until it is told to stop, or its teller is gone.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut announced = None;
        let mut published = self.shared.routes.published();
        let mut expire = interval(EXPIRE_EVERY);
        let mut retry = interval(RETRY_EVERY);
        expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Announce) => {
                        announced.get_or_insert_with(tokio::time::Instant::now);
                        self.tell_all(|| Command::Drain).await;
                    }
                    Some(Order::Stop(stop)) => break Some(stop),
                    None => break None,
                },
                Ok(()) = published.changed() => self.reconcile().await,
                _ = expire.tick() => self.shared.loads.expire(Instant::now()),
                _ = retry.tick() => {
                    self.reconcile().await;
                    self.shared.loads.prune();
                    self.shared.metrics.prune();
                    if let Some(tls) = &self.shared.tls {
                        tls.refresh();
                    }
                }
            }
        };
        let grace = stop.as_ref().map_or(Duration::ZERO, |stop| stop.grace);
        self.stop(grace, announced).await;
        if let Some(stop) = stop {
            let _ = stop.stopped.send(());
        }
    }

    async fn tell_all(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that is gone has nothing left to do.
            let _ = worker.send(command()).await;
        }
    }

    /// Stops within `grace`. Clients have been told since `announced`, if that was before.
    async fn stop(&mut self, grace: Duration, announced: Option<tokio::time::Instant>) {
        let now = tokio::time::Instant::now();
        let by = now + grace;
        self.tell_all(|| Command::Drain).await;
        // Where nothing is served, nobody has to learn that it ends.
        let is_served = !self.shared.routes.load().services().is_empty();
        if is_served {
            let since = announced.unwrap_or(now);
            sleep_until(by.min(since + self.shared.config.linger)).await;
        }
        self.tell_all(|| Command::Finish { by }).await;
        self.workers.clear();
        while self.ended.recv().await.is_some() {}
    }

    /// Opens the ports that the routes want, and closes those that they no longer want.
    async fn reconcile(&mut self) {
        let table = Arc::clone(&self.shared.routes.load());
        let wanted = wanted(&table);
        let unwanted: Vec<u16> = self
            .open
            .iter()
            .filter(|(port, service)| wanted.get(port) != Some(service))
            .map(|(port, _)| *port)
            .collect();
        if !unwanted.is_empty() {
            self.close(&unwanted).await;
        }
        let mut statuses = conflicts(&table, &wanted);
        for (&port, &service) in &wanted {
            let state = match self.open(port, service).await {
                Ok(()) => PortState::Open,
                Err(error) => PortState::Refused {
                    reason: format!("cannot listen on port {port}: {error}"),
                },
            };
            statuses.push(PortStatus {
                service,
                port,
                state,
            });
        }
        statuses.sort_by_key(|status| (status.port, status.service));
        self.ports.send_if_modified(|known| {
            let changed = *known != statuses;
            *known = statuses;
            changed
        });
    }

    async fn open(&mut self, port: u16, service: ServiceId) -> io::Result<()> {
        if self.open.contains_key(&port) {
            return Ok(());
        }
        let address = SocketAddr::new(self.address.ip(), port);
        let sockets = listener::open(address, self.workers.len())?;
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let listener = Listener::Service(service);
            let command = Command::Open {
                port,
                socket,
                listener,
                transport: Transport::Clear,
            };
            let _ = worker.send(command).await;
        }
        self.open.insert(port, service);
        Ok(())
    }

    /// Closes these ports, all at once: each has some time for those who are connecting to it.
    async fn close(&mut self, ports: &[u16]) {
        let mut pending = Vec::new();
        for &port in ports {
            for worker in &self.workers {
                let (closed, done) = oneshot::channel();
                let _ = worker.send(Command::Close { port, closed }).await;
                pending.push(done);
            }
            self.open.remove(&port);
        }
        let mut closed = pin!(join_all(pending));
        let mut expire = interval(EXPIRE_EVERY);
        expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = &mut closed => return,
                _ = expire.tick() => self.shared.loads.expire(Instant::now()),
            }
        }
    }
}

/// Which service each port is for; of two that want one port, the older has it.
fn wanted(table: &RouteTable) -> BTreeMap<u16, ServiceId> {
    let mut wanted = BTreeMap::new();
    for service in table.services() {
        if let Some(port) = service.port {
            wanted.entry(port).or_insert(service.id);
        }
    }
    wanted
}

/// The services that want a port which another one has.
fn conflicts(table: &RouteTable, wanted: &BTreeMap<u16, ServiceId>) -> Vec<PortStatus> {
    let served: BTreeSet<ServiceId> = wanted.values().copied().collect();
    let others = table.services().iter();
    others
        .filter(|service| !served.contains(&service.id))
        .filter_map(|service| {
            let port = service.port?;
            let reason = format!("port {port} belongs to service {}", wanted[&port]);
            Some(PortStatus {
                service: service.id,
                port,
                state: PortState::Refused { reason },
            })
        })
        .collect()
}
