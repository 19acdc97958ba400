//! Counters of the data plane, one set per service and worker: a request writes only its own
//! worker's, and a scrape sums them.

mod latency;
mod replicas;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use raftserve_model::{ReplicaId, ServiceId, ServiceName, ServiceVersion};

use crate::load::PeerLoads;
use crate::queue::Waiting;

pub(crate) use latency::Latencies;
pub(crate) use replicas::ReplicaCounters;

/// How many versions of a service stay counted when none of their replicas is left: a rollout and its way back, a few
/// times over.
const VERSIONS_KEPT: usize = 8;

/// One worker's counts for one service, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) ended: AtomicU64,
    /// By the first digit of the status; the first is unused. Of the class 1 are those that switch protocols.
    statuses: [AtomicU64; 6],
    pub(crate) retries: AtomicU64,
    pub(crate) retries_over_budget: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    /// Connects for which this peer had no files, memory or ports.
    pub(crate) connects_lacking: AtomicU64,
    pub(crate) ejections: AtomicU64,
    pub(crate) session_binds: AtomicU64,
    pub(crate) session_waits: AtomicU64,
}

/// Counts one more on a counter that only this worker writes: no other processor has to be asked.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds to a counter that only this worker writes.
pub(crate) fn add(counter: &AtomicU64, number: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(number), Ordering::Relaxed);
}

/// Counts one more on a counter that several threads write.
pub(crate) fn count_shared(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = self.statuses.get(class) {
            count(counter);
        }
    }
}

#[derive(Debug)]
struct Service {
    name: ServiceName,
    workers: Vec<Arc<Counters>>,
    waiting: Arc<Waiting>,
    /// By version, and for each of the workers.
    latencies: BTreeMap<ServiceVersion, Vec<Arc<Latencies>>>,
}

/// All counters of a proxy.
#[derive(Debug)]
pub(crate) struct Metrics {
    workers: usize,
    services: Mutex<BTreeMap<ServiceId, Service>>,
    replicas: Mutex<replicas::Replicas>,
    /// Requests that named no service.
    pub(crate) unrouted: AtomicU64,
    pub(crate) connections: AtomicU64,
}

impl Metrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            services: Mutex::default(),
            replicas: Mutex::default(),
            unrouted: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Service>> {
        // No code panics between two writes that belong together.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of one worker for one service.
    pub(crate) fn of(&self, id: ServiceId, name: &ServiceName, worker: usize) -> Arc<Counters> {
        let mut services = self.lock();
        let service = services.entry(id).or_insert_with(|| Service {
            name: name.clone(),
            workers: (0..self.workers).map(|_| Arc::default()).collect(),
            waiting: Arc::default(),
            latencies: BTreeMap::new(),
        });
        Arc::clone(&service.workers[worker])
    }

    /// The latencies of one worker for one version of a service that it has counters of.
    pub(crate) fn latencies(
        &self,
        id: ServiceId,
        version: ServiceVersion,
        worker: usize,
    ) -> Arc<Latencies> {
        let mut services = self.lock();
        let Some(service) = services.get_mut(&id) else {
            return Arc::default(); // It was just forgotten.
        };
        let workers = service
            .latencies
            .entry(version)
            .or_insert_with(|| (0..self.workers).map(|_| Arc::default()).collect());
        Arc::clone(&workers[worker])
    }

    /// The counters of one worker for one replica.
    pub(crate) fn replica(
        &self,
        id: ReplicaId,
        version: ServiceVersion,
        worker: usize,
    ) -> Arc<ReplicaCounters> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.of(id, version, worker, self.workers)
    }

    /// What waits for a service that a worker has counters of.
    pub(crate) fn waiting(&self, id: ServiceId) -> Arc<Waiting> {
        let services = self.lock();
        let service = services.get(&id);
        service
            .map(|service| Arc::clone(&service.waiting))
            .unwrap_or_default()
    }

    /// How many requests wait for a ready replica, by service; those without any are left out.
    pub(crate) fn queued(&self) -> Vec<(ServiceId, u64)> {
        let services = self.lock();
        let queued = services
            .iter()
            .map(|(id, service)| (*id, service.waiting.requests()));
        queued.filter(|&(_, requests)| requests > 0).collect()
    }

    /// Forgets services and replicas that no worker and no request holds, and the oldest of such versions.
    pub(crate) fn prune(&self) {
        let mut services = self.lock();
        services.retain(|_, service| {
            let latest = service.latencies.keys().rev().nth(VERSIONS_KEPT - 1);
            let latest = latest.copied().unwrap_or_default();
            service.latencies.retain(|version, workers| {
                let mut workers = workers.iter();
                *version >= latest || workers.any(|held| Arc::strong_count(held) > 1)
            });
            service
                .workers
                .iter()
                .any(|held| Arc::strong_count(held) > 1)
        });
        let present: BTreeSet<ServiceId> = services.keys().copied().collect();
        drop(services); // A scrape locks the two the other way round.
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.prune(|service| present.contains(&service));
    }

    /// All counters in Prometheus's text format, version 0.0.4.
    pub(crate) fn render(&self, loads: &PeerLoads) -> String {
        let mut text = String::new();
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.render(&mut text, loads, |id| {
            let services = self.lock();
            services.get(&id).map(|service| service.name.to_string())
        });
        drop(replicas);
        let services = self.lock();
        for (name, help, read) in LATENCIES {
            family(&mut text, name, "histogram", help);
            for service in services.values() {
                for (version, workers) in &service.latencies {
                    let labels = format!("{},version=\"{version}\"", service.label());
                    let each = workers.iter().map(|worker| read(worker));
                    latency::render(&mut text, name, &labels, &latency::BOUNDS, each);
                }
            }
        }
        for (name, help, read) in FAMILIES {
            family(&mut text, name, "counter", help);
            for service in services.values() {
                sample(&mut text, name, &service.label(), service.sum(read));
            }
        }
        let name = "raftserve_proxy_responses_total";
        family(&mut text, name, "counter", "Answers, by class of status.");
        for service in services.values() {
            for class in 1..6 {
                let labels = format!("{},code=\"{class}xx\"", service.label());
                let value = service.sum(|counters| &counters.statuses[class]);
                sample(&mut text, name, &labels, value);
            }
        }
        let name = "raftserve_proxy_requests_in_flight";
        family(
            &mut text,
            name,
            "gauge",
            "Requests whose answer has not ended.",
        );
        for service in services.values() {
            // Ends are read first, so that a request in between cannot make it negative.
            let ended = service.sum(|counters| &counters.ended);
            let started = service.sum(|counters| &counters.requests);
            sample(
                &mut text,
                name,
                &service.label(),
                started.saturating_sub(ended),
            );
        }
        for (name, kind, help, read) in QUEUE_FAMILIES {
            family(&mut text, name, kind, help);
            for service in services.values() {
                sample(&mut text, name, &service.label(), read(&service.waiting));
            }
        }
        let name = "raftserve_proxy_queue_wait_seconds_total";
        family(
            &mut text,
            name,
            "counter",
            "Waits for a first ready replica that ended with one.",
        );
        for service in services.values() {
            let micros = service.waiting.waited_micros.load(Ordering::Relaxed);
            let seconds = latency::decimal(micros);
            let _ = writeln!(text, "{name}{{{}}} {seconds}", service.label());
        }
        let unrouted = self.unrouted.load(Ordering::Relaxed);
        let name = "raftserve_proxy_unrouted_requests_total";
        family(
            &mut text,
            name,
            "counter",
            "Requests that named no service.",
        );
        sample(&mut text, name, "", unrouted);
        let connections = self.connections.load(Ordering::Relaxed);
        let name = "raftserve_proxy_connections_total";
        family(&mut text, name, "counter", "Client connections accepted.");
        sample(&mut text, name, "", connections);
        text
    }
}

type Read = fn(&Counters) -> &AtomicU64;

const FAMILIES: [(&str, &str, Read); 9] = [
    (
        "raftserve_proxy_requests_total",
        "Requests routed to the service.",
        |counters| &counters.requests,
    ),
    (
        "raftserve_proxy_retries_total",
        "Requests tried on a further replica.",
        |counters| &counters.retries,
    ),
    (
        "raftserve_proxy_retries_over_budget_total",
        "Requests that were sent, and not tried again because of the budget.",
        |counters| &counters.retries_over_budget,
    ),
    (
        "raftserve_proxy_hedges_total",
        "Second tries started beside a first one that took long.",
        |counters| &counters.hedges,
    ),
    (
        "raftserve_proxy_connect_failures_total",
        "Connects to a replica that failed.",
        |counters| &counters.connect_failures,
    ),
    (
        "raftserve_proxy_connects_lacking_resources_total",
        "Connects to a replica for which this peer had no open files, memory or ports left.",
        |counters| &counters.connects_lacking,
    ),
    (
        "raftserve_proxy_ejections_total",
        "Replicas left out by a worker, for a refused connection or for errors in a row.",
        |counters| &counters.ejections,
    ),
    (
        "raftserve_proxy_session_binds_total",
        "Bindings of a session that were asked for.",
        |counters| &counters.session_binds,
    ),
    (
        "raftserve_proxy_session_waits_total",
        "Waits for a session's binding or replica.",
        |counters| &counters.session_waits,
    ),
];

type ReadLatency = fn(&Latencies) -> &latency::Histogram;

const LATENCIES: [(&str, &str, ReadLatency); 2] = [
    (
        "raftserve_proxy_first_byte_seconds",
        "From a request's head to that of its replica's answer.",
        |latencies| &latencies.first_byte,
    ),
    (
        "raftserve_proxy_request_seconds",
        "From a request's head to the end of its replica's answer.",
        |latencies| &latencies.total,
    ),
];

type ReadQueue = fn(&Waiting) -> u64;

const QUEUE_FAMILIES: [(&str, &str, &str, ReadQueue); 4] = [
    (
        "raftserve_proxy_queue_length",
        "gauge",
        "Requests that wait while the service has no ready replica.",
        Waiting::requests,
    ),
    (
        "raftserve_proxy_queued_total",
        "counter",
        "Requests that had to wait for a ready replica.",
        |waiting| waiting.queued.load(Ordering::Relaxed),
    ),
    (
        "raftserve_proxy_queue_refused_total",
        "counter",
        "Requests refused because as many waited as may.",
        |waiting| waiting.turned_away.load(Ordering::Relaxed),
    ),
    (
        "raftserve_proxy_queue_expired_total",
        "counter",
        "Requests that waited for a ready replica in vain.",
        |waiting| waiting.gave_up.load(Ordering::Relaxed),
    ),
];

impl Service {
    fn sum(&self, read: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        let each = self.workers.iter();
        each.map(|counters| read(counters).load(Ordering::Relaxed))
            .sum()
    }

    /// A service's name holds nothing that a label's value would have to escape.
    fn label(&self) -> String {
        format!("service=\"{}\"", self.name)
    }
}

pub(crate) fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

pub(crate) fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = if labels.is_empty() {
        writeln!(text, "{name} {value}")
    } else {
        writeln!(text, "{name}{{{labels}}} {value}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sums_the_workers() {
        let metrics = Metrics::new(2);
        let name: ServiceName = "chat".parse().expect("a good name");
        let each = [0, 1].map(|worker| metrics.of(ServiceId(1), &name, worker));
        each.iter().for_each(|worker| count(&worker.requests));
        count(&each[1].ended);
        each[1].answered(StatusCode::NOT_FOUND);
        let text = metrics.render(&PeerLoads::default());
        for line in [
            "raftserve_proxy_requests_total{service=\"chat\"} 2",
            "raftserve_proxy_requests_in_flight{service=\"chat\"} 1",
            "raftserve_proxy_responses_total{service=\"chat\",code=\"4xx\"} 1",
            "raftserve_proxy_unrouted_requests_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop(each);
        metrics.prune();
        assert!(!metrics.render(&PeerLoads::default()).contains("chat"));
    }

    #[test]
    fn the_counts_of_a_version_never_go_back() {
        let metrics = Metrics::new(1);
        let service = ServiceId(1);
        let held = metrics.of(service, &"chat".parse().expect("a good name"), 0);
        let replica = ReplicaId { service, number: 1 };
        let requests = |version: u32| -> Option<u64> {
            let line = format!(
                "raftserve_proxy_version_requests_total{{service=\"chat\",version=\"{version}\"}} "
            );
            let text = metrics.render(&PeerLoads::default());
            let found = text.lines().find_map(|found| found.strip_prefix(&line));
            found.map(|value| value.parse().expect("a number"))
        };
        for version in 1..=20 {
            let counters = metrics.replica(replica, ServiceVersion(version), 0);
            add(&counters.requests, u64::from(version));
            assert_eq!(requests(version), Some(version.into()));
        }
        assert_eq!(requests(19), Some(19), "it was another version then");
        metrics.prune();
        assert_eq!(requests(20), Some(20), "nobody holds the replica any more");
        assert_eq!(requests(13), Some(13));
        assert_eq!(requests(12), None, "only so many are kept");
        let again = metrics.replica(replica, ServiceVersion(20), 0);
        count(&again.requests);
        assert_eq!(requests(20), Some(21));
        drop((held, again));
        metrics.prune();
        assert!(!metrics.render(&PeerLoads::default()).contains("chat"));
    }

    #[test]
    fn replicas_beyond_the_most_are_counted_and_not_told() {
        let metrics = Metrics::new(1);
        let service = ServiceId(1);
        let _held = metrics.of(service, &"chat".parse().expect("a good name"), 0);
        let held: Vec<_> = (1..=500)
            .map(|number| metrics.replica(ReplicaId { service, number }, ServiceVersion(3), 0))
            .collect();
        held.iter().for_each(|each| count(&each.requests));
        let text = metrics.render(&PeerLoads::default());
        let name = "raftserve_proxy_replica_requests_total{service=\"chat\",version=\"3\"";
        assert_eq!(
            text.lines().filter(|line| line.starts_with(name)).count(),
            200
        );
        assert!(
            text.contains("raftserve_proxy_replicas_left_out 300"),
            "{text}"
        );
        drop(held);
        metrics.prune();
        assert!(!metrics.render(&PeerLoads::default()).contains(name));
    }
}
