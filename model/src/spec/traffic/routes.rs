//! Reading `_metadata.raftserve.traffic.routes`.

use std::collections::{BTreeMap, BTreeSet};

use super::super::fields::ROUTE;
use super::super::probe::{self, is_token};
use super::super::reader::{Field, Fields, Reader};
use super::super::yaml::Value;
use super::read::{body_bytes, check_tries, optional_seconds, retries, timeouts};
use super::{RouteRule, Traffic};

/// The most rules: they are looked at one after the other.
const RULES_MAX: usize = 64;
/// The most hosts, methods, headers or weights of one rule, for the same reason.
const CONDITIONS_MAX: usize = 32;
/// The largest weight: fine enough for any share, and sums stay far from overflow.
const WEIGHT_MAX: u32 = 1_000_000;

/// Reads the rules of a service whose other settings are `traffic`.
pub(super) fn read(reader: &mut Reader, field: &Field<'_>, traffic: &Traffic) -> Vec<RouteRule> {
    let items = reader.items(field, "write e.g. routes: [{path_prefix: /v1}]");
    if bound(reader, field, items.len(), RULES_MAX, "rules") {
        return Vec::new();
    }
    let mut rules: Vec<RouteRule> = Vec::with_capacity(items.len());
    for item in &items {
        if rules.last().is_some_and(matches_all) {
            let problem = "never reached: the rule before it matches every request";
            let remedy = "give that one a condition, or put it last";
            reader.fault(&item.path, item.node.mark, problem, remedy);
            break;
        }
        let Some(fields) = reader.section_at(item.node, &ROUTE, item.path.clone()) else {
            continue;
        };
        rules.push(rule(reader, &fields, traffic));
    }
    rules
}

fn matches_all(rule: &RouteRule) -> bool {
    let anywhere = rule
        .path_prefix
        .as_deref()
        .is_none_or(|prefix| prefix == "/");
    anywhere && rule.hosts.is_empty() && rule.methods.is_empty() && rule.headers.is_empty()
}

fn rule(reader: &mut Reader, fields: &Fields<'_>, traffic: &Traffic) -> RouteRule {
    let mut rule = RouteRule::default();
    if let Some(field) = fields.get("hosts") {
        rule.hosts = list(reader, &field, "hosts: [api.example.com]", host);
    }
    if let Some(field) = fields.get("methods") {
        rule.methods = list(reader, &field, "methods: [GET, POST]", method);
    }
    rule.path_prefix = fields
        .get("path_prefix")
        .and_then(|field| prefix(reader, &field));
    if let Some(field) = fields.get("rewrite_prefix") {
        rule.rewrite_prefix = prefix(reader, &field);
        if !fields.given("path_prefix") {
            let problem = "there is no path_prefix whose place it could take";
            let remedy = "write path_prefix: / to put it before every path";
            reader.fault(&field.path, field.node.mark, problem, remedy);
        }
    }
    if let Some(field) = fields.get("headers") {
        rule.headers = headers(reader, &field);
    }
    if let Some(field) = fields.get("weights") {
        rule.weights = weights(reader, &field);
    }
    let timeouts_field = fields.get("timeouts");
    rule.timeouts = timeouts_field
        .as_ref()
        .map(|field| timeouts(reader, field, &traffic.timeouts));
    let retries_field = fields.get("retries");
    rule.retries = retries_field
        .as_ref()
        .map(|field| retries(reader, field, &traffic.retries));
    if let Some(field) = retries_field.or(timeouts_field) {
        let retries = rule.retries.as_ref().unwrap_or(&traffic.retries);
        let timeouts = rule.timeouts.as_ref().unwrap_or(&traffic.timeouts);
        check_tries(reader, &field, retries, timeouts);
    }
    optional_seconds(
        reader,
        fields,
        "connect_timeout_seconds",
        &mut rule.connect_timeout,
    );
    rule.request_body_bytes_max = fields
        .get("request_body_bytes_max")
        .and_then(|field| body_bytes(reader, &field));
    rule
}

/// Whether there are more than `most`; that is then noted.
fn bound(reader: &mut Reader, field: &Field<'_>, count: usize, most: usize, what: &str) -> bool {
    let over = count > most;
    if over {
        let problem = format!("{count} {what}");
        let allowed = format!("at most {most} are allowed");
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    over
}

/// The items of a list, in order, each once.
fn list(
    reader: &mut Reader,
    field: &Field<'_>,
    example: &str,
    read: fn(&mut Reader, &Field<'_>) -> Option<String>,
) -> Vec<String> {
    let items = reader.items(field, &format!("write e.g. {example}"));
    if bound(reader, field, items.len(), CONDITIONS_MAX, "of them") {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    items
        .iter()
        .filter_map(|item| read(reader, item))
        .filter(|text| seen.insert(text.clone()))
        .collect()
}

fn host(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let host = reader.text(field)?.to_ascii_lowercase();
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let labels_right = name
        .split('.')
        .all(|label| !label.is_empty() && label.len() <= 63 && label.bytes().all(legal));
    if !labels_right || name.len() > 253 {
        let problem = format!("{} is not a host", field.node.describe());
        let remedy = "write a name without a port, or *. and a name for all hosts below it";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(host)
}

fn method(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let method = reader.text(field)?.to_ascii_uppercase();
    if !is_token(&method) || method == "CONNECT" {
        let problem = format!(
            "{} is not a method that is passed on",
            field.node.describe()
        );
        reader.fault(&field.path, field.node.mark, problem, "write e.g. GET");
    }
    Some(method)
}

fn prefix(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let path = reader.text(field)?;
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(legal) {
        let problem = format!("{} is not the beginning of a path", field.node.describe());
        let remedy = "write e.g. /v1, with what is not ASCII as %XX";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    Some(path.to_owned())
}

fn headers(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<String, String> {
    let given = probe::headers(reader, field);
    if bound(reader, field, given.len(), CONDITIONS_MAX, "headers") {
        return BTreeMap::new();
    }
    let mut headers = BTreeMap::new();
    for (name, value) in given {
        let lower = name.to_ascii_lowercase();
        let problem = if lower == "host" {
            "the host has a condition of its own"
        } else if headers.insert(lower, value).is_some() {
            "the same header twice, in another case"
        } else {
            continue;
        };
        let path = format!("{}.{name}", field.path);
        let remedy = "use hosts for the host, and name each header once";
        reader.fault(&path, field.node.mark, problem, remedy);
    }
    headers
}

fn weights(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<u64, u32> {
    let Value::Map(entries) = &field.node.value else {
        reader.mismatch(field, "a mapping", "write e.g. weights: {1: 90, 2: 10}");
        return BTreeMap::new();
    };
    if bound(reader, field, entries.len(), CONDITIONS_MAX, "weights") {
        return BTreeMap::new();
    }
    let mut weights = BTreeMap::new();
    for entry in entries {
        let path = format!("{}.{}", field.path, entry.key);
        let version = entry.key.parse().ok().filter(|version| *version > 0);
        let Some(version) = version else {
            let problem = format!("{:?} is not the number of a version", entry.key);
            let remedy = "a service's first version is 1, and each update adds one";
            reader.fault(&path, entry.mark, problem, remedy);
            continue;
        };
        let node = &entry.value;
        if let Some(weight) = reader.whole(&Field { path, node }, 0..=WEIGHT_MAX) {
            weights.insert(version, weight);
        }
    }
    if weights.len() == entries.len() && weights.values().all(|weight| *weight == 0) {
        let problem = "no version has a weight above zero";
        let remedy = "give one of them a share, or remove weights";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    weights
}
