//! How long a client's connection lasts: so that clients spread anew over the peers after one of them came back,
//! and that what nobody uses is not kept.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::ProxyConfig;

/// By how much of its age a connection ends earlier or later, in percent: those that came together, as after a
/// restart, do not all go together.
const JITTER_PERCENT: u32 = 10;

/// One connection's age and use.
#[derive(Debug)]
pub(crate) struct Lifetime {
    /// When it is asked to end, if ever.
    retires: Option<Instant>,
    last_request: Cell<Instant>,
}

impl Lifetime {
    /// Begins now. `draw` is a random number below `2 * JITTER_PERCENT + 1`.
    pub(crate) fn begin(now: Instant, config: &ProxyConfig, draw: u32) -> Self {
        let percent = 100 - JITTER_PERCENT + draw;
        let age = config.connection_age.map(|age| age * percent / 100);
        Self {
            retires: age.map(|age| now + age),
            last_request: Cell::new(now),
        }
    }

    /// A random number for [`Self::begin`].
    pub(crate) fn draw() -> u32 {
        rand::random_range(0..=2 * JITTER_PERCENT)
    }

    /// A request has come.
    pub(crate) fn used(&self, now: Instant) {
        self.last_request.set(now);
    }

    /// Whether it has lasted long enough.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.retires.is_some_and(|at| now >= at)
    }

    /// When it ends as things stand.
    fn due(&self, now: Instant, busy: bool, config: &ProxyConfig) -> Instant {
        let idle_from = if busy { now } else { self.last_request.get() };
        let unused = idle_from + config.http2_idle;
        self.retires.map_or(unused, |at| at.min(unused))
    }
}

/// Tells when an HTTP/2 connection is to end. HTTP/1 needs no timer for it: an answer says so, and one that is
/// idle is ended by the wait for its next head.
#[derive(Debug)]
pub(crate) struct Retirement {
    timer: Pin<Box<Sleep>>,
    told: bool,
    /// Whether nothing ran when it was looked at last.
    quiet: bool,
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Take no more requests, and end after those that run.
    Finish,
    /// End at once.
    Cut,
}

impl Retirement {
    pub(crate) fn new(lifetime: &Lifetime, config: &ProxyConfig) -> Self {
        let due = lifetime.due(Instant::now(), false, config);
        Self {
            timer: Box::pin(sleep_until(due)),
            told: false,
            quiet: false,
        }
    }

    /// Ready when there is something to do: to finish, and if that takes long, to cut. Without a grace it may take as
    /// long as its requests do. What is there without any has a client that takes nothing.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        lifetime: &Lifetime,
        busy: impl Fn() -> bool,
        config: &ProxyConfig,
    ) -> Poll<Due> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let busy = busy();
            let due = lifetime.due(now, busy, config);
            if self.told {
                if config.connection_age_grace.is_some() || self.quiet && !busy {
                    return Poll::Ready(Due::Cut);
                }
                self.quiet = !busy;
                self.timer.as_mut().reset(now + config.http2_idle);
            } else if due > now {
                self.timer.as_mut().reset(due);
            } else {
                self.told = true;
                let wait = config.connection_age_grace.unwrap_or(config.http2_idle);
                self.timer.as_mut().reset(now + wait);
                let _ = self.timer.as_mut().poll(cx);
                return Poll::Ready(Due::Finish);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    fn config() -> ProxyConfig {
        ProxyConfig {
            connection_age: Some(Duration::from_secs(1000)),
            connection_age_grace: Some(Duration::from_secs(50)),
            http2_idle: Duration::from_secs(100),
            ..ProxyConfig::default()
        }
    }

    #[test]
    fn ages_spread_by_a_tenth_either_way() {
        let now = Instant::now();
        let over = |draw, after| {
            let lifetime = Lifetime::begin(now, &config(), draw);
            lifetime.is_over(now + Duration::from_secs(after))
        };
        assert!(!over(0, 899) && over(0, 900));
        assert!(!over(20, 1099) && over(20, 1100));
        let mut ageless = config();
        ageless.connection_age = None;
        let lifetime = Lifetime::begin(now, &ageless, 0);
        assert!(!lifetime.is_over(now + Duration::from_secs(10 * 365 * 86_400)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_connection_ends_and_a_used_one_lasts_its_age() {
        let config = config();
        let start = Instant::now();
        for (busy, seconds) in [(false, 100), (true, 1000)] {
            let begin = Instant::now();
            let lifetime = Lifetime::begin(begin, &config, JITTER_PERCENT);
            let mut retirement = Retirement::new(&lifetime, &config);
            let due = poll_fn(|cx| retirement.poll(cx, &lifetime, || busy, &config)).await;
            assert_eq!(due, Due::Finish);
            assert_eq!(begin.elapsed(), Duration::from_secs(seconds));
            let due = poll_fn(|cx| retirement.poll(cx, &lifetime, || busy, &config)).await;
            assert_eq!(due, Due::Cut);
            assert_eq!(begin.elapsed(), Duration::from_secs(seconds + 50));
        }
        assert_eq!(start.elapsed(), Duration::from_secs(1200));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_grace_requests_run_on_and_nothing_else_does() {
        let mut config = config();
        config.connection_age_grace = None;
        let start = Instant::now();
        let lifetime = Lifetime::begin(start, &config, JITTER_PERCENT);
        let mut retirement = Retirement::new(&lifetime, &config);
        let due = poll_fn(|cx| retirement.poll(cx, &lifetime, || true, &config)).await;
        assert_eq!((due, start.elapsed().as_secs()), (Due::Finish, 1000));
        let runs = || start.elapsed() < Duration::from_secs(10_050);
        let due = poll_fn(|cx| retirement.poll(cx, &lifetime, runs, &config)).await;
        assert_eq!((due, start.elapsed().as_secs()), (Due::Cut, 10_200));
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_begins_the_idle_time_anew() {
        let config = config();
        let start = Instant::now();
        let lifetime = Lifetime::begin(start, &config, JITTER_PERCENT);
        let mut retirement = Retirement::new(&lifetime, &config);
        lifetime.used(start + Duration::from_secs(70));
        poll_fn(|cx| retirement.poll(cx, &lifetime, || false, &config)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(170));
    }
}
