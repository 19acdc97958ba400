//! What there is to say now of what is on record: a pure function of the agreed state and what was observed.
//!
//! The record tells why a replica was given up, and what a probe saw when it became not ready. Until then, and since,
//! only the leader knows.

use std::collections::BTreeMap;

use raftserve_store::State;
use raftserve_store::state::{Phase, Replica};

use super::plan::Observed;
use crate::peer::Remarks;

/// Why replicas are not made or not ready at the moment, and why static services lack some.
pub(super) fn remarks(state: &State, observed: &Observed) -> Remarks {
    let replica = |replica: &Replica| match replica.phase {
        Phase::Starting | Phase::NotReady { .. } => {
            let seen = observed.probes.get(&replica.id)?;
            seen.last.as_ref()?.as_ref().err()
        }
        _ => observed.held_up.get(&replica.id),
    };
    let replicas = state.replicas();
    let replicas = replicas.filter_map(|it| Some((it.id, replica(it)?.clone())));
    let held_up = observed.held_up.iter();
    let mut services: BTreeMap<_, _> = held_up
        .map(|(replica, said)| (replica.service, said.clone()))
        .collect();
    services.extend(observed.upstream_troubles.clone());
    Remarks {
        services,
        replicas: replicas.collect(),
    }
}
