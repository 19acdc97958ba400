//! Taking turns by weight.

use super::around;

/// Each candidate's credit, from pick to pick.
///
/// Promise: equal calls give equal picks. It counts one worker's picks, and while candidates and weights stay these are
/// shared out exactly; so are those of all workers and peers together, up to one pick of each. It needs no other
/// peer, so a minority keeps the promise.
#[derive(Clone, Debug, Default)]
pub struct Smooth {
    credits: Vec<i64>,
}

impl Smooth {
    /// The candidate whose turn it is, or `None` if there is none or all weights are zero. Looks at each one.
    ///
    /// Each gains its weight, the richest is taken and pays all that was gained (nginx's smooth weighted round robin).
    /// So as many picks as all weights together are shared exactly, and turns of one endpoint are spread over them.
    pub fn pick(
        &mut self,
        count: usize,
        weight: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.fit(count);
        let mut gained = 0;
        let mut richest: Option<usize> = None;
        for index in 0..count {
            let gain = i64::from(weight(index));
            if gain == 0 || !usable(index) {
                continue;
            }
            gained += gain;
            self.credits[index] += gain;
            if richest.is_none_or(|best| self.credits[index] > self.credits[best]) {
                richest = Some(index);
            }
        }
        self.credits[richest?] -= gained;
        richest
    }

    /// As [`Self::pick`], for so many endpoints that not all are to be looked at: going round from `start`, each gains
    /// its weight, and the first that has `heaviest`, the greatest of the weights, is taken and pays that (deficit
    /// round robin). As exact in the long run, and less even.
    pub fn pick_in_passing(
        &mut self,
        count: usize,
        start: usize,
        heaviest: u32,
        weight: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.fit(count);
        let price = i64::from(heaviest);
        let mut richest: Option<usize> = None;
        for index in around(count, start) {
            let gain = i64::from(weight(index));
            if gain == 0 || !usable(index) {
                continue;
            }
            self.credits[index] += gain;
            if richest.is_none_or(|best| self.credits[index] > self.credits[best]) {
                richest = Some(index);
            }
            if self.credits[index] >= price {
                richest = Some(index);
                break;
            }
        }
        // Where the heaviest itself may not be picked, the others pay more than they gain: no debt outgrows one price.
        let debtor = &mut self.credits[richest?];
        *debtor = (*debtor - price).max(-price);
        richest
    }

    fn fit(&mut self, count: usize) {
        if self.credits.len() != count {
            self.credits.clear();
            self.credits.resize(count, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_are_spread() {
        let weights = [5, 1, 1];
        let mut smooth = Smooth::default();
        let picks: Vec<_> = (0..7)
            .map(|_| smooth.pick(3, |index| weights[index], |_| true))
            .collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0].map(Some));
    }

    #[test]
    fn nobody_without_weight_gets_a_turn() {
        let mut smooth = Smooth::default();
        assert_eq!(smooth.pick(2, |_| 0, |_| true), None);
        assert_eq!(smooth.pick(0, |_| 1, |_| true), None);
        for _ in 0..10 {
            let pick = smooth.pick(3, |index| [0, 2, 1][index], |index| index != 2);
            assert_eq!(pick, Some(1));
        }
        assert_eq!(smooth.pick_in_passing(2, 0, 0, |_| 0, |_| true), None);
    }

    #[test]
    fn nobody_pays_for_the_absence_of_the_heaviest() {
        let weights = [1_000, 1, 1];
        let weight = |index: usize| weights[index];
        let mut smooth = Smooth::default();
        for start in 0..100_000 {
            let pick = smooth.pick_in_passing(3, start % 3, 1_000, weight, |index| index != 0);
            assert!(pick.is_some_and(|index| index != 0));
        }
        // Two rounds of all credits after its return, the light ones have had their turns again.
        let picks =
            (0..4_000).map(|start| smooth.pick_in_passing(3, start % 3, 1_000, weight, |_| true));
        let light = picks.filter(|pick| *pick != Some(0)).count();
        assert!((1..=16).contains(&light), "{light}");
    }

    proptest! {
        #[test]
        fn a_whole_round_is_shared_exactly_and_any_part_of_it_nearly(
            weights in proptest::collection::vec(0..50_u32, 1..12), rounds in 1..4_u32,
        ) {
            let whole: u32 = weights.iter().sum();
            prop_assume!(whole > 0);
            let mut smooth = Smooth::default();
            let mut picks = vec![0; weights.len()];
            for n in 1..=whole * rounds {
                let pick = smooth.pick(weights.len(), |index| weights[index], |_| true);
                picks[pick.expect("there is weight")] += 1;
                for (picks, weight) in picks.iter().zip(&weights) {
                    let exact = f64::from(n) * f64::from(*weight) / f64::from(whole);
                    let off = (f64::from(*picks) - exact).abs();
                    prop_assert!(off < weights.len() as f64, "{off}");
                }
            }
            for (picks, weight) in picks.iter().zip(&weights) {
                prop_assert_eq!(*picks, weight * rounds);
            }
        }

        #[test]
        fn in_passing_each_gets_its_share_in_the_long_run(
            weights in proptest::collection::vec(1..50_u32, 2..100),
        ) {
            let whole: u32 = weights.iter().sum();
            let heaviest = weights.iter().copied().max().expect("some");
            let (mut smooth, mut start) = (Smooth::default(), 0);
            let mut picks = vec![0_u32; weights.len()];
            let n = whole * 20;
            for _ in 0..n {
                let pick = smooth
                    .pick_in_passing(weights.len(), start, heaviest, |index| weights[index], |_| true)
                    .expect("there is weight");
                picks[pick] += 1;
                start = pick + 1;
            }
            for (picks, weight) in picks.iter().zip(&weights) {
                let off = (f64::from(*picks) - f64::from(weight * 20)).abs();
                prop_assert!(off <= 0.1 * f64::from(weight * 20) + 2.0, "{off} of {weight}");
            }
        }

        #[test]
        fn whoever_is_not_usable_is_passed_over(
            usable in proptest::collection::vec(any::<bool>(), 1..80), start in any::<usize>(),
        ) {
            let count = usable.len();
            let any = usable.iter().any(|usable| *usable);
            let weight = |index: usize| u32::try_from(index % 7 + 1).expect("small");
            let mut smooth = Smooth::default();
            for _ in 0..5 {
                for pick in [
                    smooth.pick(count, weight, |index| usable[index]),
                    smooth.pick_in_passing(count, start, 7, weight, |index| usable[index]),
                ] {
                    prop_assert_eq!(pick.is_some(), any);
                    prop_assert!(pick.is_none_or(|index| usable[index]));
                }
            }
        }
    }
}
