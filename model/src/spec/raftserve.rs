//! `_metadata.raftserve`: what SkyServe lacks.

use std::time::Duration;

use super::fields::{RAFTSERVE, SESSION_AFFINITY};
use super::probe::{TOKEN_REMEDY, is_token};
use super::reader::{Field, Fields, Reader};
use super::yaml::Value;
use super::{
    DRAIN_TIMEOUT, LoadBalancingPolicy, ProbeKind, Provider, SESSION_TTL, SESSIONS, STOP_GRACE,
    SessionAffinity, SessionKeySource, Traffic, WithoutQuorum, other_probe, traffic, upstreams,
};

/// The most session bindings that a service may ask for: ten times what is measured, a few gigabytes
/// of each peer's memory.
const SESSIONS_MAX: u32 = 10_000_000;

/// The shortest life of an unused session: below it, bindings would mostly be made anew.
const SESSION_TTL_MIN: Duration = Duration::from_secs(1);

/// Headers that proxies and HTTP itself give their own meaning, so they cannot carry a session.
const RESERVED_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What `_metadata.raftserve` says.
pub(super) struct Settings {
    pub(super) provider: Provider,
    pub(super) affinity: Option<SessionAffinity>,
    pub(super) drain_timeout: Duration,
    pub(super) stop_grace: Duration,
    /// In place of the service's own, if it is given.
    pub(super) policy: Option<LoadBalancingPolicy>,
    pub(super) probe_kind: ProbeKind,
    pub(super) traffic: Traffic,
}

/// Reads `_metadata` of the document. Whatever stands beside `raftserve` is free-form.
pub(super) fn read(reader: &mut Reader, task: &Fields<'_>) -> Settings {
    let mut settings = Settings {
        provider: Provider::default(),
        affinity: None,
        drain_timeout: DRAIN_TIMEOUT,
        stop_grace: STOP_GRACE,
        policy: None,
        probe_kind: ProbeKind::default(),
        traffic: Traffic::default(),
    };
    let Some(metadata) = task.get("_metadata") else {
        return settings;
    };
    let Value::Map(entries) = &metadata.node.value else {
        reader.mismatch(&metadata, "a mapping", "");
        return settings;
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == "raftserve") else {
        return settings;
    };
    let Some(fields) = reader.section(&entry.value, &RAFTSERVE) else {
        return settings;
    };
    if let Some(field) = fields.get("provider") {
        settings.provider = upstreams::read(reader, &field);
    }
    settings.affinity = fields
        .get("session_affinity")
        .and_then(|field| affinity(reader, &field));
    for (name, to) in [
        ("drain_timeout_seconds", &mut settings.drain_timeout),
        ("stop_grace_seconds", &mut settings.stop_grace),
    ] {
        let value = fields
            .get(name)
            .and_then(|field| reader.seconds(&field, Duration::ZERO));
        *to = value.unwrap_or(*to);
    }
    if let Some(field) = fields.get("traffic") {
        (settings.policy, settings.traffic) = traffic::read(reader, &field);
    }
    if let Some(field) = fields.get("readiness_probe") {
        settings.probe_kind = other_probe::read(reader, &field, &settings);
    }
    settings
}

fn affinity(reader: &mut Reader, field: &Field<'_>) -> Option<SessionAffinity> {
    let fields = reader.section(field.node, &SESSION_AFFINITY)?;
    let key = key(reader, field, &fields);
    let ttl = fields
        .get("ttl_seconds")
        .and_then(|field| reader.seconds(&field, SESSION_TTL_MIN))
        .unwrap_or(SESSION_TTL);
    let max_sessions = fields
        .get("max_sessions")
        .and_then(|field| reader.whole(&field, 1..=SESSIONS_MAX))
        .unwrap_or(SESSIONS);
    let without_quorum = fields
        .get("without_quorum")
        .map(|field| without_quorum(reader, &field))
        .unwrap_or_default();
    Some(SessionAffinity {
        key: key?,
        ttl,
        max_sessions,
        without_quorum,
    })
}

fn key(reader: &mut Reader, affinity: &Field<'_>, fields: &Fields<'_>) -> Option<SessionKeySource> {
    match (fields.get("header"), fields.get("cookie")) {
        (Some(header), None) => Some(SessionKeySource::Header(own_header(reader, &header)?)),
        (None, Some(cookie)) => Some(SessionKeySource::Cookie(token(reader, &cookie)?.to_owned())),
        (Some(_), Some(cookie)) => {
            let problem = "header and cookie contradict each other";
            reader.fault(&cookie.path, cookie.node.mark, problem, "keep one of them");
            None
        }
        (None, None) => {
            let problem = "names neither a header nor a cookie";
            let remedy = "write e.g. header: x-session-id";
            reader.fault(&affinity.path, affinity.node.mark, problem, remedy);
            None
        }
    }
}

/// The name, in lower case, of a header that can carry a key.
pub(super) fn own_header(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let name = token(reader, field)?.to_ascii_lowercase();
    if RESERVED_HEADERS.contains(&name.as_str()) {
        let problem = format!("the header {name} has a meaning of its own in HTTP");
        let remedy = "use one of your own, e.g. x-session-id";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(name)
}

/// The name of a header or cookie.
pub(super) fn token<'n>(reader: &mut Reader, field: &Field<'n>) -> Option<&'n str> {
    let name = reader.text(field)?;
    if !is_token(name) {
        let problem = format!("{} cannot be a name in HTTP", field.node.describe());
        reader.fault(&field.path, field.node.mark, problem, TOKEN_REMEDY);
    }
    Some(name)
}

fn without_quorum(reader: &mut Reader, field: &Field<'_>) -> WithoutQuorum {
    match reader.text(field) {
        Some("refuse") | None => WithoutQuorum::Refuse,
        Some("serve_stale") => WithoutQuorum::ServeStale,
        Some(_) => {
            let problem = format!("there is no choice {}", field.node.describe());
            let remedy = "allowed are refuse and serve_stale";
            reader.fault(&field.path, field.node.mark, problem, remedy);
            WithoutQuorum::Refuse
        }
    }
}
