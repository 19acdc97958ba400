//! The routes as one worker uses them: with its connections, cursors and counters at hand.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_model::{ReplicaId, ServiceId};
use tokio::time::Instant;

use crate::budget::Budget;
use crate::config::ProxyConfig;
use crate::fast;
use crate::health::SHARE_FULL;
use crate::load::PeerLoads;
use crate::metrics::{Counters, Metrics};
use crate::policy;
use crate::queue::Queue;
use crate::routes::{RouteTable, ServiceRoute};
use crate::triage::Triage;
use crate::upstream::Upstream;

/// One worker's view of one route table. What did not change is carried over from the view before.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) table: Arc<RouteTable>,
    /// In the order of the table's.
    services: Vec<Rc<ServiceView>>,
}

/// One service in a [`View`].
#[derive(Debug)]
pub(crate) struct ServiceView {
    pub(crate) route: Arc<ServiceRoute>,
    pub(crate) counters: Arc<Counters>,
    /// Whether its plain requests may take the short path.
    pub(crate) is_plain: bool,
    /// Those that may get requests which no session binds.
    ready: Vec<Rc<Upstream>>,
    /// All, by replica.
    all: Vec<Rc<Upstream>>,
    /// Where the next pick starts; at first anywhere, so that workers and peers do not pick in step.
    cursor: Cell<usize>,
    triage: Rc<Triage>,
    pub(crate) budget: Rc<RefCell<Budget>>,
    /// Those that wait for a first ready replica.
    pub(crate) queue: Rc<Queue>,
}

/// Where the counts of a worker are kept.
pub(crate) struct Registries<'a> {
    pub(crate) loads: &'a PeerLoads,
    pub(crate) metrics: &'a Metrics,
    pub(crate) worker: usize,
}

impl View {
    pub(crate) fn next(&self, table: Arc<RouteTable>, registries: &Registries<'_>) -> Self {
        let services = table
            .services()
            .iter()
            .map(|route| match self.service(route.id) {
                Some(before) if Arc::ptr_eq(&before.route, route) => Rc::clone(before),
                before => Rc::new(ServiceView::new(route, before, registries)),
            })
            .collect();
        for gone in &self.services {
            if table.position(gone.route.id).is_none() {
                gone.queue.dismiss();
            }
        }
        Self { table, services }
    }

    /// The services for which requests wait that now have a ready replica, and whose lines do not move yet.
    pub(crate) fn to_move(&self) -> impl Iterator<Item = ServiceId> {
        let services = self.services.iter();
        let begin = |service: &&Rc<ServiceView>| {
            service.ready_count() > 0 && service.queue.begins_to_move()
        };
        services.filter(begin).map(|service| service.route.id)
    }

    pub(crate) fn at(&self, index: usize) -> &Rc<ServiceView> {
        &self.services[index]
    }

    pub(crate) fn service(&self, id: ServiceId) -> Option<&Rc<ServiceView>> {
        self.table.position(id).map(|index| &self.services[index])
    }

    pub(crate) fn sweep(&self, config: &ProxyConfig) {
        let upstreams = self.services.iter().flat_map(|service| &service.all);
        upstreams.for_each(|upstream| upstream.sweep(config));
    }
}

impl ServiceView {
    fn new(
        route: &Arc<ServiceRoute>,
        before: Option<&Rc<Self>>,
        registries: &Registries<'_>,
    ) -> Self {
        let counters = registries
            .metrics
            .of(route.id, &route.name, registries.worker);
        let (triage, budget, queue) = match before {
            Some(before) => (
                Rc::clone(&before.triage),
                Rc::clone(&before.budget),
                Rc::clone(&before.queue),
            ),
            None => (
                Rc::new(Triage::new(Arc::clone(&counters))),
                Rc::new(RefCell::new(Budget::new(Instant::now()))),
                Rc::new(Queue::new(registries.metrics.waiting(route.id))),
            ),
        };
        triage.adopt(&route.traffic);
        let known: HashMap<(ReplicaId, SocketAddr), &Rc<Upstream>> = before
            .iter()
            .flat_map(|before| &before.all)
            .map(|upstream| ((upstream.replica, upstream.address), upstream))
            .collect();
        let upstream = |replica, address, version| match known.get(&(replica, address)) {
            Some(upstream) => Rc::clone(upstream),
            None => Rc::new(Upstream::new(
                replica,
                address,
                registries.loads.gauge(replica),
                Rc::clone(&triage),
                registries
                    .metrics
                    .replica(replica, version, registries.worker),
            )),
        };
        let mut ready = Vec::new();
        let mut all = Vec::with_capacity(route.endpoints.len());
        for endpoint in &route.endpoints {
            let upstream = upstream(endpoint.replica, endpoint.address, endpoint.version);
            let version = endpoint.version;
            if upstream.version() != version {
                let (metrics, worker) = (registries.metrics, registries.worker);
                metrics.replica(endpoint.replica, version, worker);
                upstream.set_version(version, metrics.latencies(route.id, version, worker));
            }
            upstream.set_ready(endpoint.ready);
            if endpoint.ready {
                ready.push(Rc::clone(&upstream));
            }
            all.push(upstream);
        }
        all.sort_by_key(|upstream| upstream.replica);
        let cursor = before.map_or_else(
            || usize::from(rand::random::<u16>()),
            |before| before.cursor.get(),
        );
        Self {
            route: Arc::clone(route),
            is_plain: fast::carries(route),
            counters,
            ready,
            all,
            cursor: Cell::new(cursor),
            triage,
            budget,
            queue,
        }
    }

    /// How many replicas may get requests that no session binds.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Picks a ready replica by the service's policy, none of those tried. One that is ejected is picked
    /// only if there is no other, one that refused a connection lately only after all of those.
    pub(crate) fn pick(&self, tried: &[ReplicaId]) -> Option<&Rc<Upstream>> {
        let untried = |index: usize| !tried.contains(&self.ready[index].replica);
        let Some(survey) = self.triage.survey(&self.ready) else {
            let index = self.pick_of(untried, |_| SHARE_FULL)?;
            self.cursor.set(index + 1);
            return Some(&self.ready[index]);
        };
        let share = |index: usize| self.triage.share(&self.ready[index], survey);
        let admitted = |index: usize| untried(index) && survey.admits(&self.ready[index]);
        let reached = |index: usize| untried(index) && survey.reaches(&self.ready[index]);
        let index = self
            .pick_of(|index| admitted(index) && self.draws(share(index)), share)
            .or_else(|| self.pick_of(admitted, share))
            .or_else(|| self.pick_of(reached, share))
            .or_else(|| self.pick_of(untried, share))?;
        self.cursor.set(index + 1);
        let upstream = &self.ready[index];
        self.triage.picked(upstream, survey);
        Some(upstream)
    }

    /// Whether a replica with this share takes part in a pick. Where loads are compared, the share counts
    /// there instead.
    fn draws(&self, share: u32) -> bool {
        let by_load = match self.route.policy {
            LoadBalancingPolicy::LeastLoad
            | LoadBalancingPolicy::InstanceAwareLeastLoad
            | LoadBalancingPolicy::P2c => true,
            LoadBalancingPolicy::RoundRobin
            | LoadBalancingPolicy::RingHash
            | LoadBalancingPolicy::Maglev => false,
        };
        by_load || share >= SHARE_FULL || rand::random_range(0..SHARE_FULL) < share
    }

    fn pick_of(
        &self,
        usable: impl Fn(usize) -> bool,
        share: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let (count, start) = (self.ready.len(), self.cursor.get());
        match self.route.policy {
            LoadBalancingPolicy::RoundRobin => policy::round_robin(count, start, usable),
            LoadBalancingPolicy::LeastLoad
            | LoadBalancingPolicy::InstanceAwareLeastLoad
            | LoadBalancingPolicy::P2c
            | LoadBalancingPolicy::RingHash
            | LoadBalancingPolicy::Maglev => {
                let draw = if count > policy::FULL_SCAN_MAX {
                    rand::random()
                } else {
                    0
                };
                // With a tenth of its share, a replica's one request weighs as much as ten.
                let load = |index: usize| {
                    let next = u64::from(self.ready[index].gauge.total()) + 1;
                    next * u64::from(SHARE_FULL) / u64::from(share(index).max(1))
                };
                policy::least_load(count, start, draw, load, usable)
            }
        }
    }

    /// A replica, whether ready or not.
    pub(crate) fn replica(&self, replica: ReplicaId) -> Option<&Rc<Upstream>> {
        self.all
            .binary_search_by_key(&replica, |upstream| upstream.replica)
            .ok()
            .map(|index| &self.all[index])
    }
}
