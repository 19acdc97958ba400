//! A rolling update never has fewer ready replicas than are wanted, and never more than one extra.

use std::collections::BTreeMap;

/// A replica's new status, in the order of the log. Statuses are named as users see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The log index. Changes of one index happen at once.
    pub index: u64,
    /// The replica's number.
    pub replica: u32,
    /// Its new status; none once it is gone.
    pub status: Option<String>,
}

/// What an update must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutBounds {
    /// How many replicas are wanted.
    pub wanted: usize,
    /// How many more may be live.
    pub surge: usize,
}

/// Replays `changes` over the replicas that were ready at first, and looks after each log index.
#[must_use]
pub fn rolling_update_keeps_its_bounds(
    ready_at_first: &[u32],
    changes: &[Change],
    bounds: RolloutBounds,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut statuses: BTreeMap<u32, &str> = BTreeMap::new();
    statuses.extend(ready_at_first.iter().map(|replica| (*replica, "READY")));
    for (at, change) in changes.iter().enumerate() {
        match &change.status {
            Some(status) => statuses.insert(change.replica, status),
            None => statuses.remove(&change.replica),
        };
        if changes
            .get(at + 1)
            .is_some_and(|next| next.index == change.index)
        {
            continue;
        }
        let ready = statuses.values().filter(|it| **it == "READY").count();
        let live = statuses.values().filter(|it| is_live(it)).count();
        if ready < bounds.wanted {
            found.push(format!(
                "index {}: {ready} ready, {statuses:?}",
                change.index
            ));
        }
        if live > bounds.wanted + bounds.surge {
            found.push(format!("index {}: {live} live, {statuses:?}", change.index));
        }
    }
    found
}

/// Whether a replica of that status serves or may yet.
fn is_live(status: &str) -> bool {
    matches!(
        status,
        "PENDING" | "PROVISIONING" | "STARTING" | "READY" | "NOT_READY"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: RolloutBounds = RolloutBounds {
        wanted: 2,
        surge: 1,
    };

    fn changes(list: &[(u64, u32, &str)]) -> Vec<Change> {
        list.iter()
            .map(|(index, replica, status)| Change {
                index: *index,
                replica: *replica,
                status: (*status != "-").then(|| (*status).to_owned()),
            })
            .collect()
    }

    #[test]
    fn one_after_the_other_is_clean() {
        let good = changes(&[
            (10, 3, "PENDING"),
            (11, 3, "STARTING"),
            (12, 3, "READY"),
            (13, 1, "SHUTTING_DOWN"),
            (13, 4, "PENDING"),
            (14, 1, "-"),
            (15, 4, "READY"),
            (16, 2, "SHUTTING_DOWN"),
        ]);
        assert!(rolling_update_keeps_its_bounds(&[1, 2], &good, BOUNDS).is_empty());
    }

    #[test]
    fn draining_before_the_new_one_is_ready_is_found() {
        let bad = changes(&[
            (10, 3, "PENDING"),
            (11, 1, "SHUTTING_DOWN"),
            (12, 3, "READY"),
        ]);
        let found = rolling_update_keeps_its_bounds(&[1, 2], &bad, BOUNDS);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn two_extra_are_found() {
        let bad = changes(&[(10, 3, "PENDING"), (10, 4, "PENDING")]);
        assert_eq!(
            rolling_update_keeps_its_bounds(&[1, 2], &bad, BOUNDS).len(),
            1
        );
    }

    #[test]
    fn a_swap_within_one_index_is_clean() {
        let swap = changes(&[(10, 1, "SHUTTING_DOWN"), (10, 3, "READY")]);
        assert!(rolling_update_keeps_its_bounds(&[1, 2], &swap, BOUNDS).is_empty());
    }
}
