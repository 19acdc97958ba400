//! The plan of static services: replicas on record follow addresses that are there without us.
//!
//! A record is created without an address, and given one that no other live replica has; when the address goes, the
//! record is stopped and forgotten. So sessions, weights and the load of peers work as with replicas that are made.

use std::collections::BTreeSet;

use raftserve_store::command::{Change, StopReason};
use raftserve_store::state::{Phase, Replica, Service};

use super::{Intent, Observed, Plan};

/// Whether nobody makes or stops the replica.
pub(super) fn is_static(service: &Service, replica: &Replica) -> bool {
    let launched = service.specs.get(&replica.launched_as);
    launched.is_some_and(|spec| !spec.provider.makes_replicas())
}

/// What one such replica's life demands. It is never replaced, as there is nothing to replace it by.
pub(super) fn advance(plan: &mut Plan, service: &Service, replica: &Replica, observed: &Observed) {
    let id = replica.id;
    match &replica.phase {
        Phase::Pending | Phase::Provisioning | Phase::Failed { .. } => {}
        Phase::Starting | Phase::Ready | Phase::NotReady { .. } => {
            let told = service.spec_of(replica.version).provider.tells_readiness();
            let last = match told {
                true => Some(&Ok(())),
                false => observed.probes.get(&id).and_then(|view| view.last.as_ref()),
            };
            super::answered(plan, replica, last);
        }
        Phase::Stopping { drain_until, .. } => {
            let done = observed.now >= *drain_until || observed.drained.contains(&id);
            if done || replica.address.is_none() {
                plan.record(Change::Gone { replica: id });
            } else {
                plan.wake(drain_until.since(observed.now));
            }
        }
        Phase::CleanupFailed { reason, .. } => plan.record(Change::Stop {
            replica: id,
            reason: reason.clone(),
            drain: std::time::Duration::ZERO,
        }),
    }
}

/// Brings the records to the addresses that there are. Nothing is done before they were told once in this reign.
pub(super) fn follow(
    plan: &mut Plan,
    service: &Service,
    replicas: &[&Replica],
    observed: &Observed,
) {
    let Some(wanted) = observed.upstreams.get(&service.id) else {
        return;
    };
    let drain = service.spec().drain_timeout;
    let (mut spare, mut taken) = (Vec::new(), BTreeSet::new());
    let mut stops = Vec::new();
    let live = || replicas.iter().filter(|replica| replica.is_live());
    let own = || live().filter(|it| it.version == service.version && is_static(service, it));
    for replica in own() {
        match &replica.address {
            None => spare.push(replica.id),
            Some(address) if wanted.contains(address) && taken.insert(address) => {}
            Some(_) => stops.push((replica.id, StopReason::ScaleDown)),
        }
    }
    let told = service.spec().provider.tells_readiness();
    let mut spare = spare.into_iter();
    let mut to_create = 0;
    for address in wanted.iter().filter(|address| !taken.contains(address)) {
        let Some(replica) = spare.next() else {
            to_create += 1;
            continue;
        };
        plan.record(Change::Started {
            replica,
            address: address.clone(),
        });
        if told {
            plan.record(Change::Ready { replica });
        }
    }
    let create = Intent::Create(service.id, service.version);
    plan.intents.extend(std::iter::repeat_n(create, to_create));
    stops.extend(spare.map(|replica| (replica, StopReason::ScaleDown)));
    // Those of older versions serve until there is one of this version that does.
    if wanted.is_empty() || own().any(|replica| replica.phase == Phase::Ready) {
        let older = live().filter(|it| it.version != service.version || !is_static(service, it));
        stops.extend(older.map(|replica| (replica.id, StopReason::Outdated)));
    }
    for (replica, reason) in stops {
        plan.record(Change::Stop {
            replica,
            reason,
            drain,
        });
    }
}
