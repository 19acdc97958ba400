//! Time as the replicated log knows it.

use std::fmt;
use std::time::Duration;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Milliseconds of agreed time, from zero when the cluster was made: what everything that expires is
/// measured with.
///
/// A leader stamps it into each entry, and applying an entry never turns it back. It runs while a leader
/// writes, no faster than time itself, whatever the wall clocks of successive leaders say; it may have stood
/// still while there was none. Only differences mean anything.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct LogTime(pub u64);

impl LogTime {
    /// How long before `self` the time `earlier` was; zero if it was not before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The time `after` later, saturating.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Milliseconds since the Unix epoch by the clock of the leader that wrote an entry: for people to read.
/// Nothing is decided by it, and it may go back from one leader to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The time `after` later, saturating.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }

    /// The time `before` earlier; the epoch if that is before it.
    #[must_use]
    pub fn minus(self, before: Duration) -> Self {
        let ms = u64::try_from(before.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(ms))
    }
}

/// A moment in the log: by agreed time for decisions, by the wall clock for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Stamp {
    /// By agreed time.
    pub log: LogTime,
    /// By the wall clock of the leader that wrote the entry.
    pub wall: WallTime,
}
