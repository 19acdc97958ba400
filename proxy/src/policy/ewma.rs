//! How long an endpoint takes, as one worker has seen it.

use std::time::Duration;

use tokio::time::Instant;

/// After how long what was seen counts for a third: as long as in Finagle, from which the idea is.
const DECAY: Duration = Duration::from_secs(10);

/// What each request in flight costs at an endpoint that has not answered yet, in nanoseconds: it gets one request,
/// and more only where all others are slower than this.
const UNSEEN_COST: u64 = 1_000_000_000;

/// The time to the first byte of an answer: rises at once to the longest that was seen, and falls slowly
/// (Finagle's peak EWMA). So a replica that turns slow is avoided after one answer, and is tried again as what was
/// seen of it fades. It knows no clock: each call says when it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma {
    nanos: f64,
    at: Option<Instant>,
}

impl PeakEwma {
    /// An answer, or a failure, took so long.
    pub fn observe(&mut self, took: Duration, now: Instant) {
        let took = nanos(took);
        let before = self.nanos;
        self.nanos = match self.at {
            Some(at) if took < before => {
                let kept = fading(at, now);
                before * kept + took * (1.0 - kept)
            }
            _ => took,
        };
        self.at = Some(now);
    }

    /// What one more request costs beside `load` others: their number times what each takes.
    #[must_use]
    pub fn cost(&self, load: u32, now: Instant) -> u64 {
        let Some(at) = self.at else {
            return u64::from(load) * UNSEEN_COST;
        };
        let each = self.nanos * fading(at, now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "above zero, and the largest number stands for all larger ones"
        )]
        let cost = (each * (f64::from(load) + 1.0)) as u64;
        cost
    }
}

fn fading(since: Instant, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(since);
    (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let now = Instant::now();
        let mut seen = PeakEwma::default();
        seen.observe(10 * MS, now);
        assert_eq!(seen.cost(0, now), 10_000_000);
        assert_eq!(seen.cost(4, now), 50_000_000);
        seen.observe(200 * MS, now + MS);
        assert_eq!(seen.cost(0, now + MS), 200_000_000);
        seen.observe(10 * MS, now + 2 * MS);
        let after = seen.cost(0, now + 2 * MS);
        assert!((199_000_000..200_000_000).contains(&after), "{after}");
        let mut at = now;
        for _ in 0..100 {
            at += 500 * MS;
            seen.observe(10 * MS, at);
        }
        let later = seen.cost(0, at);
        assert!((10_000_000..12_000_000).contains(&later), "{later}");
    }

    #[test]
    fn what_was_seen_fades_so_that_it_is_tried_again() {
        let now = Instant::now();
        let mut seen = PeakEwma::default();
        seen.observe(1000 * MS, now);
        let faded = seen.cost(0, now + 10 * DECAY);
        assert!(faded < 100_000, "{faded}");
    }

    #[test]
    fn one_that_was_never_seen_gets_one_request() {
        let now = Instant::now();
        let unseen = PeakEwma::default();
        let mut fast = PeakEwma::default();
        fast.observe(MS, now);
        assert!(unseen.cost(0, now) < fast.cost(0, now));
        assert!(unseen.cost(1, now) > fast.cost(10, now));
    }
}
