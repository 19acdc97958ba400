use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[test]
fn round_robin_takes_each_in_turn() {
    let picks: Vec<_> = (0..6)
        .map(|start| round_robin(3, start, |_| true))
        .collect();
    assert_eq!(picks, [0, 1, 2, 0, 1, 2].map(Some));
}

#[test]
fn round_robin_skips_to_the_next_candidate() {
    assert_eq!(round_robin(4, 1, |index| index == 0), Some(0));
    assert_eq!(round_robin(4, 1, |_| false), None);
    assert_eq!(round_robin(0, 7, |_| true), None);
}

#[test]
fn least_load_breaks_ties_by_the_rotating_start() {
    let loads = [1, 0, 5, 0];
    let pick = |start| least_load(4, start, 0, |index| loads[index], |_| true);
    assert_eq!([0, 1, 2, 3, 4].map(pick), [1, 1, 3, 3, 1].map(Some));
}

#[test]
fn with_many_endpoints_the_pick_follows_the_load() {
    let busy = |index: usize| u32::from(index < 50);
    let mut rng = 1_u64;
    let mut picks = HashMap::new();
    for _ in 0..10_000 {
        rng = rng
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let draw = rng ^ (rng >> 29);
        let index = least_load(100, 0, draw, busy, |_| true).expect("there are candidates");
        *picks.entry(busy(index)).or_insert(0) += 1;
    }
    // Both drawn are busy in a quarter of the picks.
    let onto_busy = picks[&1];
    assert!((2_200..2_800).contains(&onto_busy), "{onto_busy}");
}

proptest! {
    #[test]
    fn round_robin_is_fair_over_any_window(count in 1..20_usize, start in any::<u32>(), rounds in 1..10_usize) {
        let mut picks = vec![0; count];
        for step in 0..count * rounds {
            let at = start as usize + step;
            picks[round_robin(count, at, |_| true).expect("there are candidates")] += 1;
        }
        prop_assert!(picks.iter().all(|&times| times == rounds));
    }

    #[test]
    fn a_pick_is_always_a_candidate_and_found_if_there_is_one(
        usable in proptest::collection::vec(any::<bool>(), 0..200), start in any::<usize>(), draw in any::<u64>(), loads in proptest::collection::vec(0..5_u32, 200),
    ) {
        let any = usable.iter().any(|&usable| usable);
        let round = round_robin(usable.len(), start, |index| usable[index]);
        let least = least_load(usable.len(), start, draw, |index| loads[index], |index| usable[index]);
        for pick in [round, least] {
            prop_assert_eq!(pick.is_some(), any);
            prop_assert!(pick.is_none_or(|index| usable[index]));
        }
    }

    #[test]
    fn least_load_is_least_where_all_are_looked_at(
        loads in proptest::collection::vec(0..9_u32, 1..=FULL_SCAN_MAX), start in any::<usize>(), draw in any::<u64>(),
    ) {
        let pick = least_load(loads.len(), start, draw, |index| loads[index], |_| true);
        let pick = pick.expect("there are candidates");
        prop_assert_eq!(Some(&loads[pick]), loads.iter().min());
    }

    #[test]
    fn two_of_draws_two_different_ones(count in 2..10_000_usize, draw in any::<u64>()) {
        let [one, other] = two_of(count, draw);
        prop_assert!(one < count && other < count && one != other);
    }
}
