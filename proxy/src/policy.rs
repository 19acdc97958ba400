//! The policies that pick an endpoint for a request that no session binds: pure functions of what
//! they are shown, so that equal inputs give equal picks.
//!
//! Each says what it promises, and what is left of that in a minority: a peer that has lost touch with the others
//! goes on with the endpoints that were last agreed, and hears no loads.

mod ewma;
mod hash;
mod maglev;
mod ring;
mod smooth;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

pub use ewma::PeakEwma;
pub use hash::hash;
pub use maglev::Maglev;
pub use ring::{LOAD_FREE, Ring, load_bound};
pub use smooth::Smooth;
pub use table::HashTable;

/// Up to this many candidates, `least_load` looks at each; it costs a few nanoseconds apiece. Beyond
/// it two are drawn, so that a pick costs the same in a service of ten thousand replicas.
pub const FULL_SCAN_MAX: usize = 64;

/// The first candidate at or after `start`, going round. `None` if there is none.
///
/// `usable` says whether the endpoint at an index is a candidate.
#[must_use]
pub fn round_robin(count: usize, start: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
    around(count, start).find(|&index| usable(index))
}

/// The candidate with the least load; of several, the first at or after `start`, going round.
///
/// Promise (L1): the load is this peer's own requests, exact, plus what the others last reported, at
/// most half a second old. Joining the shortest queue on stale counts alone would herd; here each
/// dispatcher's own arrivals show at once in its own view and its `start` rotates, which is what
/// keeps local-view shortest queue stable (Vargaftik, Keslassy, Orda: "LSQ", INFOCOM 2020). In a
/// minority the reports run out and the pick is by own load alone: coarser, never wrong.
///
/// With more than [`FULL_SCAN_MAX`] endpoints the lesser of two drawn ones is taken (Mitzenmacher,
/// "The Power of Two Choices in Randomized Load Balancing", 2001), which also tolerates stale
/// counts; `draw` is a uniformly random number. If neither drawn is a candidate, all are looked at.
#[must_use]
pub fn least_load<L: Ord>(
    count: usize,
    start: usize,
    draw: u64,
    load: impl Fn(usize) -> L,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    if count > FULL_SCAN_MAX {
        let drawn = two_of(count, draw);
        let least = drawn
            .into_iter()
            .filter(|&index| usable(index))
            .min_by_key(|&index| load(index));
        if least.is_some() {
            return least;
        }
    }
    around(count, start)
        .filter(|&index| usable(index))
        .min_by_key(|&index| load(index))
}

/// The cheaper of two drawn candidates (Mitzenmacher 2001). If neither of the two is a candidate, the next one is
/// that is.
///
/// Promise (P2C): a pick costs the same whatever their number, and no more than half of the dispatchers' picks go to
/// one endpoint however stale what they know is. `cost` is meant to be [`PeakEwma::cost`]: what this worker has
/// measured, and the requests in flight of all peers. In a minority it is what this peer has measured alone.
#[must_use]
pub fn p2c(
    count: usize,
    draw: u64,
    cost: impl Fn(usize) -> u64,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    if count > 1 {
        let [one, other] = two_of(count, draw);
        match (usable(one), usable(other)) {
            (true, true) if cost(other) < cost(one) => return Some(other),
            (true, _) => return Some(one),
            (false, true) => return Some(other),
            (false, false) => {}
        }
    }
    let start = usize::try_from(draw >> 32).unwrap_or(0);
    round_robin(count, start, usable)
}

/// A load beside what its bearer can take: `instance_aware_least_load` compares these, where `least_load` compares
/// loads.
#[derive(Clone, Copy, Debug)]
pub struct Relative {
    /// Requests in flight.
    pub load: u64,
    /// What it can take beside the others; at least 1.
    pub weight: u32,
}

impl Ord for Relative {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = u128::from(self.load) * u128::from(other.weight);
        let theirs = u128::from(other.load) * u128::from(self.weight);
        mine.cmp(&theirs)
    }
}

impl PartialOrd for Relative {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Relative {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Relative {}

/// The indices of `count` endpoints, from `start` on, going round once.
fn around(count: usize, start: usize) -> impl Iterator<Item = usize> {
    let first = start.checked_rem(count).unwrap_or(0);
    (first..count).chain(0..first)
}

/// Two different indices below `count` (at least 2), from one random number.
fn two_of(count: usize, draw: u64) -> [usize; 2] {
    let below = |half: u64, bound: usize| {
        // A bias below count / 2^32 is of no matter for balancing.
        usize::try_from(((half & 0xffff_ffff) * bound as u64) >> 32).unwrap_or(0)
    };
    let one = below(draw >> 32, count);
    let other = below(draw, count - 1);
    [one, if other >= one { other + 1 } else { other }]
}
