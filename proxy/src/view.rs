//! The routes as one worker uses them: with its connections, cursors and counters at hand.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_model::{ReplicaId, ServiceId};

use crate::config::ProxyConfig;
use crate::fast;
use crate::load::PeerLoads;
use crate::metrics::{Counters, Metrics};
use crate::policy;
use crate::routes::{RouteTable, ServiceRoute};
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
        Self { table, services }
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
        let known: HashMap<(ReplicaId, SocketAddr), &Rc<Upstream>> = before
            .iter()
            .flat_map(|before| &before.all)
            .map(|upstream| ((upstream.replica, upstream.address), upstream))
            .collect();
        let upstream = |replica, address| match known.get(&(replica, address)) {
            Some(upstream) => Rc::clone(upstream),
            None => Rc::new(Upstream::new(
                replica,
                address,
                registries.loads.gauge(replica),
            )),
        };
        let mut ready = Vec::new();
        let mut all = Vec::with_capacity(route.endpoints.len());
        for endpoint in &route.endpoints {
            let upstream = upstream(endpoint.replica, endpoint.address);
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
            counters: registries
                .metrics
                .of(route.id, &route.name, registries.worker),
            ready,
            all,
            cursor: Cell::new(cursor),
        }
    }

    /// Picks a ready replica by the service's policy, none of those tried. One that refused a
    /// connection lately is picked only if there is no other.
    pub(crate) fn pick(&self, tried: &[ReplicaId]) -> Option<&Rc<Upstream>> {
        let untried = |index: usize| !tried.contains(&self.ready[index].replica);
        let index = self
            .pick_of(|index| untried(index) && !self.ready[index].is_suspect())
            .or_else(|| self.pick_of(untried))?;
        self.cursor.set(index + 1);
        Some(&self.ready[index])
    }

    fn pick_of(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
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
                let load = |index: usize| self.ready[index].gauge.total();
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
