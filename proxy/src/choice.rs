//! What a request's rule and key say of the replica that it may get.

use std::cell::RefCell;

use raftserve_model::ServiceVersion;
use raftserve_model::spec::RouteRule;

use crate::policy::{Smooth, hash};

/// Which of the versions a key belongs to is decided by another hash than which replica: else a version would have a
/// part of the ring, and its replicas uneven parts of that.
const VERSION_SEED: u64 = 0x0076_6572_7369_6f6e;

/// What a request's rule and key say of the replica that it may get. By default nothing: any will do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Choice<'r> {
    /// The rule that it met.
    pub(crate) rule: Option<&'r RouteRule>,
    /// The version whose turn it was, if the rule shares requests out.
    pub(crate) version: Option<ServiceVersion>,
    /// The hash of its key, if the policy wants one.
    pub(crate) hash: Option<u64>,
}

impl<'r> Choice<'r> {
    /// The rule, if it shares requests out to versions.
    pub(crate) fn shared_out_by(&self) -> Option<&'r RouteRule> {
        self.rule.filter(|rule| !rule.weights.is_empty())
    }
}

/// The share of a version under a rule.
pub(crate) fn weight(rule: &RouteRule, version: ServiceVersion) -> u32 {
    let version = u64::from(version.0);
    rule.weights.get(&version).copied().unwrap_or(0)
}

/// Whose turn it is among the versions that one rule shares requests out to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    turns: RefCell<Smooth>,
}

impl Shares {
    /// The next version of `versions`, which have ready replicas; `None` if the rule names none of them.
    ///
    /// A request with a key gets the version of its key instead, so that equal keys meet one version: shares are then as
    /// exact as keys are many, and where weights change only the keys in between move.
    pub(crate) fn next(
        &self,
        rule: &RouteRule,
        versions: &[ServiceVersion],
        hash: Option<u64>,
    ) -> Option<ServiceVersion> {
        let weight = |index: usize| weight(rule, versions[index]);
        let index = match hash {
            Some(hash) => of_key(hash, versions.len(), weight),
            None => {
                let mut turns = self.turns.borrow_mut();
                turns.pick(versions.len(), weight, |_| true)
            }
        };
        Some(versions[index?])
    }
}

fn of_key(key: u64, count: usize, weight: impl Fn(usize) -> u32) -> Option<usize> {
    let whole: u64 = (0..count).map(|index| u64::from(weight(index))).sum();
    let place = hash(VERSION_SEED, &key.to_le_bytes());
    let place = (u128::from(place) * u128::from(whole)) >> 64;
    let mut below = 0;
    (0..count).find(|&index| {
        below += u128::from(weight(index));
        place < below
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const VERSIONS: [ServiceVersion; 3] = [ServiceVersion(1), ServiceVersion(2), ServiceVersion(4)];

    fn rule(weights: &[(u64, u32)]) -> RouteRule {
        RouteRule {
            weights: weights.iter().copied().collect(),
            ..RouteRule::default()
        }
    }

    fn count(
        rule: &RouteRule,
        versions: &[ServiceVersion],
        hash: impl Fn(u64) -> Option<u64>,
    ) -> BTreeMap<u32, u32> {
        let shares = Shares::default();
        let mut counts = BTreeMap::new();
        for n in 0..1_000 {
            let version = shares.next(rule, versions, hash(n));
            *counts.entry(version.map_or(0, |it| it.0)).or_default() += 1;
        }
        counts
    }

    #[test]
    fn requests_are_shared_out_exactly() {
        let rule = rule(&[(1, 90), (2, 9), (3, 50), (4, 1)]);
        let counts = count(&rule, &VERSIONS, |_| None);
        assert_eq!(counts, BTreeMap::from([(1, 900), (2, 90), (4, 10)]));
    }

    #[test]
    fn a_version_without_replicas_leaves_its_share_to_the_others() {
        let rule = rule(&[(1, 1), (2, 1), (3, 98)]);
        let counts = count(&rule, &VERSIONS, |_| None);
        assert_eq!(counts, BTreeMap::from([(1, 500), (2, 500)]));
        assert_eq!(
            count(&rule, &VERSIONS[2..], |_| None),
            BTreeMap::from([(0, 1_000)])
        );
    }

    #[test]
    fn a_key_keeps_its_version_and_few_move_with_the_weights() {
        let key = |n: u64| Some(hash(0, &n.to_le_bytes()));
        let shares = Shares::default();
        let of = |rule: &RouteRule, n| shares.next(rule, &VERSIONS, key(n));
        let (ten, twenty) = (rule(&[(1, 90), (2, 10)]), rule(&[(1, 80), (2, 20)]));
        let moved = (0..10_000)
            .filter(|n| of(&ten, *n) != of(&twenty, *n))
            .count();
        assert!((850..1_150).contains(&moved), "{moved}");
        let counts = count(&ten, &VERSIONS, key);
        assert!((70..130).contains(&counts[&2]), "{counts:?}");
        assert!((0..100).all(|n| of(&ten, n) == of(&ten, n)));
        assert_eq!(shares.next(&ten, &VERSIONS[2..], key(1)), None);
    }
}
