//! What one worker thinks of a replica, by its own requests alone: whether it is left out, and how much of its
//! share it gets while it is new.

#[cfg(test)]
mod tests;

use std::time::Duration;

use raftserve_model::spec::Ejection;
use tokio::time::Instant;

/// The share that a replica begins with, in thousandths: enough that its caches warm up, and that a service all
/// of whose replicas are new does not stand still.
const SHARE_MIN: u32 = 100;

/// The whole share, in thousandths.
pub(crate) const SHARE_FULL: u32 = 1000;

/// The most doublings of an ejection's length; the settings bound it long before.
const DOUBLINGS_MAX: u32 = 16;

/// Whether a replica may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// As any other.
    Fit,
    /// Its requests failed: left out, unless so many are that their failures say nothing of the replicas.
    Ejected,
    /// It refused a connection: left out while there is any other, however many are.
    Unreachable,
}

/// Why a replica is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Errors,
    Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may be picked; so many requests have failed in a row.
    In { errors: u32 },
    /// It is left out until then, and after that until one request tries it.
    Out { cause: Cause, until: Instant },
    /// One request tries it. Should that never end, another one does at this time.
    Trial { cause: Cause, until: Instant },
}

/// One replica's health. It knows no clock: each call says when it is.
#[derive(Debug)]
pub(crate) struct Health {
    state: State,
    /// How often in a row it was ejected, without a success in between.
    ejections: u32,
    /// When it became ready here, while it may still come up to its full share.
    ready_since: Option<Instant>,
}

impl Health {
    /// Of a replica that has just become ready here.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::In { errors: 0 },
            ejections: 0,
            ready_since: Some(now),
        }
    }

    /// Whether it may be picked.
    pub(crate) fn fitness(&self, now: Instant) -> Fitness {
        match self.state {
            State::Out { cause, until } | State::Trial { cause, until } if now < until => {
                match cause {
                    Cause::Errors => Fitness::Ejected,
                    Cause::Refusal => Fitness::Unreachable,
                }
            }
            State::In { .. } | State::Out { .. } | State::Trial { .. } => Fitness::Fit,
        }
    }

    /// Whether nothing sets it apart from a replica that never failed and is not new.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.state, State::In { .. }) && self.ready_since.is_none()
    }

    /// What it gets of its share, in thousandths: rises evenly over `slow_start`.
    pub(crate) fn share(&mut self, now: Instant, slow_start: Duration) -> u32 {
        let Some(since) = self.ready_since else {
            return SHARE_FULL;
        };
        let passed = now.saturating_duration_since(since);
        if passed >= slow_start {
            self.ready_since = None;
            return SHARE_FULL;
        }
        let risen = passed.as_millis() * u128::from(SHARE_FULL) / slow_start.as_millis().max(1);
        u32::try_from(risen).map_or(SHARE_FULL, |risen| risen.clamp(SHARE_MIN, SHARE_FULL))
    }

    /// It was picked. The first request after an ejection is the only one until its end is known.
    pub(crate) fn picked(&mut self, now: Instant, settings: &Ejection) {
        if let State::Out { cause, until } | State::Trial { cause, until } = self.state
            && until <= now
        {
            let until = now + settings.base;
            self.state = State::Trial { cause, until };
        }
    }

    /// It accepted a connection.
    pub(crate) fn connected(&mut self) {
        if let State::Out { cause, .. } | State::Trial { cause, .. } = self.state
            && cause == Cause::Refusal
        {
            self.state = State::In { errors: 0 };
        }
    }

    /// It refused a connection. True if it is left out from now on, and was not before.
    pub(crate) fn refused(&mut self, now: Instant, settings: &Ejection) -> bool {
        self.eject(now, Cause::Refusal, settings)
    }

    /// It answered a request.
    pub(crate) fn succeeded(&mut self) {
        match self.state {
            State::In { .. } | State::Trial { .. } => {
                self.state = State::In { errors: 0 };
                self.ejections = 0;
            }
            // A request from before it was ejected says nothing of what it does now.
            State::Out { .. } => {}
        }
    }

    /// It failed a request. True if it is ejected by that.
    pub(crate) fn failed(&mut self, now: Instant, settings: &Ejection) -> bool {
        if settings.consecutive_errors == 0 {
            return false;
        }
        match self.state {
            State::In { errors } => {
                let errors = errors + 1;
                self.state = State::In { errors };
                errors >= settings.consecutive_errors && self.eject(now, Cause::Errors, settings)
            }
            State::Trial { .. } => self.eject(now, Cause::Errors, settings),
            State::Out { .. } => false,
        }
    }

    fn eject(&mut self, now: Instant, cause: Cause, settings: &Ejection) -> bool {
        if matches!(self.state, State::Out { until, .. } if now < until) {
            return false;
        }
        let factor = 1 << self.ejections.min(DOUBLINGS_MAX);
        let length = settings.base.saturating_mul(factor).min(settings.max);
        self.ejections += 1;
        let until = now + length;
        self.state = State::Out { cause, until };
        true
    }
}

/// Whether so many of `ready` replicas are out that ejections for errors are ignored.
pub(crate) fn is_panic(out: usize, ready: usize, settings: &Ejection) -> bool {
    let percent = usize::try_from(settings.panic_percent).unwrap_or(usize::MAX);
    out.saturating_mul(100) > ready.saturating_mul(percent)
}
