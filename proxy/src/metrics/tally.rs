//! What the workers counted together, of a replica or of all replicas of a version.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::replicas::ReplicaCounters;

/// Counts as they were at one moment. None ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) requests: u64,
    /// By the first digit of the status; the first two are unused.
    pub(super) statuses: [u64; 6],
    pub(super) failures: u64,
    pub(super) retries: u64,
    pub(super) ejections: u64,
}

impl Tally {
    /// The sum over the workers.
    pub(super) fn of(workers: &[Arc<ReplicaCounters>]) -> Self {
        let sum = |read: &dyn Fn(&ReplicaCounters) -> &AtomicU64| {
            let each = workers.iter();
            each.map(|worker| read(worker).load(Ordering::Relaxed))
                .sum()
        };
        Self {
            requests: sum(&|counters| &counters.requests),
            statuses: std::array::from_fn(|class| sum(&|counters| &counters.statuses[class])),
            failures: sum(&|counters| &counters.failures),
            retries: sum(&|counters| &counters.retries),
            ejections: sum(&|counters| &counters.ejections),
        }
    }

    /// What was counted since it was `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    /// Adds what was counted elsewhere.
    pub(super) fn add(&mut self, other: &Self) {
        *self = self.with(other, u64::saturating_add);
    }

    fn with(&self, other: &Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: join(self.requests, other.requests),
            statuses: std::array::from_fn(|at| join(self.statuses[at], other.statuses[at])),
            failures: join(self.failures, other.failures),
            retries: join(self.retries, other.retries),
            ejections: join(self.ejections, other.ejections),
        }
    }
}
