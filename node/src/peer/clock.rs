//! The clock that a leader stamps entries with.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use raftserve_model::LogTime;

use crate::clock;

/// The wall clock at the begin of each reign, and steady from there: an adjustment of the wall clock
/// in the middle of a reign moves no expiry. The state machine sees to it that log time does not go
/// back from one reign to the next.
#[derive(Debug, Default)]
pub(crate) struct ReignClock(Mutex<Option<Reign>>);

#[derive(Clone, Copy, Debug)]
struct Reign {
    term: u64,
    wall: LogTime,
    steady: Instant,
}

impl ReignClock {
    /// The time now, for an entry of `term`; never before `agreed`, the log's own time.
    pub(crate) fn now(&self, term: u64, agreed: LogTime) -> LogTime {
        let mut reign = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // From the agreed time on where the wall clock is behind it: time would stand still until
        // the wall clock has caught up.
        read(&mut reign, term, Instant::now(), || {
            LogTime(clock::unix_ms()).max(agreed)
        })
    }
}

fn read(
    reign: &mut Option<Reign>,
    term: u64,
    now: Instant,
    wall: impl FnOnce() -> LogTime,
) -> LogTime {
    match reign.filter(|reign| reign.term == term) {
        Some(reign) => reign.wall.plus(now.saturating_duration_since(reign.steady)),
        None => {
            let wall = wall();
            *reign = Some(Reign {
                term,
                wall,
                steady: now,
            });
            wall
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_wall_clock_is_read_once_in_a_reign() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut reign = None;
        assert_eq!(read(&mut reign, 4, begin, || LogTime(1000)), LogTime(1000));
        let jumped = || LogTime(9_000_000);
        assert_eq!(read(&mut reign, 4, at(5), jumped), LogTime(1005));
        assert_eq!(read(&mut reign, 5, at(6), || LogTime(1007)), LogTime(1007));
        assert_eq!(read(&mut reign, 5, at(8), jumped), LogTime(1009));
    }
}
