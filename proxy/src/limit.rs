//! A time limit that moves with every request and costs none of them a timer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// The limit of one thing after the other. Its timer is left armed at an earlier end, and moved on only when it
/// fires: that costs a wake in a minute instead of a timer for each request.
#[derive(Debug)]
pub(crate) struct Limit {
    end: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Limit {
    pub(crate) fn new(end: Instant) -> Self {
        let timer = Box::pin(sleep_until(end));
        Self { end, timer }
    }

    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    pub(crate) fn set(&mut self, end: Instant) {
        self.end = end;
        if end < self.timer.deadline() {
            self.timer.as_mut().reset(end);
        }
    }

    /// Moves the end nearer, if it is farther.
    pub(crate) fn shorten(&mut self, end: Instant) {
        self.set(end.min(self.end));
    }

    /// Ready once the end is there.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= self.end {
                return Poll::Ready(());
            }
            let end = self.end;
            self.timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_end_that_was_set_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (ends, expected) in [
            (&[60, 120][..], 120),
            (&[60, 120, 30], 30),
            (&[60, 10, 90], 90),
            (&[60], 60),
        ] {
            let now = Instant::now();
            let mut limit = Limit::new(now + (at(ends[0]) - start));
            for end in &ends[1..] {
                let _ = std::future::poll_fn(|cx| Poll::Ready(limit.poll(cx))).await;
                limit.set(now + (at(*end) - start));
            }
            poll_fn(|cx| limit.poll(cx)).await;
            assert_eq!(now.elapsed(), Duration::from_secs(expected), "{ends:?}");
        }
    }
}
