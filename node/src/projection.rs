//! Projects the agreed state into what the proxy reads: its route table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::ServiceSpec;
use raftserve_model::{LogIndex, ServiceId};
use raftserve_proxy::{Endpoint, RouteTable, Routes, ServiceRoute, USUAL_WEIGHT};
use raftserve_store::State;
use raftserve_store::state::{Phase, Replica, Service};

use tokio::sync::watch;

use crate::consensus::Consensus;

/// The least time between two tables: a burst of changes makes one table, and nobody waits longer.
const COALESCE: Duration = Duration::from_millis(2);

/// Publishes a table whenever the state changes in what routing depends on, and tells in `reflected`
/// up to which index the table is true. Runs until the log ends.
///
/// Nothing is published before this peer has caught up: what it knew when it last ran may lack services
/// and name replicas that are gone. Until then the proxy says that it is starting.
pub async fn run(
    consensus: Consensus,
    routes: Arc<Routes>,
    port_base: u16,
    reflected: watch::Sender<LogIndex>,
    mut caught_up: watch::Receiver<bool>,
) {
    if caught_up.wait_for(|is| *is).await.is_err() {
        return;
    }
    let mut news = consensus.news();
    let applied = consensus.applied();
    let mut projection = Projection {
        port_base,
        known: BTreeMap::new(),
    };
    let mut published = None;
    loop {
        // The index first: the state is then at least as new as it says.
        news.mark_unchanged();
        let index = *applied.borrow();
        let state = consensus.state();
        if published != Some(state.routes_changed()) {
            routes.publish(projection.project(&state));
            published = Some(state.routes_changed());
            reflected.send_replace(index);
            tokio::time::sleep(COALESCE).await;
        }
        reflected.send_replace(index);
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// The last table's parts, so that services that did not change stay the very same.
struct Projection {
    port_base: u16,
    known: BTreeMap<ServiceId, Arc<ServiceRoute>>,
}

impl Projection {
    fn project(&mut self, state: &State) -> RouteTable {
        let known = std::mem::take(&mut self.known);
        for service in state.services().filter(|it| it.going_down.is_none()) {
            let route = self.route(state, service);
            let route = match known.get(&service.id) {
                Some(before) if **before == route => Arc::clone(before),
                _ => Arc::new(route),
            };
            self.known.insert(service.id, route);
        }
        RouteTable::new(self.known.values().cloned())
    }

    fn route(&self, state: &State, service: &Service) -> ServiceRoute {
        let spec = service.spec();
        ServiceRoute {
            id: service.id,
            name: service.name.clone(),
            port: service
                .port_slot
                .and_then(|slot| self.port_base.checked_add(slot)),
            policy: spec.policy,
            stream_timeout: spec.stream_timeout,
            affinity: spec.affinity.clone(),
            traffic: spec.traffic.clone(),
            endpoints: state
                .replicas_of(service.id)
                .filter_map(|replica| endpoint(service, replica))
                .collect(),
        }
    }
}

fn endpoint(service: &Service, replica: &Replica) -> Option<Endpoint> {
    let ready = match replica.phase {
        Phase::Ready => true,
        Phase::NotReady { .. } => false,
        Phase::Pending
        | Phase::Provisioning
        | Phase::Starting
        | Phase::Stopping { .. }
        | Phase::Failed { .. }
        | Phase::CleanupFailed { .. } => return None,
    };
    // Providers give literal addresses; one that is not is theirs to mend, and takes no traffic.
    let address = replica.address.as_ref()?.parse().ok()?;
    Some(Endpoint {
        replica: replica.id,
        address,
        version: replica.version,
        weight: weight(service.specs.get(&replica.launched_as).map(|spec| &**spec)),
        ready,
    })
}

/// What a replica launched so can take: by the CPUs that its specification asks for, where it names them. So
/// replicas of a version that asks for more get more while both are there.
fn weight(launched: Option<&ServiceSpec>) -> u32 {
    let cpus = launched.and_then(|spec| spec.resources.get("cpus"));
    let cpus = cpus.and_then(|cpus| cpus.trim_end_matches('+').parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 1 and a million CPUs"
    )]
    cpus.map_or(USUAL_WEIGHT, |cpus| {
        (cpus * f64::from(USUAL_WEIGHT)).clamp(1.0, 1e9) as u32
    })
}
