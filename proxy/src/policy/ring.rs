//! Consistent hashing with bounded loads.

use raftserve_model::ReplicaId;

use super::hash::hash;
use super::table::{REPLICAS_MAX, identity};

/// The points of each endpoint on the ring: shares then differ by some nine percent (one over the root of it), and the
/// ring of ten thousand endpoints takes ten megabytes.
const POINTS_EACH: u64 = 128;

/// Hashes of points begin here; those of keys with other seeds.
const POINT_SEED: u64 = 0x7269_6e67;

/// The low bits of a point, which say whose it is.
const INDEX_BITS: u32 = 16;

/// Up to this many requests in flight at an endpoint its keys stay there, whatever the others have: with a handful of
/// requests the bound of the paper is one or two, and every key would wander.
pub const LOAD_FREE: u32 = 8;

/// The most requests in flight at one of `count` endpoints that have `total` together, one more being about to come:
/// a quarter above their mean, rounded up, and never below [`LOAD_FREE`].
#[must_use]
pub fn load_bound(total: u64, count: usize) -> u32 {
    let bound = (5 * (total + 1)).div_ceil(4 * (count as u64).max(1));
    u32::try_from(bound).unwrap_or(u32::MAX).max(LOAD_FREE)
}

/// A ring of endpoints (Karger et al., STOC 1997), of whom each takes what is hashed just before its points, within a
/// bounded load (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018).
///
/// Promise (S3): with equal endpoints, and none of them at its bound, equal keys meet equal endpoints on all peers.
/// Where an endpoint joins or leaves, only the keys move that it gets or had: one of R has some 1/R of them. Beyond the
/// bound, keys go to the next endpoint on the ring, the same for all who see the same loads; so no endpoint gets more
/// than a quarter above the mean. In a minority the endpoints are those last agreed, and the loads this peer's own:
/// keys stay where they were, and the bound holds for each side of the partition by itself.
///
/// It departs from the paper in the bound's floor, [`LOAD_FREE`], and in that loads are not exact.
#[derive(Debug)]
pub struct Ring {
    /// Sorted. The high bits are the place on the ring, the low ones the endpoint.
    points: Vec<u64>,
    count: usize,
}

impl Ring {
    /// The ring of these endpoints; picks are indices of this list.
    #[must_use]
    pub fn new(endpoints: &[ReplicaId]) -> Self {
        let endpoints = &endpoints[..endpoints.len().min(REPLICAS_MAX)];
        let mut points: Vec<u64> = endpoints
            .iter()
            .enumerate()
            .flat_map(|(index, replica)| {
                let id = identity(*replica);
                (0..POINTS_EACH).map(move |point| {
                    let place = hash(POINT_SEED ^ point, &id);
                    place >> INDEX_BITS << INDEX_BITS | index as u64
                })
            })
            .collect();
        points.sort_unstable();
        Self {
            points,
            count: endpoints.len(),
        }
    }

    /// The first candidate after `key` that is not at its bound. The bound is that of the candidates among themselves,
    /// who may be few of all: there is always one below it. The others' loads are asked only where the first is busy.
    #[must_use]
    pub fn pick(
        &self,
        key: u64,
        load: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.around(key).find(|&index| usable(index))?;
        if load(first) < LOAD_FREE {
            return Some(first);
        }
        let candidates = (0..self.count).filter(|&index| usable(index));
        let (count, total) = candidates.fold((0, 0), |(count, total), index| {
            (count + 1, total + u64::from(load(index)))
        });
        let bound = load_bound(total, count);
        let below = self
            .around(key)
            .find(|&index| usable(index) && load(index) < bound);
        Some(below.unwrap_or(first))
    }

    /// Whose the points are, from that of `key` on; so each endpoint several times.
    fn around(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|&point| point < key);
        let owner = |&point: &u64| {
            usize::try_from(point & ((1 << INDEX_BITS) - 1)).expect("sixteen bits fit")
        };
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(owner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{key, replicas};
    use super::*;

    fn idle(ring: &Ring, key: u64) -> usize {
        ring.pick(key, |_| 0, |_| true).expect("not empty")
    }

    #[test]
    fn shares_are_near_each_other() {
        let ring = Ring::new(&replicas(1..=10));
        let mut shares = [0_u32; 10];
        for n in 0..100_000 {
            shares[idle(&ring, key(n))] += 1;
        }
        assert!(
            shares.iter().all(|share| (6_500..13_500).contains(share)),
            "{shares:?}"
        );
    }

    #[test]
    fn it_is_the_same_ring_everywhere_and_for_ever() {
        let ring = Ring::new(&replicas(1..=5));
        let picks: Vec<_> = (0..12).map(|n| idle(&ring, key(n))).collect();
        assert_eq!(picks, KNOWN);
    }

    const KNOWN: [usize; 12] = [1, 0, 4, 4, 2, 4, 3, 1, 1, 1, 0, 0];

    #[test]
    fn no_endpoint_goes_beyond_its_bound() {
        let ring = Ring::new(&replicas(1..=8));
        let mut loads = [0_u32; 8];
        // All requests are for three keys, and none ends.
        for n in 0..1_000_u64 {
            let total = loads.iter().map(|load| u64::from(*load)).sum();
            let pick = ring.pick(key(n % 3), |index| loads[index], |_| true);
            loads[pick.expect("not empty")] += 1;
            let bound = load_bound(total, 8);
            assert!(
                loads.iter().all(|load| *load <= bound),
                "{loads:?} of {bound}"
            );
        }
        assert!(loads.iter().all(|load| *load <= 157), "{loads:?}");
    }

    /// As of a canary: two of ten get half of all requests.
    #[test]
    fn the_bound_holds_among_the_candidates_however_few_they_are() {
        let ring = Ring::new(&replicas(1..=10));
        let mut loads = [0_u32; 10];
        for _ in 0..400 {
            let pick = ring.pick(key(1), |index| loads[index], |index| index >= 8);
            loads[pick.expect("not empty")] += 1;
        }
        let canaries = &loads[8..];
        assert_eq!(canaries.iter().sum::<u32>(), 400);
        assert!(canaries.iter().all(|load| *load <= 250), "{canaries:?}");
    }

    #[test]
    fn few_requests_at_once_do_not_move_a_key() {
        let ring = Ring::new(&replicas(1..=3));
        let home = idle(&ring, key(1));
        let loads = |index| match index == home {
            true => LOAD_FREE - 1,
            false => unreachable!("not asked"),
        };
        let pick = ring.pick(key(1), loads, |_| true);
        assert_eq!(pick, Some(home));
    }

    proptest! {
        #[test]
        fn only_the_keys_of_one_that_left_or_came_move(count in 2..30_u32, gone in any::<u32>(), seed in any::<u64>()) {
            let gone = gone % count + 1;
            let all = replicas(1..=count);
            let rest = replicas((1..=count).filter(|number| *number != gone));
            let (with, without) = (Ring::new(&all), Ring::new(&rest));
            let mut moved = 0_u64;
            let keys = 2_000;
            for n in 0..keys {
                let key = key(seed.wrapping_add(n));
                let (before, after) = (all[idle(&with, key)], rest[idle(&without, key)]);
                if before.number == gone {
                    moved += 1;
                } else {
                    prop_assert_eq!(before, after);
                }
            }
            prop_assert!(moved <= keys * 8 / 5 / u64::from(count) + 60, "{} of {}", moved, count);
        }

        #[test]
        fn who_is_left_out_for_now_gives_its_keys_to_those_who_would_get_them_for_good(
            count in 2..20_u32, out in any::<u32>(), n in any::<u64>(),
        ) {
            let out = out % count + 1;
            let all = replicas(1..=count);
            let rest = replicas((1..=count).filter(|number| *number != out));
            let pick = Ring::new(&all).pick(key(n), |_| 0, |index| all[index].number != out);
            prop_assert_eq!(all[pick.expect("one is left")], rest[idle(&Ring::new(&rest), key(n))]);
        }

        #[test]
        fn a_pick_is_a_candidate_and_found_if_there_is_one(
            usable in proptest::collection::vec(any::<bool>(), 0..40), n in any::<u64>(), busy in 0..50_u32,
        ) {
            let count = u32::try_from(usable.len()).expect("few");
            let ring = Ring::new(&replicas(1..=count));
            let pick = ring.pick(key(n), |_| busy, |index| usable[index]);
            prop_assert_eq!(pick.is_some(), usable.contains(&true));
            prop_assert!(pick.is_none_or(|index| usable[index]));
        }
    }
}
