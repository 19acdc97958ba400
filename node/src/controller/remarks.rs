//! What there is to say now of what is on record: a pure function of the agreed state and what was observed.
//!
//! The record tells why a replica was given up, and what a probe saw when it became not ready. Until then, and since,
//! only the leader knows.

use raftserve_store::State;
use raftserve_store::state::{Phase, Replica};

use super::plan::Observed;
use crate::peer::Remarks;

/// Why replicas are not ready at the moment, and why static services lack some.
pub(super) fn remarks(state: &State, observed: &Observed) -> Remarks {
    let replica = |replica: &Replica| {
        let waits = matches!(replica.phase, Phase::Starting | Phase::NotReady { .. });
        let seen = observed.probes.get(&replica.id).filter(|_| waits)?;
        let said = seen.last.as_ref()?.as_ref().err()?;
        Some((replica.id, said.clone()))
    };
    Remarks {
        services: observed.upstream_troubles.clone(),
        replicas: state.replicas().filter_map(|it| replica(it)).collect(),
    }
}
