//! Tells that this peer itself can open no connection, at a bounded rate: every request may meet it.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raftserve_model::ReplicaId;
use tokio::time::Instant;

/// How often it is told at most.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// This peer's lack of files, memory or ports for connections to replicas, as the log tells it.
#[derive(Debug, Default)]
pub struct Lack(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// How many connections have failed so since.
    untold: u64,
}

impl Lack {
    /// A connection to `replica` could not be opened, and why.
    pub fn met(&self, replica: ReplicaId, error: &dyn Error) {
        if let Some(untold) = self.next(Instant::now()) {
            let error = error.source().unwrap_or(error);
            tracing::warn!(
                %replica,
                %error,
                untold,
                "this peer cannot open connections; no replica is blamed; see its limit of open files \
                 (ulimit -n) and its range of ports (net.ipv4.ip_local_port_range)"
            );
        }
    }

    /// How many were not told before this one, if it is to be told.
    fn next(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| now < last + TOLD_EVERY) {
            told.untold += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_then_no_more_often_than_the_log_can_bear() {
        let lack = Lack::default();
        let start = Instant::now();
        assert_eq!(lack.next(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(lack.next(start + TOLD_EVERY / 2), None);
        }
        assert_eq!(lack.next(start + TOLD_EVERY), Some(1000));
        assert_eq!(lack.next(start + TOLD_EVERY * 3), Some(0));
    }
}
