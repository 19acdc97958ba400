//! The clock that a leader stamps entries with: agreed time, carried on.
//!
//! Agreed time runs no faster than time itself, on whichever peer leads, so that nothing expires early. Each
//! peer remembers when it applied the newest stamp of another leader, on its own clock since boot (which
//! counts time asleep, and nobody sets). When it leads itself, what has passed since then is added to that
//! stamp. The stamp was made before it was applied here, so the sum is never ahead of what the former leader
//! would say now; it is behind by what the entry took to come. Wall clocks take no part.
//!
//! Three rules make that hold from leader to leader:
//! - A leader stamps nothing before it has applied an entry of its own term, and with it every stamp before.
//! - It does not start over from its own stamps, or each would lose the time that writing it took. It does
//!   from those of any other, even one that is behind what it would say itself: what was lost stays lost.
//! - The first stamp of a reign is later than every stamp before, by which the others know to start over from it.
//!
//! So agreed time stands still while nobody leads only if every peer has restarted meanwhile, since a process
//! begins with the stamp it finds on disk. An expiry may come late by that; it never comes early.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raftserve_model::{LogTime, NodeId};
use raftserve_store::entry::LogId;

use crate::clock;

/// What a peer takes the agreed time to be.
#[derive(Debug)]
pub(crate) struct LogClock(Mutex<Reckoning>);

impl LogClock {
    /// The clock of peer `me`, whose state ends with `last` at `time`.
    pub(crate) fn new(me: NodeId, (last, time): (Option<LogId>, LogTime)) -> Self {
        let reckoning = Reckoning::new(me, last, time, clock::boot_time());
        Self(Mutex::new(reckoning))
    }

    fn reckoning(&self) -> MutexGuard<'_, Reckoning> {
        // Each change is one assignment after another, all of them of one observation.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of the state, which ends with `last` at `time`.
    pub(crate) fn observe(&self, (last, time): (Option<LogId>, LogTime)) {
        let mut reckoning = self.reckoning();
        // Read under the lock, so that observations are in the order of their times.
        reckoning.observe(last, time, clock::boot_time());
    }

    /// The agreed time now.
    pub(crate) fn now(&self) -> LogTime {
        self.reckoning().now(clock::boot_time())
    }

    /// The time for an entry of `term`, which this peer leads; none while it does not know every stamp before
    /// that term, or no millisecond has passed since the last of them.
    pub(crate) fn stamp(&self, term: u64) -> Option<LogTime> {
        self.reckoning().stamp(term, clock::boot_time())
    }
}

/// Agreed time reckoned from what was applied. Times are since boot.
#[derive(Debug)]
struct Reckoning {
    me: NodeId,
    /// The newest stamp of another leader, or what was on disk.
    base: LogTime,
    /// When that was applied here, or later.
    based_at: Duration,
    /// The state's time as last observed: `base`, or a stamp of this peer's own.
    seen: LogTime,
    /// The term of the last entry observed.
    term: u64,
    /// The last term in which this peer stamped.
    reign: u64,
}

impl Reckoning {
    fn new(me: NodeId, last: Option<LogId>, time: LogTime, now: Duration) -> Self {
        Self {
            me,
            base: time,
            based_at: now,
            seen: time,
            term: last.map_or(0, |last| last.term),
            reign: 0,
        }
    }

    fn observe(&mut self, last: Option<LogId>, time: LogTime, now: Duration) {
        let Some(last) = last else { return };
        // An entry of this peer's own term follows all stamps of others, and the first one was observed
        // before this peer stamped anything.
        let own = last.node == self.me && last.term == self.term;
        // One of an earlier life of this process may be ahead of what this one reckons.
        let ahead = time > self.now(now);
        if time > self.seen && (!own || ahead) {
            self.base = time;
            self.based_at = now;
        }
        self.seen = self.seen.max(time);
        self.term = last.term;
    }

    fn stamp(&mut self, term: u64, now: Duration) -> Option<LogTime> {
        let time = self.now(now);
        if self.term != term || (self.reign != term && time <= self.seen) {
            return None;
        }
        self.reign = term;
        Some(time)
    }

    fn now(&self, now: Duration) -> LogTime {
        let passed = now.saturating_sub(self.based_at);
        self.base.plus(passed).max(self.seen)
    }
}

#[cfg(test)]
mod tests;
