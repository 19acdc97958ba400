//! Reading `_metadata.raftserve.traffic`. What contradicts itself is refused: a setting that has no effect is
//! a mistake of whoever wrote it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::LoadBalancingPolicy;
use super::super::fields::{
    EJECTION, HASH_ON, QUEUE, RETRIES, TIMEOUTS, TRAFFIC, UPSTREAM, UPSTREAM_TLS,
};
use super::super::raftserve::{own_header, token};
use super::super::reader::{Field, Fields, Reader};
use super::super::service::PACE_MIN;
use super::super::yaml::Value;
use super::{
    Ejection, HashKey, Queue, Retries, Timeouts, Traffic, UpstreamProtocol, UpstreamSettings,
    UpstreamTls, UpstreamTrust, routes,
};

/// The most further tries: more than this only adds load where everything fails.
const RETRIES_MAX: u32 = 10;
/// The most different statuses that are tried again: all that there are of the kind, and no list to search.
const STATUSES_MAX: usize = 16;
/// The most waiting requests: each holds a connection, and a peer takes tens of thousands of these.
const QUEUE_REQUESTS_MAX: u32 = 100_000;
/// The largest limit of a body, one tebibyte: beyond any request.
const BODY_BYTES_MAX: i128 = 1 << 40;
/// The bounds of the limit of a head: one below would refuse what every browser sends, and more than the upper is read
/// by no proxy.
const HEAD_BYTES_MIN: u32 = 1 << 10;
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// The most certificates' text: a bundle of a public system's authorities is below this.
const AUTHORITIES_BYTES_MAX: usize = 512 << 10;

/// Reads the section: the policy that it names, and all else.
pub(in super::super) fn read(
    reader: &mut Reader,
    field: &Field<'_>,
) -> (Option<LoadBalancingPolicy>, Traffic) {
    let mut traffic = Traffic::default();
    let Some(fields) = reader.section(field.node, &TRAFFIC) else {
        return (None, traffic);
    };
    let named = fields
        .get("policy")
        .and_then(|field| policy(reader, &field));
    let hashes = named.is_some_and(LoadBalancingPolicy::hashes);
    if let Some(field) = fields.get("hash_on") {
        traffic.hash_on = hash_key(reader, &field);
        if !hashes {
            let problem = "nothing is hashed without a hash policy";
            let remedy = "write policy: ring_hash or policy: maglev beside it, or remove it";
            reader.fault(&field.path, field.node.mark, problem, remedy);
        }
    }
    if let Some(field) = fields.get("upstream") {
        traffic.upstream = upstream(reader, &field);
    }
    if let Some(field) = fields.get("timeouts") {
        traffic.timeouts = timeouts(reader, &field, &Timeouts::default());
    }
    let retries_field = fields.get("retries");
    if let Some(field) = &retries_field {
        traffic.retries = retries(reader, field, &Retries::default());
    }
    if let Some(field) = retries_field.or_else(|| fields.get("timeouts")) {
        check_tries(reader, &field, &traffic.retries, &traffic.timeouts);
    }
    if let Some(field) = fields.get("ejection") {
        traffic.ejection = ejection(reader, &field);
    }
    if let Some(field) = fields.get("slow_start_seconds") {
        traffic.slow_start = reader.seconds(&field, Duration::ZERO).unwrap_or_default();
        if hashes && !traffic.slow_start.is_zero() {
            let problem = "a hash policy gives a new replica all of its keys at once";
            reader.fault(&field.path, field.node.mark, problem, "remove it");
        }
    }
    if let Some(field) = fields.get("queue") {
        traffic.queue = queue(reader, &field);
    }
    traffic.request_body_bytes_max = fields
        .get("request_body_bytes_max")
        .and_then(|field| body_bytes(reader, &field));
    traffic.request_head_bytes_max = fields
        .get("request_head_bytes_max")
        .and_then(|field| reader.whole(&field, HEAD_BYTES_MIN..=HEAD_BYTES_MAX));
    if let Some(field) = fields.get("routes") {
        traffic.routes = routes::read(reader, &field, &traffic);
    }
    (named, traffic)
}

fn policy(reader: &mut Reader, field: &Field<'_>) -> Option<LoadBalancingPolicy> {
    let name = reader.text(field)?;
    let policy = LoadBalancingPolicy::named(&name.to_ascii_lowercase());
    if policy.is_none() {
        let names: Vec<_> = LoadBalancingPolicy::ALL
            .iter()
            .map(|it| it.name())
            .collect();
        let problem = format!("there is no policy {}", field.node.describe());
        let allowed = format!("allowed are {}", names.join(", "));
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    policy
}

fn hash_key(reader: &mut Reader, field: &Field<'_>) -> Option<HashKey> {
    let fields = reader.section(field.node, &HASH_ON)?;
    let names = HASH_ON.fields.iter().map(|(name, _)| *name);
    let mut given = names.filter_map(|name| fields.get(name).map(|field| (name, field)));
    let Some((name, source)) = given.next() else {
        let remedy = "write e.g. hash_on: {header: x-user}";
        reader.fault(&field.path, field.node.mark, "names no key", remedy);
        return None;
    };
    if let Some((other, second)) = given.next() {
        let problem = format!("{name} and {other} contradict each other");
        reader.fault(&second.path, second.node.mark, problem, "keep one of them");
    }
    match name {
        "header" => own_header(reader, &source).map(HashKey::Header),
        "cookie" => token(reader, &source).map(|name| HashKey::Cookie(name.to_owned())),
        "query" => query(reader, &source).map(HashKey::Query),
        "json_field" => pointer(reader, &source).map(HashKey::JsonField),
        _ => {
            if reader.boolean(&source) == Some(false) {
                let problem = "false names no key";
                let remedy = "write source_address: true";
                reader.fault(&source.path, source.node.mark, problem, remedy);
            }
            Some(HashKey::SourceAddress)
        }
    }
}

fn query(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let name = reader.text(field)?;
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"&=#".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) {
        let problem = format!("{} cannot name a query parameter", field.node.describe());
        let remedy = "write it as it stands in the request's target, e.g. query: user";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(name.to_owned())
}

/// A JSON pointer (RFC 6901, 3), other than to the whole document.
fn pointer(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let pointer = reader.text(field)?;
    let escapes_right = pointer
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    if !pointer.starts_with('/') || !escapes_right {
        let problem = format!("{} is not a JSON pointer", field.node.describe());
        let remedy = "write e.g. json_field: /user or /messages/0/content";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(pointer.to_owned())
}

fn upstream(reader: &mut Reader, field: &Field<'_>) -> UpstreamSettings {
    let mut settings = UpstreamSettings::default();
    let Some(fields) = reader.section(field.node, &UPSTREAM) else {
        return settings;
    };
    if let Some(field) = fields.get("protocol") {
        settings.protocol = match reader.text(&field) {
            Some("auto") | None => UpstreamProtocol::Auto,
            Some("http1") => UpstreamProtocol::Http1,
            Some("http2") => UpstreamProtocol::Http2,
            Some(_) => {
                let problem = format!("there is no protocol {}", field.node.describe());
                let remedy = "allowed are auto, http1 and http2";
                reader.fault(&field.path, field.node.mark, problem, remedy);
                UpstreamProtocol::Auto
            }
        };
    }
    let connect_timeout = &mut settings.connect_timeout;
    seconds(
        reader,
        &fields,
        "connect_timeout_seconds",
        PACE_MIN,
        connect_timeout,
    );
    settings.tls = fields.get("tls").and_then(|field| tls(reader, &field));
    settings
}

fn tls(reader: &mut Reader, field: &Field<'_>) -> Option<UpstreamTls> {
    let fields = reader.section(field.node, &UPSTREAM_TLS)?;
    let server_name = fields
        .get("server_name")
        .and_then(|field| server_name(reader, &field));
    let verify = fields.get("verify");
    let verified = verify
        .as_ref()
        .and_then(|field| reader.boolean(field))
        .unwrap_or(true);
    let trust = match (fields.get("authorities"), verified) {
        (Some(field), true) => UpstreamTrust::Authorities(authorities(reader, &field)?),
        (None, false) => UpstreamTrust::Anything,
        (Some(field), false) => {
            let problem = "authorities and verify: false contradict each other";
            reader.fault(&field.path, field.node.mark, problem, "keep one of them");
            return None;
        }
        (None, true) => {
            let problem = "says nothing of which certificates are believed";
            let remedy = "write authorities: with the text of a PEM file, or verify: false";
            reader.fault(&field.path, field.node.mark, problem, remedy);
            return None;
        }
    };
    Some(UpstreamTls { server_name, trust })
}

fn server_name(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let name = reader.text(field)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if name.is_empty() || name.len() > 253 || !name.bytes().all(legal) {
        let problem = format!("{} is not a host", field.node.describe());
        let remedy = "write e.g. server_name: replicas.internal";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(name.to_owned())
}

fn authorities(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let text = reader.text(field)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        let problem = "holds no certificate";
        let remedy = "write the text of a PEM file, which has -----BEGIN CERTIFICATE----- in it";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    } else if text.len() > AUTHORITIES_BYTES_MAX {
        let problem = format!("{} bytes of certificates", text.len());
        let allowed = format!("at most {AUTHORITIES_BYTES_MAX} are allowed");
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    Some(text.to_owned())
}

/// Reads `timeouts`; what it does not say is as in `base`.
pub(super) fn timeouts(reader: &mut Reader, field: &Field<'_>, base: &Timeouts) -> Timeouts {
    let mut timeouts = base.clone();
    let Some(fields) = reader.section_at(field.node, &TIMEOUTS, field.path.clone()) else {
        return timeouts;
    };
    for (name, to) in [
        ("first_byte_seconds", &mut timeouts.first_byte),
        ("idle_seconds", &mut timeouts.idle),
        ("total_seconds", &mut timeouts.total),
        ("tunnel_idle_seconds", &mut timeouts.tunnel_idle),
    ] {
        optional_seconds(reader, &fields, name, to);
    }
    let Some(total) = timeouts.total else {
        return timeouts;
    };
    for (name, part) in [
        ("first_byte_seconds", timeouts.first_byte),
        ("idle_seconds", timeouts.idle),
    ] {
        if part.is_some_and(|part| part > total) {
            let place = fields.get(name).or_else(|| fields.get("total_seconds"));
            let problem = format!("{name} is longer than total_seconds, so it never runs out");
            let place = place.as_ref().unwrap_or(field);
            reader.fault(&place.path, place.node.mark, problem, "shorten it");
        }
    }
    timeouts
}

/// Reads `retries`; what it does not say is as in `base`.
pub(super) fn retries(reader: &mut Reader, field: &Field<'_>, base: &Retries) -> Retries {
    let mut retries = base.clone();
    let Some(fields) = reader.section_at(field.node, &RETRIES, field.path.clone()) else {
        return retries;
    };
    whole(reader, &fields, "max", 0..=RETRIES_MAX, &mut retries.max);
    let percent = &mut retries.budget_percent;
    whole(reader, &fields, "budget_percent", 0..=100, percent);
    if let Some(field) = fields.get("statuses") {
        retries.statuses = statuses(reader, &field);
    }
    if let Some(field) = fields.get("after_sent") {
        retries.after_sent = reader.boolean(&field).unwrap_or(retries.after_sent);
    }
    for (name, to) in [
        ("per_try_timeout_seconds", &mut retries.per_try_timeout),
        ("hedge_after_seconds", &mut retries.hedge_after),
    ] {
        optional_seconds(reader, &fields, name, to);
    }
    if retries.max == 0 || retries.budget_percent == 0 {
        // What `base` says of further tries has no meaning then.
        if !fields.given("statuses") {
            retries.statuses.clear();
        }
        if !fields.given("hedge_after_seconds") {
            retries.hedge_after = None;
        }
    }
    if let Some(field) = fields.get("hedge_after_seconds") {
        check_hedge(reader, &field, &retries);
    }
    if let Some(field) = fields.get("statuses")
        && !retries.statuses.is_empty()
        && (retries.max == 0 || retries.budget_percent == 0)
    {
        let problem = "no status is tried again with max: 0 or budget_percent: 0";
        reader.fault(
            &field.path,
            field.node.mark,
            problem,
            "raise these or remove it",
        );
    }
    retries
}

fn statuses(reader: &mut Reader, field: &Field<'_>) -> Vec<u16> {
    let items = reader.items(field, "write e.g. statuses: [502, 503]");
    if items.len() > STATUSES_MAX {
        let problem = format!("{} statuses", items.len());
        let allowed = format!("at most {STATUSES_MAX} are allowed");
        reader.fault(&field.path, field.node.mark, problem, allowed);
        return Vec::new();
    }
    let mut statuses: Vec<u16> = items
        .iter()
        .filter_map(|item| reader.whole(item, 400..=599))
        .filter_map(|status| u16::try_from(status).ok())
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// What cannot be had together with a second try beside the first.
fn check_hedge(reader: &mut Reader, field: &Field<'_>, retries: &Retries) {
    let Some(after) = retries.hedge_after else {
        return;
    };
    let problem = if !retries.statuses.is_empty() {
        "hedge_after_seconds and statuses contradict each other: the first answer wins, whatever its status"
    } else if retries.max == 0 || retries.budget_percent == 0 {
        "no second try starts with max: 0 or budget_percent: 0"
    } else if retries.per_try_timeout.is_some_and(|limit| after >= limit) {
        "the first try ends before the second starts: per_try_timeout_seconds is not longer"
    } else {
        return;
    };
    reader.fault(
        &field.path,
        field.node.mark,
        problem,
        "change one of the two",
    );
}

/// Tries have to fit into the whole.
pub(super) fn check_tries(
    reader: &mut Reader,
    field: &Field<'_>,
    retries: &Retries,
    timeouts: &Timeouts,
) {
    let Some(total) = timeouts.total else {
        return;
    };
    for (name, part) in [
        ("per_try_timeout_seconds", retries.per_try_timeout),
        ("hedge_after_seconds", retries.hedge_after),
    ] {
        if part.is_some_and(|part| part >= total) {
            let problem = format!("retries.{name} is not shorter than timeouts.total_seconds");
            reader.fault(&field.path, field.node.mark, problem, "shorten it");
        }
    }
}

fn ejection(reader: &mut Reader, field: &Field<'_>) -> Ejection {
    let mut ejection = Ejection::default();
    let Some(fields) = reader.section(field.node, &EJECTION) else {
        return ejection;
    };
    let errors = &mut ejection.consecutive_errors;
    whole(reader, &fields, "consecutive_errors", 0..=1_000, errors);
    seconds(
        reader,
        &fields,
        "base_seconds",
        PACE_MIN,
        &mut ejection.base,
    );
    seconds(reader, &fields, "max_seconds", PACE_MIN, &mut ejection.max);
    let percent = &mut ejection.panic_percent;
    whole(reader, &fields, "panic_percent", 1..=100, percent);
    if ejection.base > ejection.max {
        let place = fields
            .get("base_seconds")
            .or_else(|| fields.get("max_seconds"));
        let place = place.as_ref().unwrap_or(field);
        let problem = "base_seconds is longer than max_seconds";
        reader.fault(
            &place.path,
            place.node.mark,
            problem,
            "change one of the two",
        );
    }
    ejection
}

fn queue(reader: &mut Reader, field: &Field<'_>) -> Queue {
    let mut queue = Queue::default();
    let Some(fields) = reader.section(field.node, &QUEUE) else {
        return queue;
    };
    let requests = &mut queue.requests;
    whole(
        reader,
        &fields,
        "requests",
        0..=QUEUE_REQUESTS_MAX,
        requests,
    );
    seconds(reader, &fields, "wait_seconds", PACE_MIN, &mut queue.wait);
    queue
}

/// Reads `request_body_bytes_max`.
pub(super) fn body_bytes(reader: &mut Reader, field: &Field<'_>) -> Option<u64> {
    let Value::Int(bytes) = field.node.value else {
        let remedy = "write e.g. request_body_bytes_max: 10000000";
        reader.mismatch(field, "a whole number", remedy);
        return None;
    };
    if !(0..=BODY_BYTES_MAX).contains(&bytes) {
        let problem = format!("{bytes} is out of range");
        let allowed = format!("allowed are 0 to {BODY_BYTES_MAX}");
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    u64::try_from(bytes).ok()
}

fn whole(
    reader: &mut Reader,
    fields: &Fields<'_>,
    name: &str,
    range: RangeInclusive<u32>,
    to: &mut u32,
) {
    let value = fields
        .get(name)
        .and_then(|field| reader.whole(&field, range));
    *to = value.unwrap_or(*to);
}

fn seconds(
    reader: &mut Reader,
    fields: &Fields<'_>,
    name: &str,
    least: Duration,
    to: &mut Duration,
) {
    let value = fields
        .get(name)
        .and_then(|field| reader.seconds(&field, least));
    *to = value.unwrap_or(*to);
}

/// At least [`PACE_MIN`].
pub(super) fn optional_seconds(
    reader: &mut Reader,
    fields: &Fields<'_>,
    name: &str,
    to: &mut Option<Duration>,
) {
    let value = fields
        .get(name)
        .and_then(|field| reader.seconds(&field, PACE_MIN));
    *to = value.or(*to);
}
