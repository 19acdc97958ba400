//! Maglev's lookup table.

use raftserve_model::ReplicaId;

use super::hash::hash;
use super::table::{REPLICAS_MAX, identity};

/// The slots of the table, a prime: of the paper's two sizes that which gives each of six hundred endpoints a hundred
/// slots and more, so that shares differ by at most a percent, and which takes 128 KiB.
const SLOTS: usize = 65_537;

/// The slots where there are more endpoints than a hundredth of [`SLOTS`]: the paper's large size.
const SLOTS_LARGE: usize = 655_373;

const OFFSET_SEED: u64 = 0x6f66_6673_6574;
const SKIP_SEED: u64 = 0x736b_6970;
const FREE: u16 = u16::MAX;

/// The lookup table of Eisenbud et al., "Maglev", NSDI 2016, section 3.4.
///
/// Promise: with equal endpoints, equal keys meet equal endpoints on all peers, whatever the loads; each endpoint has the
/// same number of slots, to one. Where an endpoint joins or leaves, its slots move, and few others: a pick costs one
/// look, evenness is bought with some further moves. In a minority the endpoints are those last agreed: keys stay.
#[derive(Debug)]
pub struct Maglev {
    slots: Vec<u16>,
    count: usize,
}

impl Maglev {
    /// The table of these endpoints; picks are indices of this list.
    #[must_use]
    pub fn new(endpoints: &[ReplicaId]) -> Self {
        let endpoints = &endpoints[..endpoints.len().min(REPLICAS_MAX)];
        let count = endpoints.len();
        let size = match count * 100 > SLOTS {
            true => SLOTS_LARGE,
            false => SLOTS,
        };
        let mut preferences: Vec<Preference> = endpoints
            .iter()
            .map(|replica| Preference::of(*replica, size))
            .collect();
        let mut slots = if count == 0 {
            Vec::new()
        } else {
            vec![FREE; size]
        };
        let mut filled = 0;
        while filled < slots.len() {
            for (preference, owner) in preferences.iter_mut().zip(0..) {
                if filled == size {
                    break;
                }
                while slots[preference.next] != FREE {
                    preference.advance(size);
                }
                slots[preference.next] = owner;
                filled += 1;
            }
        }
        Self { slots, count }
    }

    /// The endpoint of `key`; if that is no candidate, the first of those of the following slots, each of which has any
    /// neighbour as likely as any other.
    #[must_use]
    pub fn pick(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.slots.len();
        if size == 0 {
            return None;
        }
        let at = usize::try_from(key % size as u64).expect("below the size");
        let near = self.slots[at..].iter().chain(&self.slots[..at]);
        // Each further look fails as often as endpoints are left out; after these, hardly any is left.
        let near = near.take(8 * self.count).map(|owner| usize::from(*owner));
        let mut near = near.filter(|&index| usable(index));
        near.next()
            .or_else(|| (0..self.count).find(|&index| usable(index)))
    }
}

/// In which order an endpoint wants the slots: a permutation, since the size is prime.
struct Preference {
    next: usize,
    skip: usize,
}

impl Preference {
    fn of(replica: ReplicaId, size: usize) -> Self {
        let id = identity(replica);
        let below = |seed, bound: usize| {
            usize::try_from(hash(seed, &id) % bound as u64).expect("below the bound")
        };
        Self {
            next: below(OFFSET_SEED, size),
            skip: below(SKIP_SEED, size - 1) + 1,
        }
    }

    fn advance(&mut self, size: usize) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{key, replicas};
    use super::*;

    fn shares(table: &Maglev) -> Vec<usize> {
        let mut shares = vec![0; table.count];
        for owner in &table.slots {
            shares[usize::from(*owner)] += 1;
        }
        shares
    }

    #[test]
    fn sizes_are_prime() {
        for size in [SLOTS, SLOTS_LARGE] {
            let divisor = (2..).take_while(|n| n * n <= size).find(|n| size % n == 0);
            assert_eq!(divisor, None, "{size}");
        }
    }

    #[test]
    fn it_is_the_same_table_everywhere_and_for_ever() {
        let table = Maglev::new(&replicas(1..=5));
        let picks: Vec<_> = (0..12).map(|n| table.pick(key(n), |_| true)).collect();
        assert_eq!(picks, KNOWN.map(Some));
    }

    const KNOWN: [usize; 12] = [0, 2, 0, 4, 0, 1, 0, 2, 1, 3, 2, 1];

    #[test]
    fn a_table_without_endpoints_has_no_pick() {
        assert_eq!(Maglev::new(&[]).pick(1, |_| true), None);
    }

    #[test]
    fn many_endpoints_have_even_shares_too() {
        let shares = shares(&Maglev::new(&replicas(1..=2_000)));
        let (least, most) = (shares.iter().min(), shares.iter().max());
        assert_eq!((least, most), (Some(&327), Some(&328)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn each_has_the_same_number_of_slots_to_one(count in 1..200_u32) {
            let shares = shares(&Maglev::new(&replicas(1..=count)));
            let (least, most) = (shares.iter().min().expect("some"), shares.iter().max().expect("some"));
            prop_assert!(most - least <= 1, "{} to {}", least, most);
        }

        #[test]
        fn few_keys_move_beside_those_of_one_that_left_or_came(count in 2..60_u32, gone in any::<u32>()) {
            let gone = gone % count + 1;
            let all = replicas(1..=count);
            let rest = replicas((1..=count).filter(|number| *number != gone));
            let (with, without) = (Maglev::new(&all), Maglev::new(&rest));
            let moved = with
                .slots
                .iter()
                .zip(&without.slots)
                .filter(|(before, after)| all[usize::from(**before)] != rest[usize::from(**after)])
                .count();
            // What it had, and a slack of four percent of all.
            prop_assert!(moved <= SLOTS / count as usize + SLOTS / 25 + 1, "{} of {}", moved, count);
        }

        #[test]
        fn a_pick_is_a_candidate_and_found_if_there_is_one(
            usable in proptest::collection::vec(any::<bool>(), 0..40), n in any::<u64>(),
        ) {
            let count = u32::try_from(usable.len()).expect("few");
            let pick = Maglev::new(&replicas(1..=count)).pick(key(n), |index| usable[index]);
            prop_assert_eq!(pick.is_some(), usable.contains(&true));
            prop_assert!(pick.is_none_or(|index| usable[index]));
        }
    }
}
