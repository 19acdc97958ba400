//! The agreed state as the admin API shows it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Timestamp;
use raftserve_model::spec::{Provider, ServiceSpec, SessionKeySource, StaticUpstreams};
use raftserve_model::status::{ReplicaStatus, ServiceStatus};
use raftserve_model::{ServiceId, SessionKey, WallTime};
use raftserve_store::State;
use raftserve_store::state::{Event, EventKind, Replica, Service, Session};

use super::v1::{self, HindranceKind};

/// Where this peer's service ports are reached.
#[derive(Clone, Debug)]
pub(super) struct ServicePorts {
    /// The host to put into URLs.
    pub(super) host: String,
    /// The port of the service with slot 0.
    pub(super) base: u16,
    /// Who makes replicas, as `--provider` has it.
    pub(super) provider: &'static str,
    /// What keeps them from it.
    pub(super) hindrance: Option<String>,
    /// What keeps this peer from being an endpoint of the client Service, or from saying who is one.
    pub(super) endpoints: Option<String>,
    /// Services whose own port is not theirs, and why.
    pub(super) refused: BTreeMap<ServiceId, String>,
    /// Why static services lack replicas, or others' are left alone, as far as the leader tells.
    pub(super) remarks: BTreeMap<ServiceId, String>,
}

impl ServicePorts {
    /// What keeps a service from being all that it was asked for. Without replicas, its port and addresses do not count.
    fn hindrances(&self, service: ServiceId, makes_replicas: bool) -> Vec<v1::Hindrance> {
        let of_kind = |kind: HindranceKind, text: String| v1::Hindrance {
            kind: kind.into(),
            text,
        };
        let endpoints = self.endpoints.clone();
        let endpoints = endpoints.map(|text| of_kind(HindranceKind::Endpoints, text));
        let remark = self.remarks.get(&service);
        // What the leader says of such a service is why it leaves its replicas alone.
        if makes_replicas && let Some(hindrance) = self.hindrance.as_ref().or(remark) {
            let text = format!("replicas cannot be made: {hindrance}");
            let replicas = of_kind(HindranceKind::Replicas, text);
            return std::iter::once(replicas).chain(endpoints).collect();
        }
        let addresses = remark.cloned();
        let port = self.refused.get(&service).cloned();
        let addresses = addresses.map(|text| of_kind(HindranceKind::Addresses, text));
        let port = port.map(|text| of_kind(HindranceKind::ServicePort, text));
        let own = addresses.into_iter().chain(port);
        own.chain(endpoints).collect()
    }

    /// The URL of the service's own port, if it has one.
    pub(super) fn url(&self, service: &Service) -> Option<String> {
        let port = self.base.checked_add(service.port_slot?)?;
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        Some(format!("http://{host}:{port}"))
    }
}

/// A service without its YAML.
pub(super) fn service(state: &State, service: &Service, ports: &ServicePorts) -> v1::Service {
    let spec = service.spec();
    let hindrances = ports.hindrances(service.id, spec.provider.makes_replicas());
    let texts: Vec<&str> = hindrances.iter().map(|it| it.text.as_str()).collect();
    let mut active_versions = BTreeSet::new();
    let (mut ready, mut live) = (0, 0);
    for replica in state.replicas_of(service.id) {
        let status = replica.status();
        if status == ReplicaStatus::Ready {
            active_versions.insert(replica.version.0);
            ready += 1;
        }
        live += u32::from(!status.is_failed() && status != ReplicaStatus::Preempted);
    }
    v1::Service {
        name: service.name.to_string(),
        id: service.id.0,
        version: service.version.0,
        active_versions: active_versions.into_iter().collect(),
        status: service_status(state.status_of(service)).into(),
        ready_replicas: ready,
        live_replicas: live,
        wanted_replicas: match spec.provider.makes_replicas() {
            true => spec.replicas,
            // As many as there are addresses.
            false => live,
        },
        created_at: Some(timestamp(service.created_at)),
        first_ready_at: service.first_ready_at.map(timestamp),
        endpoint: ports.url(service).unwrap_or_default(),
        load_balancing_policy: spec.policy.name().to_owned(),
        session_affinity: affinity(spec).unwrap_or_default(),
        requested_resources: resources(spec),
        provider: provider(&spec.provider, ports.provider).to_owned(),
        yaml: String::new(),
        hindrance: texts.join("; "),
        hindrances,
    }
}

/// A replica of `service`. `made_by` is who makes replicas; `note` is what that says of this one now.
pub(super) fn replica(
    service: &Service,
    replica: &Replica,
    made_by: &'static str,
    note: Option<&String>,
) -> v1::Replica {
    let spec = service.spec_of(replica.launched_as);
    v1::Replica {
        service_name: service.name.to_string(),
        service_id: service.id.0,
        id: replica.id.number,
        version: replica.version.0,
        status: replica_status(replica.status()).into(),
        // What is seen now says more than what was recorded when it began.
        reason: note
            .filter(|_| replica.is_live())
            .cloned()
            .or_else(|| replica.reason())
            .unwrap_or_default(),
        endpoint: replica
            .address
            .as_ref()
            .map(|address| format!("http://{address}"))
            .unwrap_or_default(),
        launched_at: Some(timestamp(replica.created_at.wall)),
        first_ready_at: replica.first_ready_at.map(|at| timestamp(at.wall)),
        changed_index: replica.changed.0,
        infra: provider(&spec.provider, made_by).to_owned(),
        resources: resources(spec),
    }
}

/// A session of `state`.
pub(super) fn session(state: &State, key: &SessionKey, session: &Session) -> v1::Session {
    v1::Session {
        key: key.to_string(),
        replica_id: session.replica.number,
        epoch: session.epoch.0,
        usable_from: session.usable_from.0,
        expires_at: Some(timestamp(state.wall_at(session.expires_at))),
    }
}

/// An event.
pub(super) fn event(event: &Event) -> v1::Event {
    let mut shown = v1::Event {
        time: Some(timestamp(event.time)),
        service_name: event
            .service
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        ..v1::Event::default()
    };
    shown.kind = match &event.kind {
        EventKind::ControlStarted { node } => {
            shown.node_id = node.0;
            "CONTROL_STARTED"
        }
        EventKind::ServiceCreated => {
            shown.version = 1;
            "SERVICE_CREATED"
        }
        EventKind::ServiceUpdated { version } => {
            shown.version = version.0;
            "SERVICE_UPDATED"
        }
        EventKind::ServiceGoingDown => "SERVICE_GOING_DOWN",
        EventKind::ServiceDeleted => "SERVICE_DELETED",
        EventKind::Replica {
            number,
            status,
            reason,
        } => {
            shown.replica_id = *number;
            shown.set_replica_status(replica_status(*status));
            shown.reason = reason.clone().unwrap_or_default();
            status.as_str()
        }
        EventKind::ReplicaRemoved { number } => {
            shown.replica_id = *number;
            "REPLICA_REMOVED"
        }
        EventKind::VersionRaised { version } => {
            shown.version = version.0.into();
            "VERSION_RAISED"
        }
        EventKind::PeerAdmitted { node, address } => {
            shown.reason = format!("peer {node} at {address}");
            "PEER_ADMITTED"
        }
        EventKind::PeerRemoved { node } => {
            shown.reason = format!("peer {node}");
            "PEER_REMOVED"
        }
    }
    .to_owned();
    shown
}

/// A time for people, as protobuf has it.
fn timestamp(time: WallTime) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.0 % 1_000).unwrap_or(0) * 1_000_000,
    }
}

fn replica_status(status: ReplicaStatus) -> v1::ReplicaStatus {
    match status {
        ReplicaStatus::Pending => v1::ReplicaStatus::Pending,
        ReplicaStatus::Provisioning => v1::ReplicaStatus::Provisioning,
        ReplicaStatus::Starting => v1::ReplicaStatus::Starting,
        ReplicaStatus::Ready => v1::ReplicaStatus::Ready,
        ReplicaStatus::NotReady => v1::ReplicaStatus::NotReady,
        ReplicaStatus::ShuttingDown => v1::ReplicaStatus::ShuttingDown,
        ReplicaStatus::Failed => v1::ReplicaStatus::Failed,
        ReplicaStatus::FailedInitialDelay => v1::ReplicaStatus::FailedInitialDelay,
        ReplicaStatus::FailedProbing => v1::ReplicaStatus::FailedProbing,
        ReplicaStatus::FailedProvision => v1::ReplicaStatus::FailedProvision,
        ReplicaStatus::FailedCleanup => v1::ReplicaStatus::FailedCleanup,
        ReplicaStatus::Preempted => v1::ReplicaStatus::Preempted,
    }
}

fn service_status(status: ServiceStatus) -> v1::ServiceStatus {
    match status {
        ServiceStatus::ReplicaInit => v1::ServiceStatus::ReplicaInit,
        ServiceStatus::Ready => v1::ServiceStatus::Ready,
        ServiceStatus::ShuttingDown => v1::ServiceStatus::ShuttingDown,
        ServiceStatus::Failed => v1::ServiceStatus::Failed,
        ServiceStatus::FailedCleanup => v1::ServiceStatus::FailedCleanup,
        ServiceStatus::NoReplica => v1::ServiceStatus::NoReplica,
    }
}

fn provider(provider: &Provider, made_by: &'static str) -> &'static str {
    match provider {
        Provider::Peers => made_by,
        Provider::Static(StaticUpstreams::Addresses(_)) => "static",
        Provider::Static(StaticUpstreams::KubernetesService(_)) => "kubernetes service",
    }
}

fn affinity(spec: &ServiceSpec) -> Option<String> {
    spec.affinity.as_ref().map(|affinity| match &affinity.key {
        SessionKeySource::Header(name) => format!("header {name}"),
        SessionKeySource::Cookie(name) => format!("cookie {name}"),
    })
}

fn resources(spec: &ServiceSpec) -> String {
    let show = |(key, value): (&String, &String)| format!("{key}={value}");
    let accelerators = spec
        .placement
        .accelerators
        .iter()
        .map(|it| format!("accelerators={}:{}", it.kind, it.count));
    let spot = spec.placement.use_spot.then(|| "use_spot".to_owned());
    spec.resources
        .iter()
        .map(show)
        .chain(accelerators)
        .chain(spot)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_peer_from_the_endpoints_hinders_each_service_beside_the_rest() {
        let id = ServiceId(1);
        let mut ports = ServicePorts {
            host: String::new(),
            base: 1,
            provider: "kubernetes",
            hindrance: None,
            endpoints: Some("no gate".to_owned()),
            refused: BTreeMap::from([(id, "taken".to_owned())]),
            remarks: BTreeMap::new(),
        };
        let kinds = |ports: &ServicePorts| {
            let found = ports.hindrances(id, true);
            found.iter().map(v1::Hindrance::kind).collect::<Vec<_>>()
        };
        let both = [HindranceKind::ServicePort, HindranceKind::Endpoints];
        assert_eq!(kinds(&ports), both);
        ports.hindrance = Some("no kubelet".to_owned());
        let both = [HindranceKind::Replicas, HindranceKind::Endpoints];
        assert_eq!(kinds(&ports), both);
        ports.endpoints = None;
        assert_eq!(kinds(&ports), [HindranceKind::Replicas]);
        (ports.hindrance, ports.refused) = (None, BTreeMap::new());
        ports.remarks.insert(id, "taken over".to_owned());
        assert_eq!(kinds(&ports), [HindranceKind::Replicas]);
        assert_eq!(
            ports.hindrances(id, false)[0].kind(),
            HindranceKind::Addresses
        );
    }
}
