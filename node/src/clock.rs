//! The clocks of the shell. Nothing that decides reads a clock; it is passed the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftserve_model::WallTime;
use rustix::time::{ClockId, clock_gettime};

use crate::access::UnixSeconds;

/// How a peer reads the wall clock.
pub type WallClock = fn() -> WallTime;

/// The wall clock, for what people read in log entries.
#[must_use]
pub fn wall_now() -> WallTime {
    WallTime(unix_ms())
}

/// Milliseconds since the Unix epoch, for what people read.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the wall clock is read, for people to read"
)]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// Seconds since the Unix epoch, until which tokens are good. A token that ends a little early or late does no harm.
#[must_use]
pub fn unix_seconds() -> UnixSeconds {
    UnixSeconds(unix_ms() / 1_000)
}

/// Time since boot, time asleep included: what leases are measured with, since a suspended machine's
/// lease runs out all the same.
#[must_use]
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
