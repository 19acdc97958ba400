//! Upstreams that are there without us: fixed addresses, names, or a Kubernetes Service's endpoints.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Provider;
use super::fields::{PROVIDER, STATIC};
use super::reader::{Field, Reader};
use super::yaml::Value;

/// Where the replicas of a service are that nobody makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StaticUpstreams {
    /// `HOST:PORT` each. A name stands for all the addresses that it resolves to, now and later.
    Addresses(BTreeSet<String>),
    /// The ready endpoints of a Kubernetes Service.
    KubernetesService(KubernetesService),
}

/// A Service of Kubernetes, headless or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesService {
    /// Its name.
    pub name: String,
    /// Its namespace; that of the peers if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Which of its ports: the port's name, or the number on which pods listen. Its first if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// The most addresses that can be named.
const ADDRESSES_MAX: usize = 1_000;

/// Reads `_metadata.raftserve.provider`.
pub(super) fn read(reader: &mut Reader, field: &Field<'_>) -> Provider {
    let remedy = "leave it out, or write {static: {addresses: [HOST:PORT]}}";
    match &field.node.value {
        Value::Str(name) if matches!(name.as_str(), "default" | "process") => Provider::Peers,
        Value::Map(_) => reader
            .section(field.node, &PROVIDER)
            .and_then(|fields| fields.get("static"))
            .and_then(|field| upstreams(reader, &field))
            .map_or(Provider::Peers, Provider::Static),
        Value::Str(_) => {
            let problem = format!("there is no provider {}", field.node.describe());
            let remedy = "who makes replicas is chosen with --provider of the peers; here, allowed are \
                          default and {static: …}";
            reader.fault(&field.path, field.node.mark, problem, remedy);
            Provider::Peers
        }
        _ => {
            reader.mismatch(field, "a provider", remedy);
            Provider::Peers
        }
    }
}

fn upstreams(reader: &mut Reader, field: &Field<'_>) -> Option<StaticUpstreams> {
    let fields = reader.section(field.node, &STATIC)?;
    match (fields.get("addresses"), fields.get("kubernetes_service")) {
        (Some(addresses), None) => {
            if let Some(port) = fields.get("port") {
                let remedy = "write it in each address";
                let problem = "belongs to kubernetes_service";
                reader.fault(&port.path, port.node.mark, problem, remedy);
            }
            Some(StaticUpstreams::Addresses(read_addresses(
                reader, &addresses,
            )))
        }
        (None, Some(service)) => {
            let (name, namespace) = service_name(reader, &service)?;
            let port = fields.get("port").and_then(|field| port(reader, &field));
            Some(StaticUpstreams::KubernetesService(KubernetesService {
                name,
                namespace,
                port,
            }))
        }
        _ => {
            let problem = "names either addresses or a kubernetes_service";
            let remedy =
                "write e.g. addresses: [10.0.0.1:8080], or kubernetes_service: NAME.NAMESPACE";
            reader.fault(&field.path, field.node.mark, problem, remedy);
            None
        }
    }
}

fn read_addresses(reader: &mut Reader, field: &Field<'_>) -> BTreeSet<String> {
    let remedy = "write HOST:PORT, e.g. 10.0.0.1:8080 or models.example.com:80";
    let items = reader.items(field, remedy);
    if items.is_empty() || items.len() > ADDRESSES_MAX {
        let problem = format!(
            "{} addresses; 1 to {ADDRESSES_MAX} are allowed",
            items.len()
        );
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    let mut addresses = BTreeSet::new();
    for item in items {
        let Some(text) = reader.text(&item) else {
            continue;
        };
        let legal = text.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let bracketed = bare.len() + 2 == host.len();
            let host_is_legal = match bracketed {
                true => bare.parse::<std::net::Ipv6Addr>().is_ok(),
                false => is_host(host),
            };
            host_is_legal && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        match legal {
            true => {
                addresses.insert(text.to_owned());
            }
            false => {
                let problem = format!("{} is not an address", item.node.describe());
                reader.fault(&item.path, item.node.mark, problem, remedy);
            }
        }
    }
    addresses
}

fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn service_name(reader: &mut Reader, field: &Field<'_>) -> Option<(String, Option<String>)> {
    let label = |text: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let text = reader.text(field)?;
    let (name, namespace) = match text.split_once('.') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (text, None),
    };
    if label(name) && namespace.is_none_or(label) {
        return Some((name.to_owned(), namespace.map(str::to_owned)));
    }
    let problem = format!("{} is not a Service", field.node.describe());
    let remedy = "write NAME or NAME.NAMESPACE";
    reader.fault(&field.path, field.node.mark, problem, remedy);
    None
}

fn port(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    match &field.node.value {
        Value::Int(port) if (1..=65_535).contains(port) => Some(port.to_string()),
        Value::Str(name) if !name.is_empty() && name.len() <= 63 => Some(name.clone()),
        _ => {
            reader.mismatch(field, "a port's name or number", "");
            None
        }
    }
}
