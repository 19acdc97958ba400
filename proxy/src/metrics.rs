//! Counters of the data plane, one set per service and worker: a request writes only its own
//! worker's, and a scrape sums them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use raftserve_model::{ServiceId, ServiceName};

/// One worker's counts for one service, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    ended: AtomicU64,
    /// By the first digit of the status; the first two are unused.
    statuses: [AtomicU64; 6],
    pub(crate) retries: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    pub(crate) session_binds: AtomicU64,
    pub(crate) session_waits: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
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

/// A request of a service, from its arrival to the end of its answer.
#[derive(Debug)]
pub(crate) struct Running(Arc<Counters>);

impl Running {
    pub(crate) fn start(counters: &Arc<Counters>) -> Self {
        count(&counters.requests);
        Self(Arc::clone(counters))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        count(&self.0.ended);
    }
}

#[derive(Debug)]
struct Service {
    name: ServiceName,
    workers: Vec<Arc<Counters>>,
}

/// All counters of a proxy.
#[derive(Debug)]
pub(crate) struct Metrics {
    workers: usize,
    services: Mutex<BTreeMap<ServiceId, Service>>,
    /// Requests that named no service.
    pub(crate) unrouted: AtomicU64,
    pub(crate) connections: AtomicU64,
}

impl Metrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            services: Mutex::default(),
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
        });
        Arc::clone(&service.workers[worker])
    }

    /// Forgets services that no worker and no request holds.
    pub(crate) fn prune(&self) {
        self.lock().retain(|_, service| {
            service
                .workers
                .iter()
                .any(|held| Arc::strong_count(held) > 1)
        });
    }

    /// All counters in Prometheus's text format, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        let services = self.lock();
        let mut text = String::new();
        for (name, help, read) in FAMILIES {
            family(&mut text, name, "counter", help);
            for service in services.values() {
                sample(&mut text, name, &service.label(), service.sum(read));
            }
        }
        let name = "raftserve_proxy_responses_total";
        family(&mut text, name, "counter", "Answers, by class of status.");
        for service in services.values() {
            for class in 2..6 {
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

const FAMILIES: [(&str, &str, Read); 5] = [
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
        "raftserve_proxy_connect_failures_total",
        "Connects to a replica that failed.",
        |counters| &counters.connect_failures,
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

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
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
        let running = Running::start(&each[0]);
        drop(Running::start(&each[1]));
        each[1].answered(StatusCode::NOT_FOUND);
        let text = metrics.render();
        for line in [
            "raftserve_proxy_requests_total{service=\"chat\"} 2",
            "raftserve_proxy_requests_in_flight{service=\"chat\"} 1",
            "raftserve_proxy_responses_total{service=\"chat\",code=\"4xx\"} 1",
            "raftserve_proxy_unrouted_requests_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop(running);
        drop(each);
        metrics.prune();
        assert!(!metrics.render().contains("chat"));
    }
}
