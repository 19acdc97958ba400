//! The revisions that the store itself gives, the log indexes of writes, agree with what was seen.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::history::{Action, Answer, Operation};

/// What an answer says about a register.
struct Seen<'a> {
    operation: &'a Operation,
    revision: u64,
    value: Option<u64>,
    wrote: bool,
}

impl<'a> Seen<'a> {
    fn of(operation: &'a Operation) -> Option<Self> {
        let (revision, value, wrote) = match (&operation.answer, &operation.action) {
            (Answer::Found { value, revision }, _) => (*revision, *value, false),
            (
                Answer::Written { revision },
                Action::Write { value } | Action::Swap { value, .. },
            ) => (*revision, Some(*value), true),
            _ => return None,
        };
        Some(Self {
            operation,
            revision,
            value,
            wrote,
        })
    }
}

/// For each register: what began after another answer was there saw the same revision or a later one, a write
/// a later one; and a revision always goes with one value. Registers are never deleted.
#[must_use]
pub fn revisions_never_go_back(operations: &[Operation]) -> Vec<String> {
    let mut by_key: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
    for seen in operations.iter().filter_map(Seen::of) {
        by_key.entry(&seen.operation.key).or_default().push(seen);
    }
    let mut found = Vec::new();
    for (key, mut seen) in by_key {
        let mut values: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for it in &seen {
            let known = *values.entry(it.revision).or_insert(it.value);
            if known != it.value {
                found.push(format!(
                    "register {key}: revision {} is {known:?}, and for {}",
                    it.revision, it.operation
                ));
            }
        }
        let mut ends: Vec<(Instant, u64)> = seen
            .iter()
            .map(|it| (it.operation.ended, it.revision))
            .collect();
        ends.sort_unstable();
        seen.sort_by_key(|it| it.operation.started);
        let (mut ended, mut floor) = (ends.into_iter().peekable(), 0);
        for it in &seen {
            while let Some((_, revision)) = ended.next_if(|(at, _)| *at < it.operation.started) {
                floor = floor.max(revision);
            }
            if it.revision < floor || (it.wrote && it.revision == floor) {
                found.push(format!(
                    "register {key}: revision {floor} was seen before {}",
                    it.operation
                ));
            }
        }
    }
    found
}

/// A write in a client session: which one of its only writer's it is, from 1, and how many writes its register
/// had seen by then, as the store counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The register.
    pub key: String,
    /// The writer's own count.
    pub nth: u64,
    /// The store's.
    pub version: u64,
}

/// No write took effect twice, none that was acknowledged not at all.
#[must_use]
pub fn each_request_counted_once(counted: &[Counted]) -> Vec<String> {
    let wrong = counted.iter().filter(|it| it.nth != it.version);
    wrong
        .map(|it| {
            let Counted { key, nth, version } = it;
            format!("register {key}: its writer's write {nth} is the store's write {version}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn operation(started: u64, ended: u64, action: Action, answer: Answer) -> Operation {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        Operation {
            key: "a".to_owned(),
            client: 0,
            peer: 0,
            started: *START + Duration::from_millis(started),
            ended: *START + Duration::from_millis(ended),
            action,
            answer,
        }
    }

    fn write(started: u64, value: u64, revision: u64) -> Operation {
        let action = Action::Write { value };
        operation(started, started + 1, action, Answer::Written { revision })
    }

    fn read(started: u64, ended: u64, value: u64, revision: u64) -> Operation {
        let value = Some(value);
        operation(
            started,
            ended,
            Action::Read,
            Answer::Found { value, revision },
        )
    }

    #[test]
    fn what_follows_in_time_follows_in_revision() {
        let good = [
            write(0, 1, 5),
            read(2, 9, 1, 5),
            write(4, 2, 8),
            read(10, 11, 2, 8),
        ];
        assert!(revisions_never_go_back(&good).is_empty());
    }

    #[test]
    fn a_revision_that_goes_back_is_found() {
        for bad in [
            [write(0, 1, 5), write(2, 2, 4)],
            [write(0, 1, 5), write(2, 2, 5)],
            [read(0, 1, 2, 8), read(2, 3, 1, 5)],
        ] {
            assert!(!revisions_never_go_back(&bad).is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn two_values_under_one_revision_are_found() {
        let bad = [read(0, 5, 1, 5), read(1, 5, 2, 5)];
        assert_eq!(revisions_never_go_back(&bad).len(), 1);
    }

    #[test]
    fn a_write_that_counted_twice_is_found() {
        let counted = |versions: &[u64]| -> Vec<Counted> {
            let made = versions.iter().zip(1..).map(|(version, nth)| Counted {
                key: "a".to_owned(),
                nth,
                version: *version,
            });
            made.collect()
        };
        assert!(each_request_counted_once(&counted(&[1, 2, 3])).is_empty());
        assert_eq!(each_request_counted_once(&counted(&[1, 3])).len(), 1);
        assert_eq!(each_request_counted_once(&counted(&[1, 1])).len(), 1);
    }
}
