//! Strict session affinity: each key reaches one replica only.

use std::collections::{BTreeMap, BTreeSet};

/// Which replicas saw each session key, by their own count.
pub type Sightings = BTreeMap<String, BTreeSet<String>>;

/// Each of `keys` was seen by exactly one replica, and no other key was seen at all.
///
/// A key that no replica saw is a violation too: a check over nothing would always be clean.
#[must_use]
pub fn one_replica_per_key(keys: &[String], seen: &Sightings) -> Vec<String> {
    let mut found = Vec::new();
    for key in keys {
        match seen.get(key).map(BTreeSet::len) {
            Some(1) => {}
            Some(_) => found.push(format!("key {key} reached replicas {:?}", seen[key])),
            None => found.push(format!("key {key} reached no replica")),
        }
    }
    let sent: BTreeSet<&String> = keys.iter().collect();
    for key in seen.keys().filter(|key| !sent.contains(key)) {
        found.push(format!("key {key} was seen, but never sent"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pairs: &[(&str, &str)]) -> Sightings {
        let mut seen = Sightings::new();
        for (key, replica) in pairs {
            seen.entry((*key).into())
                .or_default()
                .insert((*replica).into());
        }
        seen
    }

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_that_stay_are_clean() {
        let seen = seen(&[("a", "1"), ("b", "2"), ("a", "1")]);
        assert!(one_replica_per_key(&keys(&["a", "b"]), &seen).is_empty());
    }

    #[test]
    fn a_key_on_two_replicas_is_found() {
        let found = one_replica_per_key(&keys(&["a"]), &seen(&[("a", "1"), ("a", "2")]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("\"1\", \"2\""), "{found:?}");
    }

    #[test]
    fn a_key_nobody_saw_and_a_key_nobody_sent_are_found() {
        let found = one_replica_per_key(&keys(&["a"]), &seen(&[("b", "1")]));
        assert_eq!(found.len(), 2);
    }
}
