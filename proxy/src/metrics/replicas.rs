//! Counters by replica. Only so many replicas of a service are told one by one; the service's own counters have
//! them all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};

use super::{count, family, sample};
use crate::load::PeerLoads;

/// The most replicas of one service that a scrape tells one by one: eight series each.
const TOLD_MAX: usize = 200;

/// One worker's counts for one replica, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ReplicaCounters {
    pub(crate) requests: AtomicU64,
    /// By the first digit of the status; the first two are unused.
    statuses: [AtomicU64; 6],
    pub(crate) failures: AtomicU64,
    pub(crate) ejections: AtomicU64,
}

impl ReplicaCounters {
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self.statuses.get(usize::from(status.as_u16() / 100)) {
            count(counter);
        }
    }
}

#[derive(Debug)]
struct Replica {
    version: ServiceVersion,
    workers: Vec<Arc<ReplicaCounters>>,
}

impl Replica {
    fn sum(&self, read: impl Fn(&ReplicaCounters) -> &AtomicU64) -> u64 {
        let each = self.workers.iter();
        each.map(|worker| read(worker).load(Ordering::Relaxed))
            .sum()
    }
}

/// The counters of all replicas.
#[derive(Debug, Default)]
pub(super) struct Replicas(BTreeMap<ReplicaId, Replica>);

type Read = fn(&ReplicaCounters) -> &AtomicU64;

const FAMILIES: [(&str, &str, Read); 3] = [
    (
        "raftserve_proxy_replica_requests_total",
        "Requests that the replica was tried for.",
        |counters| &counters.requests,
    ),
    (
        "raftserve_proxy_replica_failures_total",
        "Requests that the replica refused, broke off or was silent to.",
        |counters| &counters.failures,
    ),
    (
        "raftserve_proxy_replica_ejections_total",
        "How often a worker left the replica out.",
        |counters| &counters.ejections,
    ),
];

impl Replicas {
    /// The counters of one worker for a replica, which counts as of this version from now on.
    pub(super) fn of(
        &mut self,
        id: ReplicaId,
        version: ServiceVersion,
        worker: usize,
        workers: usize,
    ) -> Arc<ReplicaCounters> {
        let replica = self.0.entry(id).or_insert_with(|| Replica {
            version,
            workers: (0..workers).map(|_| Arc::default()).collect(),
        });
        replica.version = version;
        Arc::clone(&replica.workers[worker])
    }

    /// Forgets those that no worker and no request holds.
    pub(super) fn prune(&mut self) {
        self.0.retain(|_, replica| {
            let mut workers = replica.workers.iter();
            workers.any(|held| Arc::strong_count(held) > 1)
        });
    }

    pub(super) fn render(
        &self,
        text: &mut String,
        loads: &PeerLoads,
        name_of: impl Fn(ServiceId) -> Option<String>,
    ) {
        let mut told: Vec<(String, &Replica, ReplicaId)> = Vec::new();
        let (mut service, mut names, mut left_out) = (None, None, 0_u64);
        let mut in_service = 0;
        for (&id, replica) in &self.0 {
            if service != Some(id.service) {
                (service, in_service) = (Some(id.service), 0);
                names = name_of(id.service);
            }
            in_service += 1;
            match &names {
                Some(name) if in_service <= TOLD_MAX => {
                    let (version, number) = (replica.version, id.number);
                    let labels =
                        format!("service=\"{name}\",version=\"{version}\",replica=\"{number}\"");
                    told.push((labels, replica, id));
                }
                _ => left_out += 1,
            }
        }
        for (name, help, read) in FAMILIES {
            family(text, name, "counter", help);
            for (labels, replica, _) in &told {
                sample(text, name, labels, replica.sum(read));
            }
        }
        let name = "raftserve_proxy_replica_responses_total";
        family(
            text,
            name,
            "counter",
            "The replica's answers, by class of status.",
        );
        for (labels, replica, _) in &told {
            for class in 1..6 {
                let value = replica.sum(|counters| &counters.statuses[class]);
                if value > 0 {
                    sample(text, name, &format!("{labels},code=\"{class}xx\""), value);
                }
            }
        }
        let name = "raftserve_proxy_replica_requests_in_flight";
        family(
            text,
            name,
            "gauge",
            "Requests that this peer has at the replica.",
        );
        let own: BTreeMap<ReplicaId, u32> = loads.own().into_iter().collect();
        for (labels, _, id) in &told {
            sample(text, name, labels, own.get(id).copied().unwrap_or(0).into());
        }
        let name = "raftserve_proxy_replicas_left_out";
        let help = "Replicas beyond the most of a service that are told one by one.";
        family(text, name, "gauge", help);
        sample(text, name, "", left_out);
    }
}
