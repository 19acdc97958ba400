//! Counters by replica, and by version. Only so many replicas of a service are told one by one; the service's own
//! counters, and those of its versions, have them all.
//!
//! A version's counts are those of its replicas, past ones too: what a replica counted is kept for its version when it
//! goes, or when an update makes it one of another version. So a sum over replicas may fall, and that of a version does
//! not, and requests pay for one counter only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};

use super::latency::{self, Histogram};
use super::tally::Tally;
use super::{VERSIONS_KEPT, count, family, sample};
use crate::load::PeerLoads;

/// The most replicas of one service that a scrape tells one by one: some twenty series each.
const TOLD_MAX: usize = 200;

/// One worker's counts for one replica, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ReplicaCounters {
    pub(crate) requests: AtomicU64,
    /// By the first digit of the status; the first two are unused.
    pub(super) statuses: [AtomicU64; 6],
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) ejections: AtomicU64,
    /// What the answers that went on to clients took to begin.
    first_byte: Histogram,
}

impl ReplicaCounters {
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self.statuses.get(usize::from(status.as_u16() / 100)) {
            count(counter);
        }
    }

    /// An answer goes on to its client, so long after the request's head had come.
    pub(crate) fn passed_on(&self, first_byte: Duration) {
        self.first_byte.observe(first_byte);
    }
}

#[derive(Debug)]
struct Replica {
    version: ServiceVersion,
    workers: Vec<Arc<ReplicaCounters>>,
    /// What was counted when it became one of this version.
    before: Tally,
}

impl Replica {
    fn sum(&self, read: impl Fn(&ReplicaCounters) -> &AtomicU64) -> u64 {
        let each = self.workers.iter();
        each.map(|worker| read(worker).load(Ordering::Relaxed))
            .sum()
    }

    /// What it counted as one of its version.
    fn of_version(&self) -> Tally {
        Tally::of(&self.workers).since(&self.before)
    }
}

/// The counters of all replicas.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    present: BTreeMap<ReplicaId, Replica>,
    /// What replicas counted for a version that they are not of any more.
    past: BTreeMap<(ServiceId, ServiceVersion), Tally>,
}

type Read<C> = fn(&C) -> &AtomicU64;
type ReadTally = fn(&Tally) -> u64;

const FAMILIES: [(&str, &str, Read<ReplicaCounters>); 4] = [
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
        "raftserve_proxy_replica_retries_total",
        "Requests tried on the replica after another try.",
        |counters| &counters.retries,
    ),
    (
        "raftserve_proxy_replica_ejections_total",
        "How often a worker left the replica out.",
        |counters| &counters.ejections,
    ),
];

const VERSION_FAMILIES: [(&str, &str, ReadTally); 4] = [
    (
        "raftserve_proxy_version_requests_total",
        "Requests that replicas of the version were tried for.",
        |tally| tally.requests,
    ),
    (
        "raftserve_proxy_version_failures_total",
        "Requests that replicas of the version refused, broke off or were silent to.",
        |tally| tally.failures,
    ),
    (
        "raftserve_proxy_version_retries_total",
        "Requests tried on replicas of the version after another try.",
        |tally| tally.retries,
    ),
    (
        "raftserve_proxy_version_ejections_total",
        "How often a worker left a replica of the version out.",
        |tally| tally.ejections,
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
        let replica = self.present.entry(id).or_insert_with(|| Replica {
            version,
            workers: (0..workers).map(|_| Arc::default()).collect(),
            before: Tally::default(),
        });
        // Each worker says so in its turn; one that is late says what was so before.
        if replica.version < version {
            let counted = replica.of_version();
            replica.before.add(&counted);
            let past = self.past.entry((id.service, replica.version)).or_default();
            past.add(&counted);
            replica.version = version;
        }
        Arc::clone(&replica.workers[worker])
    }

    /// Forgets those that no worker and no request holds, and services that are none any more. What is forgotten stays
    /// counted for its version, as long as that is one of the latest.
    pub(super) fn prune(&mut self, is_service: impl Fn(ServiceId) -> bool) {
        let past = &mut self.past;
        self.present.retain(|id, replica| {
            let mut workers = replica.workers.iter();
            let held = workers.any(|held| Arc::strong_count(held) > 1);
            if !held {
                let version = past.entry((id.service, replica.version)).or_default();
                version.add(&replica.of_version());
            }
            held
        });
        // Where a replica of the version is left, without what is past its counts would go back.
        let present = self.present.iter();
        let present = present.map(|(id, replica)| (id.service, replica.version));
        let mut kept: BTreeSet<_> = present.collect();
        let mut latest = BTreeMap::<ServiceId, usize>::new();
        for &(service, version) in self.past.keys().rev() {
            let number = latest.entry(service).or_default();
            *number += 1;
            if *number <= VERSIONS_KEPT && is_service(service) {
                kept.insert((service, version));
            }
        }
        self.past.retain(|key, _| kept.contains(key));
    }

    pub(super) fn render(
        &self,
        text: &mut String,
        loads: &PeerLoads,
        name_of: impl Fn(ServiceId) -> Option<String>,
    ) {
        let own: BTreeMap<ReplicaId, u32> = loads.own().into_iter().collect();
        let of = |id| u64::from(own.get(&id).copied().unwrap_or(0));
        self.render_replicas(text, of, &name_of);
        self.render_versions(text, of, &name_of);
    }

    fn render_replicas(
        &self,
        text: &mut String,
        in_flight: impl Fn(ReplicaId) -> u64,
        name_of: &impl Fn(ServiceId) -> Option<String>,
    ) {
        let mut told: Vec<(String, &Replica, ReplicaId)> = Vec::new();
        let (mut service, mut names, mut left_out) = (None, None, 0_u64);
        let mut in_service = 0;
        for (&id, replica) in &self.present {
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
        let help = "The replica's answers, by class of status.";
        family(text, name, "counter", help);
        for (labels, replica, _) in &told {
            statuses(text, name, labels, &Tally::of(&replica.workers).statuses);
        }
        let name = "raftserve_proxy_replica_first_byte_seconds";
        let help = "From a request's head to that of the replica's answer.";
        family(text, name, "histogram", help);
        for (labels, replica, _) in &told {
            let each = replica.workers.iter().map(|worker| &worker.first_byte);
            latency::render(text, name, labels, &latency::BOUNDS_OF_REPLICAS, each);
        }
        let name = "raftserve_proxy_replica_requests_in_flight";
        let help = "Requests that this peer has at the replica.";
        family(text, name, "gauge", help);
        for (labels, _, id) in &told {
            sample(text, name, labels, in_flight(*id));
        }
        let name = "raftserve_proxy_replicas_left_out";
        let help = "Replicas beyond the most of a service that are told one by one.";
        family(text, name, "gauge", help);
        sample(text, name, "", left_out);
    }

    fn render_versions(
        &self,
        text: &mut String,
        in_flight: impl Fn(ReplicaId) -> u64,
        name_of: &impl Fn(ServiceId) -> Option<String>,
    ) {
        let past = self.past.iter().map(|(key, tally)| (*key, (*tally, 0)));
        let mut versions: BTreeMap<_, (Tally, u64)> = past.collect();
        for (id, replica) in &self.present {
            let (tally, running) = versions.entry((id.service, replica.version)).or_default();
            tally.add(&replica.of_version());
            *running += in_flight(*id);
        }
        let named = versions.iter().filter_map(|((service, version), counted)| {
            let name = name_of(*service)?;
            Some((format!("service=\"{name}\",version=\"{version}\""), counted))
        });
        let told: Vec<(String, &(Tally, u64))> = named.collect();
        for (name, help, read) in VERSION_FAMILIES {
            family(text, name, "counter", help);
            for (labels, (tally, _)) in &told {
                sample(text, name, labels, read(tally));
            }
        }
        let name = "raftserve_proxy_version_responses_total";
        let help = "Answers of the version's replicas, by class of status.";
        family(text, name, "counter", help);
        for (labels, (tally, _)) in &told {
            statuses(text, name, labels, &tally.statuses);
        }
        let name = "raftserve_proxy_version_requests_in_flight";
        let help = "Requests that this peer has at replicas of the version.";
        family(text, name, "gauge", help);
        for (labels, (_, running)) in &told {
            sample(text, name, labels, *running);
        }
    }
}

/// Those that there are any of.
fn statuses(text: &mut String, name: &str, labels: &str, counts: &[u64; 6]) {
    for (class, &number) in counts.iter().enumerate().skip(1) {
        if number > 0 {
            sample(text, name, &format!("{labels},code=\"{class}xx\""), number);
        }
    }
}
