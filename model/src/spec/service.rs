//! `service`: probe, replicas, port and load balancing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Mark;
use super::fields::{LOAD_BALANCER, READINESS_PROBE, REPLICA_POLICY, SERVICE};
use super::reader::{Field, Fields, Reader};
use super::resources::{Ports, Resources};
use super::yaml::{Node, Value};
use super::{
    FAILURE_THRESHOLD, INITIAL_DELAY, LoadBalancingPolicy, PROBE_INTERVAL, PROBE_TIMEOUT,
    ReadinessProbe, STREAM_TIMEOUT,
};

/// The most replicas of a service: what the controller is built and measured for.
pub const REPLICAS_MAX: u32 = 10_000;

/// The shortest pause between two probes, and the shortest time for one or for a silent upstream:
/// below this, a busy machine alone would fail healthy replicas.
const PACE_MIN: Duration = Duration::from_millis(10);

/// What `service` says; a default stands where a fault is reported.
pub(super) struct Service {
    pub(super) readiness: ReadinessProbe,
    pub(super) replicas: u32,
    pub(super) port: Option<u16>,
    pub(super) policy: LoadBalancingPolicy,
    pub(super) stream_timeout: Duration,
}

/// Reads `service` of the document.
pub(super) fn read(reader: &mut Reader, task: &Fields<'_>, resources: &Resources) -> Service {
    let mut service = Service {
        readiness: default_probe(),
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
        service.readiness = probe(reader, &field);
    }
    service.replicas = replicas(reader, &fields);
    service.port = port(reader, &fields, resources);
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

fn default_probe() -> ReadinessProbe {
    ReadinessProbe {
        path: "/".to_owned(),
        post_data: None,
        headers: BTreeMap::new(),
        initial_delay: INITIAL_DELAY,
        timeout: PROBE_TIMEOUT,
        interval: PROBE_INTERVAL,
        failure_threshold: FAILURE_THRESHOLD,
    }
}

fn probe(reader: &mut Reader, field: &Field<'_>) -> ReadinessProbe {
    let mut probe = default_probe();
    if let Value::Str(_) = &field.node.value {
        probe.path = path(reader, field);
        return probe;
    }
    if !matches!(field.node.value, Value::Map(_)) {
        let remedy = "write e.g. readiness_probe: /health";
        reader.mismatch(field, "a path or a mapping", remedy);
        return probe;
    }
    let Some(fields) = reader.section(field.node, &READINESS_PROBE) else {
        return probe;
    };
    match fields.get("path") {
        Some(field) => probe.path = path(reader, &field),
        None => reader.fault(
            "service.readiness_probe.path",
            field.node.mark,
            "missing",
            "write e.g. path: /health",
        ),
    }
    for (name, least, to) in [
        (
            "initial_delay_seconds",
            Duration::ZERO,
            &mut probe.initial_delay,
        ),
        ("timeout_seconds", PACE_MIN, &mut probe.timeout),
        (
            "endpoint_probe_interval_seconds",
            PACE_MIN,
            &mut probe.interval,
        ),
        (
            "consecutive_failure_threshold_timeout",
            Duration::ZERO,
            &mut probe.failure_threshold,
        ),
    ] {
        if let Some(value) = fields
            .get(name)
            .and_then(|field| reader.seconds(&field, least))
        {
            *to = value;
        }
    }
    probe.post_data = fields
        .get("post_data")
        .and_then(|field| post_data(reader, &field));
    if let Some(field) = fields.get("headers") {
        probe.headers = headers(reader, &field);
    }
    probe
}

fn path(reader: &mut Reader, field: &Field<'_>) -> String {
    let Some(path) = reader.text(field) else {
        return "/".to_owned();
    };
    if !path.starts_with('/') {
        let problem = format!("the path {} does not start with '/'", field.node.describe());
        reader.fault(&field.path, field.node.mark, problem, "write e.g. /health");
    } else if !path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        let problem = "the path holds a character that cannot be sent";
        let remedy = "write spaces, '#' and what is not ASCII as %XX";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    path.to_owned()
}

fn post_data(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    match &field.node.value {
        Value::Str(text) => {
            if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
                let problem = format!("not valid JSON: {error}");
                let remedy = "write JSON text, or a mapping";
                reader.fault(&field.path, field.node.mark, problem, remedy);
            }
            Some(text.clone())
        }
        Value::Map(_) => json(reader, &field.path, field.node).map(|value| value.to_string()),
        _ => {
            reader.mismatch(field, "JSON text or a mapping", "");
            None
        }
    }
}

fn json(reader: &mut Reader, path: &str, node: &Node) -> Option<serde_json::Value> {
    Some(match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            _ => {
                reader.fault(
                    path,
                    node.mark,
                    "the number is too large for JSON",
                    "quote it",
                );
                return None;
            }
        },
        Value::Float(value) => match serde_json::Number::from_f64(*value) {
            Some(number) => number.into(),
            None => {
                let problem = format!("{} has no form in JSON", node.describe());
                reader.fault(path, node.mark, problem, "quote it");
                return None;
            }
        },
        Value::Str(text) => text.clone().into(),
        Value::Seq(items) => {
            let items = items.iter().enumerate();
            let items: Vec<_> = items
                .filter_map(|(at, item)| json(reader, &format!("{path}[{at}]"), item))
                .collect();
            items.into()
        }
        Value::Map(entries) => {
            let mut object = serde_json::Map::new();
            for entry in entries {
                if let Some(value) = json(reader, &format!("{path}.{}", entry.key), &entry.value) {
                    object.insert(entry.key.clone(), value);
                }
            }
            object.into()
        }
    })
}

fn headers(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<String, String> {
    let Value::Map(entries) = &field.node.value else {
        reader.mismatch(field, "a mapping", "write e.g. headers: {X-Probe: \"1\"}");
        return BTreeMap::new();
    };
    let mut headers = BTreeMap::new();
    for entry in entries {
        let path = format!("{}.{}", field.path, entry.key);
        if !is_token(&entry.key) {
            let problem = format!("{:?} is not a header name", entry.key);
            reader.fault(&path, entry.mark, problem, TOKEN_REMEDY);
        }
        let header = Field {
            path,
            node: &entry.value,
        };
        let Some(value) = reader.text(&header) else {
            continue;
        };
        if value.chars().any(|c| c.is_control() && c != '\t') {
            let problem = "the value holds a control character";
            reader.fault(&header.path, header.node.mark, problem, "remove it");
        }
        headers.insert(entry.key.clone(), value.to_owned());
    }
    headers
}

/// What the name of a header or cookie may be.
pub(super) const TOKEN_REMEDY: &str = "letters, digits and !#$%&'*+-.^_`|~ are allowed";

/// Whether `name` is a token in the sense of RFC 9110, section 5.6.2.
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
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
            "min_replicas {least} and max_replicas {most} differ, and there is no \
             target_qps_per_replica to scale by"
        );
        let remedy = "autoscaling is not supported yet: set both to the same number";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    least
}

fn port(reader: &mut Reader, fields: &Fields<'_>, resources: &Resources) -> Option<u16> {
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
            None => {
                let remedy = "name the port that run listens on, e.g. resources: {ports: 8080}";
                reader.fault("resources.ports", mark, "missing", remedy);
                None
            }
        },
    }
}

fn policy(reader: &mut Reader, field: &Field<'_>) -> LoadBalancingPolicy {
    let allowed = "allowed are round_robin and least_load";
    let Some(name) = reader.text(field) else {
        return LoadBalancingPolicy::default();
    };
    match name.to_ascii_lowercase().as_str() {
        "round_robin" => return LoadBalancingPolicy::RoundRobin,
        "least_load" => return LoadBalancingPolicy::LeastLoad,
        "instance_aware_least_load" => {
            let problem = "instance_aware_least_load is valid in SkyServe, but raftserve does not \
                           support it yet";
            reader.fault(&field.path, field.node.mark, problem, allowed);
        }
        _ => {
            let problem = format!("there is no policy {}", field.node.describe());
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
