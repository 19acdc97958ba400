//! `service.readiness_probe`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Mark;
use super::fields::READINESS_PROBE;
use super::reader::{Field, Fields, Reader};
use super::service::PACE_MIN;
use super::yaml::{Node, Value};
use super::{
    FAILURE_THRESHOLD, INITIAL_DELAY, PROBE_INTERVAL, PROBE_TIMEOUT, ProbeKind, ReadinessProbe,
};

/// The probe of a service that says nothing about it.
pub(super) fn defaults() -> ReadinessProbe {
    ReadinessProbe {
        kind: ProbeKind::Http,
        path: "/".to_owned(),
        post_data: None,
        headers: BTreeMap::new(),
        initial_delay: INITIAL_DELAY,
        timeout: PROBE_TIMEOUT,
        interval: PROBE_INTERVAL,
        failure_threshold: FAILURE_THRESHOLD,
    }
}

/// Reads `service.readiness_probe` of a service whose replicas are asked in the way of `kind`.
pub(super) fn read(reader: &mut Reader, field: &Field<'_>, kind: ProbeKind) -> ReadinessProbe {
    let mut probe = defaults();
    let http = kind == ProbeKind::Http;
    probe.kind = kind;
    if let Value::Str(_) = &field.node.value {
        probe.path = path(reader, field);
        if !http {
            probe.path = no_path(reader, field, &probe.path);
        }
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
        Some(field) if http => probe.path = path(reader, &field),
        Some(field) => {
            let given = path(reader, &field);
            probe.path = no_path(reader, &field, &given);
        }
        None if !http => {}
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
    if !http {
        no_request(reader, &fields);
        return probe;
    }
    probe.post_data = fields
        .get("post_data")
        .and_then(|field| post_data(reader, &field));
    if let Some(field) = fields.get("headers") {
        probe.headers = headers(reader, &field);
    }
    probe
}

/// What to do about settings of HTTP beside a probe that is not HTTP.
const HTTP_OR_NOT: &str =
    "remove it, or _metadata.raftserve.readiness_probe if replicas are to be asked over HTTP";

/// A probe without HTTP has no path. The shortest is allowed: SkyServe wants one.
fn no_path(reader: &mut Reader, field: &Field<'_>, path: &str) -> String {
    if path != "/" {
        let problem = "a probe by gRPC or TCP has no path";
        reader.fault(&field.path, field.node.mark, problem, HTTP_OR_NOT);
    }
    "/".to_owned()
}

fn no_request(reader: &mut Reader, fields: &Fields<'_>) {
    for name in ["post_data", "headers"] {
        if let Some(field) = fields.get(name) {
            let problem = format!("a probe by gRPC or TCP sends no {name}");
            reader.fault(&field.path, field.node.mark, problem, HTTP_OR_NOT);
        }
    }
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
        Value::Map(_) => match json(field.node) {
            Ok(value) => Some(value.to_string()),
            Err(error) => {
                let steps: String = error.steps.into_iter().rev().collect();
                let path = format!("{}{steps}", field.path);
                reader.fault(&path, error.mark, error.problem, "put it in quotes");
                None
            }
        },
        _ => {
            reader.mismatch(field, "JSON text or a mapping", "");
            None
        }
    }
}

/// Why a node has no form in JSON, and the way to it from the outermost node, last step first.
struct NoJson {
    steps: Vec<String>,
    mark: Mark,
    problem: String,
}

impl NoJson {
    fn new(node: &Node) -> Self {
        Self {
            steps: Vec::new(),
            mark: node.mark,
            problem: format!("{} has no form in JSON", node.describe()),
        }
    }

    fn below(mut self, step: String) -> Self {
        self.steps.push(step);
        self
    }
}

fn json(node: &Node) -> Result<serde_json::Value, NoJson> {
    Ok(match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            _ => return Err(NoJson::new(node)),
        },
        Value::Float(value) => serde_json::Number::from_f64(*value)
            .ok_or_else(|| NoJson::new(node))?
            .into(),
        Value::Str(text) => text.clone().into(),
        Value::Seq(items) => items
            .iter()
            .enumerate()
            .map(|(at, item)| json(item).map_err(|error| error.below(format!("[{at}]"))))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| match json(&entry.value) {
                Ok(value) => Ok((entry.key.clone(), value)),
                Err(error) => Err(error.below(format!(".{}", entry.key))),
            })
            .collect::<Result<serde_json::Map<_, _>, _>>()?
            .into(),
    })
}

/// Names, as written, and values of headers.
pub(super) fn headers(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<String, String> {
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
