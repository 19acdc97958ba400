//! The right number of replicas run, none twice, none orphaned.

use std::collections::BTreeSet;

use crate::processes::{Census, Process};

/// Exactly the replicas in `wanted` (`SERVICE-NUMBER`) run, each as one process under one keeper.
#[must_use]
pub fn exactly_these_run(
    wanted: &BTreeSet<String>,
    census: &Census,
    shims: &[Process],
) -> Vec<String> {
    let mut found = Vec::new();
    for replica in wanted {
        match census.get(replica).map_or(0, Vec::len) {
            1 => {}
            0 => found.push(format!("replica {replica} does not run")),
            _ => found.push(format!("replica {replica} runs as {:?}", census[replica])),
        }
    }
    for (replica, processes) in census {
        if !wanted.contains(replica) {
            found.push(format!("replica {replica} is orphaned as {processes:?}"));
        }
    }
    if shims.len() != wanted.len() {
        found.push(format!(
            "{} replicas have {} keepers: {shims:?}",
            wanted.len(),
            shims.len()
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32) -> Process {
        Process { pid, started: 1 }
    }

    fn census(replicas: &[(&str, &[i32])]) -> Census {
        replicas
            .iter()
            .map(|(replica, pids)| {
                let processes = pids.iter().copied().map(process).collect();
                ((*replica).into(), processes)
            })
            .collect()
    }

    fn wanted() -> BTreeSet<String> {
        ["7-1".to_owned(), "7-2".to_owned()].into()
    }

    #[test]
    fn the_right_ones_are_clean() {
        let census = census(&[("7-1", &[10]), ("7-2", &[11])]);
        let shims = [process(8), process(9)];
        assert!(exactly_these_run(&wanted(), &census, &shims).is_empty());
    }

    #[test]
    fn missing_double_and_orphaned_are_found() {
        let shims = [process(8), process(9)];
        for bad in [
            census(&[("7-1", &[10])]),
            census(&[("7-1", &[10]), ("7-2", &[11, 12])]),
            census(&[("7-1", &[10]), ("7-2", &[11]), ("7-3", &[12])]),
        ] {
            assert_eq!(
                exactly_these_run(&wanted(), &bad, &shims).len(),
                1,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_keeper_without_a_replica_is_found() {
        let census = census(&[("7-1", &[10]), ("7-2", &[11])]);
        let shims = [process(7), process(8), process(9)];
        assert_eq!(exactly_these_run(&wanted(), &census, &shims).len(), 1);
        assert_eq!(
            exactly_these_run(&BTreeSet::new(), &Census::new(), &shims).len(),
            1
        );
    }
}
