//! `resources`: the ports that replicas open, and what is recorded for display.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::error::Mark;
use super::fields::RESOURCES;
use super::placement::{self, Placement};
use super::reader::{Field, Fields, Reader};
use super::yaml::Value;

/// What `resources` says.
pub(super) struct Resources {
    pub(super) ports: Ports,
    /// The rest, for display.
    pub(super) shown: BTreeMap<String, String>,
    /// What a replica runs in.
    pub(super) placement: Placement,
}

/// The ports that a replica opens.
pub(super) enum Ports {
    /// Each as a range; most of one port. Where they stand, for a message.
    Open(Vec<RangeInclusive<u16>>, Mark),
    /// None are named.
    Closed,
    /// They cannot be told, and why is reported.
    Unknown,
}

/// Reads `resources` of the document.
pub(super) fn read(reader: &mut Reader, task: &Fields<'_>) -> Resources {
    let mut resources = Resources {
        ports: Ports::Closed,
        shown: BTreeMap::new(),
        placement: Placement::default(),
    };
    let Some(field) = task.get("resources") else {
        return resources;
    };
    let Some(fields) = reader.section(field.node, &RESOURCES) else {
        resources.ports = Ports::Unknown;
        return resources;
    };
    if fields.given("any_of") && fields.given("ordered") {
        let problem = "any_of and ordered contradict each other";
        reader.fault("resources", field.node.mark, problem, "keep one of them");
    }
    resources.ports = match fields.get("ports") {
        Some(field) => ports(reader, &field),
        // Alternatives may open the port, and they are refused by name already.
        None if fields.given("any_of") || fields.given("ordered") => Ports::Unknown,
        None => Ports::Closed,
    };
    for name in ["cpus", "memory", "disk_size"] {
        if let Some(amount) = fields
            .get(name)
            .and_then(|field| amount(reader, name, &field))
        {
            resources.shown.insert(name.to_owned(), amount);
        }
    }
    resources.placement = placement::read_resources(reader, &fields);
    if let Some(field) = fields.get("job_recovery") {
        let problem = "a service recovers its replicas by itself, so job_recovery is not allowed";
        reader.fault(&field.path, field.node.mark, problem, "remove it");
    }
    resources
}

fn ports(reader: &mut Reader, field: &Field<'_>) -> Ports {
    let listed = match &field.node.value {
        Value::Null => return Ports::Closed,
        Value::Seq(items) => items
            .iter()
            .enumerate()
            .map(|(at, node)| {
                let path = format!("{}[{at}]", field.path);
                port(reader, &Field { path, node })
            })
            .collect(),
        _ => vec![port(reader, field)],
    };
    match listed.into_iter().collect::<Option<Vec<_>>>() {
        Some(open) if open.is_empty() => Ports::Closed,
        Some(open) => Ports::Open(open, field.node.mark),
        None => Ports::Unknown,
    }
}

fn port(reader: &mut Reader, field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    let remedy = "write e.g. ports: 8080";
    let parsed = match &field.node.value {
        Value::Int(value) => u16::try_from(*value).ok().map(|port| port..=port),
        Value::Str(text) => match text.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).map(|(a, b)| a..=b),
            None => number(text).map(|port| port..=port),
        },
        _ => {
            reader.mismatch(field, "a port", remedy);
            return None;
        }
    };
    let legal = parsed.filter(|range| *range.start() >= 1 && !range.is_empty());
    if legal.is_none() {
        let problem = format!("{} is not a port", field.node.describe());
        reader.fault(
            &field.path,
            field.node.mark,
            problem,
            format!("ports are 1 to 65535; {remedy}"),
        );
    }
    legal
}

fn number(text: &str) -> Option<u16> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `cpus`, `memory` or `disk_size` as it was written, if SkyServe would take it.
fn amount(reader: &mut Reader, name: &str, field: &Field<'_>) -> Option<String> {
    let (allowed, suffixes): (&str, &[&str]) = match name {
        "cpus" => ("write e.g. cpus: 4, or 4+ for at least 4", &["+"]),
        "memory" => (
            "write e.g. memory: 16 (in GB), 16+ for at least 16, or 4x for 4 times the CPUs",
            &["+", "x"],
        ),
        _ => ("write e.g. disk_size: 256 (in GB)", &[]),
    };
    let text = match &field.node.value {
        Value::Int(value) => value.to_string(),
        Value::Float(value) if name != "disk_size" => value.to_string(),
        Value::Str(text) => text.trim().to_owned(),
        _ => {
            reader.mismatch(field, "an amount", allowed);
            return None;
        }
    };
    let mut body = suffixes
        .iter()
        .find_map(|suffix| text.strip_suffix(suffix))
        .unwrap_or(&text)
        .to_ascii_lowercase();
    if name != "cpus" {
        body = without_unit(&body).to_owned();
    }
    let legal = body
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        && body
            .parse::<f64>()
            .is_ok_and(|value| value > 0.0 && value.is_finite())
        && !(name == "disk_size" && body.contains('.'));
    if !legal {
        let problem = format!("{} is not an amount", field.node.describe());
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    legal.then_some(text)
}

/// An amount of memory without its unit.
fn without_unit(text: &str) -> &str {
    let text = text.strip_suffix('b').unwrap_or(text);
    let text = text.strip_suffix('i').unwrap_or(text);
    text.strip_suffix(['k', 'm', 'g', 't', 'p']).unwrap_or(text)
}
