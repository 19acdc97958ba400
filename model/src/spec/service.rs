//! `service`: probe, replicas, port and load balancing.

use std::time::Duration;

use super::error::Mark;
use super::fields::{LOAD_BALANCER, REPLICA_POLICY, SERVICE};
use super::reader::{Field, Fields, Reader};
use super::resources::{Ports, Resources};
use super::yaml::Value;
use super::{LoadBalancingPolicy, ProbeKind, ReadinessProbe, STREAM_TIMEOUT, probe};

/// The most replicas of a service: what the controller is built and measured for.
pub const REPLICAS_MAX: u32 = 10_000;

/// The shortest pause between two probes, and the shortest time for one or for a silent upstream:
/// below this, a busy machine alone would fail healthy replicas.
pub(super) const PACE_MIN: Duration = Duration::from_millis(10);

/// What `service` says; a default stands where a fault is reported.
pub(super) struct Service {
    pub(super) readiness: ReadinessProbe,
    pub(super) replicas: u32,
    pub(super) port: Option<u16>,
    pub(super) policy: LoadBalancingPolicy,
    pub(super) stream_timeout: Duration,
}

/// Reads `service` of the document.
pub(super) fn read(
    reader: &mut Reader,
    task: &Fields<'_>,
    resources: &Resources,
    port_needed: bool,
    probe_kind: ProbeKind,
) -> Service {
    let mut service = Service {
        readiness: ReadinessProbe {
            kind: probe_kind.clone(),
            ..probe::defaults()
        },
        replicas: 1,
        port: None,
        policy: LoadBalancingPolicy::default(),
        stream_timeout: STREAM_TIMEOUT,
    };
    let Some(field) = task.get("service") else {
        let remedy = "add e.g. service: {readiness_probe: /, replicas: 2}";
        reader.fault("service", Mark::default(), "missing", remedy);
        return service;
    };
    if task.given("pool") {
        let problem = "service and pool contradict each other";
        reader.fault("service", field.node.mark, problem, "keep service");
    }
    let Some(fields) = reader.section(field.node, &SERVICE) else {
        return service;
    };
    if let Some(field) = fields.get("readiness_probe") {
        service.readiness = probe::read(reader, &field, probe_kind);
    }
    service.replicas = replicas(reader, &fields);
    service.port = port(reader, &fields, resources, port_needed);
    if let Some(field) = fields.get("load_balancing_policy") {
        service.policy = policy(reader, &field);
    }
    if let Some(field) = fields.get("load_balancer")
        && let Some(fields) = reader.section(field.node, &LOAD_BALANCER)
        && let Some(field) = fields.get("stream_timeout_seconds")
    {
        service.stream_timeout = reader.seconds(&field, PACE_MIN).unwrap_or(STREAM_TIMEOUT);
    }
    check_tls(reader, &fields);
    service
}

fn replicas(reader: &mut Reader, fields: &Fields<'_>) -> u32 {
    let count = fields.get("replicas");
    let policy = fields.get("replica_policy");
    if let (Some(_), Some(policy)) = (&count, &policy) {
        let problem = "replicas and replica_policy contradict each other";
        reader.fault(&policy.path, policy.node.mark, problem, "keep one of them");
    }
    if let Some(policy) = policy {
        return fixed_count(reader, &policy);
    }
    count
        .and_then(|field| reader.whole(&field, 0..=REPLICAS_MAX))
        .unwrap_or(1)
}

/// The count of a `replica_policy` that does not scale.
fn fixed_count(reader: &mut Reader, policy: &Field<'_>) -> u32 {
    let Some(fields) = reader.section(policy.node, &REPLICA_POLICY) else {
        return 1;
    };
    let Some(least) = fields.get("min_replicas") else {
        let path = "service.replica_policy.min_replicas";
        reader.fault(
            path,
            policy.node.mark,
            "missing",
            "write e.g. min_replicas: 2",
        );
        return 1;
    };
    let least = reader.whole(&least, 0..=REPLICAS_MAX);
    let most = fields
        .get("max_replicas")
        .map(|field| (reader.whole(&field, 0..=REPLICAS_MAX), field));
    let (Some(least), Some((Some(most), field))) = (least, most) else {
        return least.unwrap_or(1);
    };
    if most < least {
        let problem = format!("max_replicas {most} is below min_replicas {least}");
        reader.fault(
            &field.path,
            field.node.mark,
            problem,
            "raise it or remove it",
        );
    } else if most > least && !fields.given("target_qps_per_replica") {
        let problem = format!(
            "max_replicas {most} is above min_replicas {least}, but raftserve does not scale yet: it \
             runs a fixed number of replicas"
        );
        let remedy = format!(
            "write replicas: {most} in the place of replica_policy, or whatever fixed number serves \
             the load at its highest"
        );
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    least
}

fn port(
    reader: &mut Reader,
    fields: &Fields<'_>,
    resources: &Resources,
    needed: bool,
) -> Option<u16> {
    let main = match fields.get("ports") {
        Some(field) => {
            let port = reader.whole(&field, 1..=u32::from(u16::MAX))?;
            Some((u16::try_from(port).ok()?, field))
        }
        None => None,
    };
    let (open, mark) = match &resources.ports {
        Ports::Unknown => return None,
        Ports::Closed => (&[][..], Mark::default()),
        Ports::Open(open, mark) => (open.as_slice(), *mark),
    };
    let several = open.len() > 1 || open.iter().any(|range| range.len() > 1);
    match main {
        Some((port, field)) if !open.iter().any(|range| range.contains(&port)) => {
            let problem = format!("port {port} is not among resources.ports");
            let remedy = format!("write resources: {{ports: {port}}}");
            reader.fault(&field.path, field.node.mark, problem, remedy);
            None
        }
        Some(_) if several => {
            let problem = "more than one port is valid in SkyServe, but raftserve does not support \
                           it yet";
            reader.fault(
                "resources.ports",
                mark,
                problem,
                "keep only the service's port",
            );
            None
        }
        Some((port, _)) => Some(port),
        None if several => {
            let problem = "the service's port is not clear: more than one is open";
            reader.fault(
                "resources.ports",
                mark,
                problem,
                "keep only the service's port",
            );
            None
        }
        None => match open.first() {
            Some(range) => Some(*range.start()),
            None if !needed => None,
            None => {
                let remedy = "name the port that run listens on, e.g. resources: {ports: 8080}";
                reader.fault("resources.ports", mark, "missing", remedy);
                None
            }
        },
    }
}

fn policy(reader: &mut Reader, field: &Field<'_>) -> LoadBalancingPolicy {
    let Some(name) = reader.text(field) else {
        return LoadBalancingPolicy::default();
    };
    let policy = LoadBalancingPolicy::named(&name.to_ascii_lowercase());
    match policy {
        Some(policy) if policy.is_skyserves() => return policy,
        Some(policy) => {
            let problem = format!("SkyServe has no policy {}", policy.name());
            let remedy = "write it as _metadata.raftserve.traffic.policy, which SkyServe ignores";
            reader.fault(&field.path, field.node.mark, problem, remedy);
        }
        None => {
            let problem = format!("there is no policy {}", field.node.describe());
            let allowed = "allowed are round_robin, least_load and instance_aware_least_load";
            reader.fault(&field.path, field.node.mark, problem, allowed);
        }
    }
    LoadBalancingPolicy::default()
}

/// TLS is not built; that it would be incomplete is worth saying all the same.
fn check_tls(reader: &mut Reader, fields: &Fields<'_>) {
    let Some(entry) = fields.entry("tls") else {
        return;
    };
    let Value::Map(tls) = &entry.value.value else {
        return;
    };
    for name in ["keyfile", "certfile"] {
        if !tls.iter().any(|entry| entry.key == name) {
            let path = format!("service.tls.{name}");
            let remedy = "TLS takes both keyfile and certfile";
            reader.fault(&path, entry.mark, "missing", remedy);
        }
    }
}
