//! The routes as one worker uses them: with its connections, cursors and counters at hand.

mod pick;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};
use tokio::time::Instant;

use crate::budget::Budget;
use crate::choice::Shares;
use crate::config::ProxyConfig;
use crate::fast;
use crate::load::PeerLoads;
use crate::metrics::{Counters, Metrics};
use crate::policy::HashTable;
use crate::pool::{Member, Pool};
use crate::queue::Queue;
use crate::routes::{RouteTable, ServiceRoute};
use crate::triage::Triage;
use crate::upstream::{Dialer, Upstream};

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
    dialer: Rc<Dialer>,
    pub(crate) route: Arc<ServiceRoute>,
    pub(crate) counters: Arc<Counters>,
    /// Whether its plain requests may take the short path.
    pub(crate) is_plain: bool,
    /// Those that may get requests which no session binds.
    ready: Pool,
    /// The versions of these, in order, and those of each. Empty unless a rule shares requests out to versions.
    versions: Vec<ServiceVersion>,
    pools: Vec<Pool>,
    /// Of each rule.
    shares: Vec<Shares>,
    /// What a hash policy looks keys up in.
    hash_table: Option<Arc<HashTable>>,
    /// All, by replica.
    all: Vec<Rc<Upstream>>,
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
            .enumerate()
            .map(|(index, route)| match self.service(route.id) {
                Some(before) if Arc::ptr_eq(&before.route, route) => Rc::clone(before),
                before => {
                    let hash_table = table.hash_table(index).cloned();
                    Rc::new(ServiceView::new(route, hash_table, before, registries))
                }
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
        hash_table: Option<Arc<HashTable>>,
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
        let silence_max = route.silence_max();
        let dialer = match before {
            Some(before) if before.dialer.fits(&route.traffic.upstream, silence_max) => {
                Rc::clone(&before.dialer)
            }
            _ => Rc::new(Dialer::new(&route.traffic.upstream, silence_max)),
        };
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
                Rc::clone(&dialer),
            )),
        };
        let measure = route.policy == LoadBalancingPolicy::P2c;
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
            upstream.set_dialer(&dialer);
            upstream.set_ready(endpoint.ready);
            upstream.measure(measure);
            if endpoint.ready {
                ready.push(Member {
                    upstream: Rc::clone(&upstream),
                    version: endpoint.version,
                    weight: endpoint.weight.max(1),
                });
            }
            all.push(upstream);
        }
        all.sort_by_key(|upstream| upstream.replica);
        let cursor = before.map_or_else(
            || usize::from(rand::random::<u16>()),
            |before| before.ready.cursor(),
        );
        let (versions, pools) = by_version(route, &ready, cursor);
        Self {
            route: Arc::clone(route),
            is_plain: fast::carries(route),
            dialer,
            counters,
            ready: Pool::new(ready, cursor),
            shares: shares(route, &versions, before),
            versions,
            pools,
            hash_table,
            all,
            triage,
            budget,
            queue,
        }
    }

    /// How many replicas may get requests that no session binds.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready.members().len()
    }

    /// A replica, whether ready or not.
    pub(crate) fn replica(&self, replica: ReplicaId) -> Option<&Rc<Upstream>> {
        self.all
            .binary_search_by_key(&replica, |upstream| upstream.replica)
            .ok()
            .map(|index| &self.all[index])
    }
}

/// The versions of ready replicas, and those of each, if a rule asks for them.
fn by_version(
    route: &ServiceRoute,
    ready: &[Member],
    cursor: usize,
) -> (Vec<ServiceVersion>, Vec<Pool>) {
    let rules = &route.traffic.routes;
    if rules.iter().all(|rule| rule.weights.is_empty()) {
        return (Vec::new(), Vec::new());
    }
    let mut members: BTreeMap<ServiceVersion, Vec<Member>> = BTreeMap::new();
    for member in ready {
        let of_version = members.entry(member.version).or_default();
        of_version.push(member.clone());
    }
    members
        .into_iter()
        .map(|(version, members)| (version, Pool::new(members, cursor)))
        .unzip()
}

/// Whose turn it is under each rule: goes on where it was if the rule and the versions are the same, so that a version
/// with a small share gets its turn though replicas come and go.
fn shares(
    route: &ServiceRoute,
    versions: &[ServiceVersion],
    before: Option<&Rc<ServiceView>>,
) -> Vec<Shares> {
    let before = before.filter(|before| before.versions == versions);
    let rules = route.traffic.routes.iter().enumerate();
    let shares = rules.map(|(index, rule)| {
        let before = before.filter(|before| before.route.traffic.routes.get(index) == Some(rule));
        before.map_or_else(Shares::default, |before| before.shares[index].clone())
    });
    shares.collect()
}
