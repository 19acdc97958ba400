//! What JSON and YAML output looks like: the API's fields in its own words, with statuses as plain
//! names and absent things as null.

use raftserve_model::WallTime;
use serde_json::{Value, json};

use crate::admin::v1;

/// A replica's status as users know it.
pub(super) fn replica_status(replica: &v1::Replica) -> &'static str {
    let name = replica.status().as_str_name();
    name.strip_prefix("REPLICA_STATUS_").unwrap_or(name)
}

/// A service's status as users know it.
pub(super) fn service_status(service: &v1::Service) -> &'static str {
    let name = service.status().as_str_name();
    name.strip_prefix("SERVICE_STATUS_").unwrap_or(name)
}

fn text(text: &str) -> Value {
    match text {
        "" => Value::Null,
        text => text.into(),
    }
}

/// A time as people read it.
pub(super) fn time_text(time: WallTime) -> String {
    let seconds = i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX);
    let stamp = prost_types::Timestamp { seconds, nanos: 0 };
    stamp.to_string()
}

fn time(time: Option<&prost_types::Timestamp>) -> Value {
    time.map(ToString::to_string).into()
}

pub(super) fn service(service: &v1::Service, replicas: &[&v1::Replica]) -> Value {
    json!({
        "name": service.name,
        "id": service.id,
        "version": service.version,
        "active_versions": service.active_versions,
        "status": service_status(service),
        "ready_replicas": service.ready_replicas,
        "live_replicas": service.live_replicas,
        "wanted_replicas": service.wanted_replicas,
        "created_at": time(service.created_at.as_ref()),
        "first_ready_at": time(service.first_ready_at.as_ref()),
        "endpoint": text(&service.endpoint),
        "hindrance": text(&service.hindrance),
        "hindrances": service.hindrances.iter().map(hindrance).collect::<Vec<_>>(),
        "load_balancing_policy": service.load_balancing_policy,
        "session_affinity": text(&service.session_affinity),
        "requested_resources": text(&service.requested_resources),
        "provider": service.provider,
        "replicas": replicas.iter().map(|one| replica(one)).collect::<Vec<_>>(),
    })
}

fn hindrance(hindrance: &v1::Hindrance) -> Value {
    let kind = hindrance.kind().as_str_name();
    let kind = kind.strip_prefix("HINDRANCE_KIND_").unwrap_or(kind);
    json!({ "kind": kind.to_lowercase(), "text": hindrance.text })
}

pub(super) fn replica(replica: &v1::Replica) -> Value {
    json!({
        "id": replica.id,
        "version": replica.version,
        "status": replica_status(replica),
        "reason": text(&replica.reason),
        "endpoint": text(&replica.endpoint),
        "launched_at": time(replica.launched_at.as_ref()),
        "first_ready_at": time(replica.first_ready_at.as_ref()),
        "infra": text(&replica.infra),
        "resources": text(&replica.resources),
    })
}

pub(super) fn event(index: u64, event: &v1::Event) -> Value {
    let number = |number: u64| (number > 0).then_some(number);
    json!({
        "log_index": index,
        "time": time(event.time.as_ref()),
        "service": text(&event.service_name),
        "replica": number(event.replica_id.into()),
        "kind": event.kind,
        "version": number(event.version.into()),
        "node": number(event.node_id),
        "reason": text(&event.reason),
    })
}

pub(super) fn member(member: &v1::Member) -> Value {
    json!({
        "id": member.id,
        "role": role(member),
        "up": member.up,
        "peer_address": member.peer_address,
        "admin_address": text(&member.admin_address),
        "matched_index": member.matched_index,
        "last_contact_ms": last_contact_ms(member),
        "asked": member.asked,
    })
}

/// Whether nothing more will come of a replica.
pub(super) fn is_failed(status: v1::ReplicaStatus) -> bool {
    matches!(
        status,
        v1::ReplicaStatus::Failed
            | v1::ReplicaStatus::FailedInitialDelay
            | v1::ReplicaStatus::FailedProbing
            | v1::ReplicaStatus::FailedProvision
            | v1::ReplicaStatus::FailedCleanup
            | v1::ReplicaStatus::Preempted
    )
}

/// A member's part in the cluster.
pub(super) fn role(member: &v1::Member) -> &'static str {
    match (member.leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    }
}

/// How long ago the peer asked last heard of a member.
pub(super) fn last_contact_ms(member: &v1::Member) -> Option<i64> {
    let ago = member.last_contact?;
    Some(ago.seconds.saturating_mul(1_000) + i64::from(ago.nanos) / 1_000_000)
}
