//! What one request is carried by.

use std::time::Duration;

use raftserve_model::spec::{Retries, Timeouts};
use tokio::time::Instant;

use crate::routes::ServiceRoute;
use crate::tracer::Trace;

/// How long a connection that has switched protocols may be silent: those that are in use say something every minute or
/// so, and one whose user has forgotten it holds two connections.
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// A request's timeouts and retries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// The index of the rule that it meets.
    pub(super) rule: Option<usize>,
    timeouts: &'a Timeouts,
    pub(super) retries: &'a Retries,
    /// What holds where the timeouts say nothing.
    route: &'a ServiceRoute,
    /// Where its tries are told, if it is traced.
    pub(super) trace: Option<&'a Trace>,
}

impl<'a> Terms<'a> {
    /// Those of the service, or of the rule that the request meets.
    pub(super) fn of(
        route: &'a ServiceRoute,
        rule: Option<usize>,
        trace: Option<&'a Trace>,
    ) -> Self {
        let met = rule.map(|index| &route.traffic.routes[index]);
        Self {
            rule,
            timeouts: route.timeouts(met),
            retries: route.retries(met),
            route,
            trace,
        }
    }

    /// The longest that a connect may take, if not as long as for all requests of the service.
    pub(super) fn connect(&self) -> Option<Duration> {
        self.route.traffic.routes.get(self.rule?)?.connect_timeout
    }

    /// The largest body that the request may have, in bytes; any without it.
    pub(super) fn body_bytes_max(&self) -> Option<u64> {
        let met = self.rule.map(|index| &self.route.traffic.routes[index]);
        self.route.body_bytes_max(met)
    }

    /// The longest from the request's last byte to the first of its answer.
    pub(super) fn first_byte(&self) -> Duration {
        self.timeouts
            .first_byte
            .unwrap_or(self.route.stream_timeout)
    }

    /// The longest silence within an answer.
    pub(super) fn idle(&self) -> Duration {
        self.timeouts.idle.unwrap_or(self.route.stream_timeout)
    }

    /// The longest that nothing may pass over a connection which has switched protocols.
    pub(super) fn tunnel_idle(&self) -> Duration {
        self.timeouts.tunnel_idle.unwrap_or(TUNNEL_IDLE)
    }

    /// When a request that began at `start` must have been answered whole.
    pub(super) fn deadline(&self, start: Instant) -> Option<Instant> {
        self.timeouts.total.map(|total| start + total)
    }
}
