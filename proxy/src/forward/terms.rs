//! What one request is carried by.

use std::time::Duration;

use raftserve_model::spec::{Retries, Timeouts};
use tokio::time::Instant;

use crate::routes::ServiceRoute;

/// A request's timeouts and retries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// The index of the rule that it meets.
    pub(super) rule: Option<usize>,
    timeouts: &'a Timeouts,
    pub(super) retries: &'a Retries,
    /// What holds where the timeouts say nothing.
    silence: Duration,
}

impl<'a> Terms<'a> {
    /// Those of the service, or of the rule that the request meets.
    pub(super) fn of(route: &'a ServiceRoute, rule: Option<usize>) -> Self {
        let met = rule.map(|index| &route.traffic.routes[index]);
        Self {
            rule,
            timeouts: route.timeouts(met),
            retries: route.retries(met),
            silence: route.stream_timeout,
        }
    }

    /// The longest from the request's last byte to the first of its answer.
    pub(super) fn first_byte(&self) -> Duration {
        self.timeouts.first_byte.unwrap_or(self.silence)
    }

    /// The longest silence within an answer.
    pub(super) fn idle(&self) -> Duration {
        self.timeouts.idle.unwrap_or(self.silence)
    }

    /// When a request that began at `start` must have been answered whole.
    pub(super) fn deadline(&self, start: Instant) -> Option<Instant> {
        self.timeouts.total.map(|total| start + total)
    }
}
