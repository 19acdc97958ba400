use std::collections::HashMap;

use proptest::prelude::*;
use raftserve_model::{ReplicaId, ServiceId};

use super::*;

/// Endpoints of one service.
pub(super) fn replicas(numbers: impl IntoIterator<Item = u32>) -> Vec<ReplicaId> {
    let service = ServiceId(7);
    numbers
        .into_iter()
        .map(|number| ReplicaId { service, number })
        .collect()
}

/// The hash of some key.
pub(super) fn key(n: u64) -> u64 {
    hash(0, &n.to_le_bytes())
}

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

#[test]
fn p2c_takes_the_cheaper_of_two_and_finds_the_only_one() {
    let costs = [9, 1];
    for draw in [0, u64::MAX, 1 << 63, 0x1234_5678_9abc_def0] {
        assert_eq!(p2c(2, draw, |index| costs[index], |_| true), Some(1));
        assert_eq!(p2c(2, draw, |_| 0, |index| index == 0), Some(0));
        assert_eq!(p2c(50, draw, |_| 0, |index| index == 17), Some(17));
        assert_eq!(p2c(1, draw, |_| 0, |_| true), Some(0));
        assert_eq!(p2c(0, draw, |_| 0, |_| true), None);
    }
}

#[test]
fn the_dearest_of_all_is_never_taken_under_p2c() {
    let mut picks = [0_u32; 4];
    let mut rng = 7_u64;
    for _ in 0..12_000 {
        rng = hash(rng, b"draw");
        let pick = p2c(4, rng, |index| index as u64, |_| true).expect("there are candidates");
        picks[pick] += 1;
    }
    // Pairs of four: the cheapest is in half of them, the dearest wins none.
    let expected = [6_000_u32, 4_000, 2_000, 0];
    for (picks, expected) in picks.iter().zip(expected) {
        assert!(picks.abs_diff(expected) < 250, "{picks:?}");
    }
}

#[test]
fn relative_loads_compare_as_fractions() {
    let relative = |load, weight| Relative { load, weight };
    assert!(relative(3, 4_000) < relative(1, 1_000));
    assert_eq!(relative(4, 4_000), relative(1, 1_000));
    assert_eq!(relative(0, 1), relative(0, 1_000));
    assert!(relative(u64::MAX, 1) > relative(u64::MAX, u32::MAX));
    // An instance that can take four times as much gets four times as much.
    let weights = [4_000, 1_000];
    let mut loads = [0_u64; 2];
    for start in 0..50 {
        let load = |index: usize| relative(loads[index], weights[index]);
        let pick = least_load(2, start, 0, load, |_| true).expect("there are candidates");
        loads[pick] += 1;
    }
    assert_eq!(loads, [40, 10]);
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
    fn p2c_finds_a_candidate_if_there_is_one_and_never_the_dearest_of_all(
        usable in proptest::collection::vec(any::<bool>(), 0..50), draw in any::<u64>(), costs in proptest::collection::vec(0..5_u64, 50),
    ) {
        let candidates = || (0..usable.len()).filter(|&index| usable[index]);
        let pick = p2c(usable.len(), draw, |index| costs[index], |index| usable[index]);
        prop_assert_eq!(pick.is_some(), candidates().next().is_some());
        prop_assert!(pick.is_none_or(|index| usable[index]));
        // Of those that may all be picked, one that costs more than each of the others loses to whichever is drawn with it.
        let all = p2c(costs.len(), draw, |index| costs[index], |_| true).expect("there are candidates");
        let dearer = (0..costs.len()).filter(|&other| other != all).all(|other| costs[other] < costs[all]);
        prop_assert!(!dearer);
    }

    #[test]
    fn relative_loads_are_in_one_order(
        each in proptest::array::uniform3((any::<u64>(), 1..=u32::MAX)),
    ) {
        let [a, b, c] = each.map(|(load, weight)| Relative { load, weight });
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        prop_assert_eq!(a == b, a <= b && b <= a);
        prop_assert!(!(a <= b && b <= c) || a <= c);
        // More requests never weigh less, and the same never more where more fit.
        let busier = Relative { load: a.load.saturating_add(1), ..a };
        let larger = Relative { weight: a.weight.saturating_add(1), ..a };
        prop_assert!(busier >= a && larger <= a);
    }

    #[test]
    fn what_a_request_costs_rises_with_the_load_and_fades_with_time(
        answers in proptest::collection::vec((0..100_000_u64, 0..30_000_u64), 1..50), load in 0..1_000_u32, pause in 0..100_000_u64,
    ) {
        let mut now = tokio::time::Instant::now();
        let mut seen = PeakEwma::default();
        let mut longest = 0;
        for (took, later) in answers {
            let [took, later] = [took, later].map(std::time::Duration::from_millis);
            now += later;
            seen.observe(took, now);
            longest = longest.max(u64::try_from(took.as_nanos()).expect("no more than fits"));
            let after = seen.cost(0, now);
            prop_assert!(after <= longest + 1, "no more than the longest");
            prop_assert!(u128::from(after) + 1 >= took.as_nanos(), "a slow answer counts at once");
        }
        prop_assert!(seen.cost(load, now) <= seen.cost(load + 1, now));
        let later = now + std::time::Duration::from_millis(pause);
        prop_assert!(seen.cost(load, later) <= seen.cost(load, now));
    }

    #[test]
    fn two_of_draws_two_different_ones(count in 2..10_000_usize, draw in any::<u64>()) {
        let [one, other] = two_of(count, draw);
        prop_assert!(one < count && other < count && one != other);
    }
}
