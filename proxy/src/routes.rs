//! The routes: an immutable table that the control path swaps in whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use raftserve_model::spec::{
    LoadBalancingPolicy, Retries, RouteRule, SessionAffinity, Timeouts, Traffic,
};
use raftserve_model::{ReplicaId, ServiceId, ServiceName, ServiceVersion};
use tokio::sync::watch;

use crate::policy::HashTable;

/// The [`Endpoint::weight`] of a replica of which nothing is known.
pub const USUAL_WEIGHT: u32 = 1_000;

/// A replica that requests may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which replica.
    pub replica: ReplicaId,
    /// Where it listens.
    pub address: SocketAddr,
    /// The version of its service that it counts as.
    pub version: ServiceVersion,
    /// What it can take beside the others, in thousandths of the usual; at least 1.
    pub weight: u32,
    /// Whether it may get requests that no session binds to it. An endpoint that is not ready is
    /// there for the sessions that are bound to it.
    pub ready: bool,
}

/// One service as the proxy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRoute {
    /// The service.
    pub id: ServiceId,
    /// Its name: the first label of its hosts, and its path prefix.
    pub name: ServiceName,
    /// Its own port, if it has one.
    pub port: Option<u16>,
    /// How an endpoint is picked for a request that no session binds.
    pub policy: LoadBalancingPolicy,
    /// The longest silence from an upstream within a request, and for its first byte.
    pub stream_timeout: Duration,
    /// Strict session affinity, if the service asks for it.
    pub affinity: Option<SessionAffinity>,
    /// How its requests are carried.
    pub traffic: Traffic,
    /// Its replicas, in any order, each once.
    pub endpoints: Vec<Endpoint>,
}

impl ServiceRoute {
    /// How long a request that met `rule` may take.
    #[must_use]
    pub fn timeouts<'r>(&'r self, rule: Option<&'r RouteRule>) -> &'r Timeouts {
        let own = rule.and_then(|rule| rule.timeouts.as_ref());
        own.unwrap_or(&self.traffic.timeouts)
    }

    /// The longest silence from an upstream that any of its requests allows.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        let rules = self.traffic.routes.iter();
        let own = rules.filter_map(|rule| rule.timeouts.as_ref());
        let all = own.chain([&self.traffic.timeouts]);
        all.flat_map(|timeouts| [timeouts.first_byte, timeouts.idle])
            .map(|limit| limit.unwrap_or(self.stream_timeout))
            .fold(Duration::ZERO, Duration::max)
    }

    /// When a request that met `rule` is tried again.
    #[must_use]
    pub fn retries<'r>(&'r self, rule: Option<&'r RouteRule>) -> &'r Retries {
        let own = rule.and_then(|rule| rule.retries.as_ref());
        own.unwrap_or(&self.traffic.retries)
    }

    /// The largest body of a request that met `rule`, in bytes; any without it.
    #[must_use]
    pub fn body_bytes_max(&self, rule: Option<&RouteRule>) -> Option<u64> {
        let own = rule.and_then(|rule| rule.request_body_bytes_max);
        own.or(self.traffic.request_body_bytes_max)
    }

    /// Whether its requests have to be looked at for more than their service: for its rules, or for a key to hash.
    #[must_use]
    pub fn looks_at_requests(&self) -> bool {
        self.policy.hashes() || !self.traffic.routes.is_empty()
    }

    /// The replicas that may get requests which no session binds, in order.
    fn ready(&self) -> Vec<ReplicaId> {
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.ready);
        let mut ready: Vec<_> = ready.map(|endpoint| endpoint.replica).collect();
        ready.sort_unstable();
        ready
    }
}

/// Which port a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The port that all services share.
    Shared,
    /// A service's own port.
    Service(ServiceId),
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub struct Resolved<'a> {
    /// The service.
    pub service: &'a Arc<ServiceRoute>,
    /// Its place in [`RouteTable::services`].
    pub index: usize,
    /// How many bytes of the path name the service, and are not sent on: 0, or the length of `/NAME`.
    pub prefix_len: usize,
}

/// All services at one moment. Cheap to share, never changed. The default is the table of a proxy that
/// has not been told yet what there is.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Whether it says what there is: a service that it lacks does not exist.
    known: bool,
    /// By id, so that of two names that differ in case only the older service has the host.
    services: Vec<Arc<ServiceRoute>>,
    /// Lower-case names of at most [`LABEL_MAX`] bytes.
    by_label: BTreeMap<Box<[u8]>, usize>,
    by_name: BTreeMap<Box<[u8]>, usize>,
    /// By the service's place, once published; of its ready replicas, in order, if its policy hashes.
    hash_tables: Vec<Option<Arc<HashTable>>>,
}

/// The longest label of a host name (RFC 1035, 2.3.4), and so the longest that can name a service.
const LABEL_MAX: usize = 63;

impl RouteTable {
    /// The table of these services. Give services that did not change as the same `Arc`: what
    /// workers derived from them is then kept.
    #[must_use]
    pub fn new(services: impl IntoIterator<Item = Arc<ServiceRoute>>) -> Self {
        let mut services: Vec<_> = services.into_iter().collect();
        services.sort_by_key(|service| service.id);
        services.dedup_by_key(|service| service.id);
        let mut table = Self {
            known: true,
            ..Self::default()
        };
        for (index, service) in services.iter().enumerate() {
            let name = service.name.as_str();
            let label = name.to_ascii_lowercase().into_bytes().into_boxed_slice();
            table.by_label.entry(label).or_insert(index);
            table.by_name.entry(name.as_bytes().into()).or_insert(index);
        }
        table.services = services;
        table
    }

    /// Whether a service that is not in it does not exist, as far as was agreed.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// The services, by id.
    #[must_use]
    pub fn services(&self) -> &[Arc<ServiceRoute>] {
        &self.services
    }

    /// What the service at a place looks keys up in.
    pub(crate) fn hash_table(&self, index: usize) -> Option<&Arc<HashTable>> {
        self.hash_tables.get(index)?.as_ref()
    }

    /// Makes what keys are looked up in, or takes it from the table before where it would be the same.
    fn arrange(&mut self, before: &Self) {
        let arranged = self.services.iter().map(|service| {
            if !service.policy.hashes() {
                return None;
            }
            let ready = service.ready();
            let known = before.position(service.id);
            let known = known.and_then(|index| before.hash_table(index));
            match known {
                Some(known) if known.is_of(service.policy, &ready) => Some(Arc::clone(known)),
                _ => HashTable::new(service.policy, ready).map(Arc::new),
            }
        });
        self.hash_tables = arranged.collect();
    }

    /// The place of a service in [`Self::services`].
    #[must_use]
    pub fn position(&self, id: ServiceId) -> Option<usize> {
        self.services
            .binary_search_by_key(&id, |service| service.id)
            .ok()
    }

    /// Finds the service of a request: a service's own port is always its own; on the shared port
    /// the first label of the host, then the path prefix, then the sole service.
    #[must_use]
    pub fn resolve(&self, host: &str, path: &str, listener: Listener) -> Option<Resolved<'_>> {
        let (index, prefix_len) = match listener {
            Listener::Service(id) => (self.position(id)?, 0),
            Listener::Shared => self.resolve_shared(host, path)?,
        };
        Some(Resolved {
            service: &self.services[index],
            index,
            prefix_len,
        })
    }

    fn resolve_shared(&self, host: &str, path: &str) -> Option<(usize, usize)> {
        if let Some(index) = self.by_host(host) {
            return Some((index, 0));
        }
        if let Some(segment) = first_segment(path)
            && let Some(&index) = self.by_name.get(segment)
        {
            return Some((index, 1 + segment.len()));
        }
        (self.services.len() == 1).then_some((0, 0))
    }

    /// A service's name starts with a letter and holds no colon, so neither a literal of IPv4 nor
    /// one of IPv6 has a first label that names a service.
    fn by_host(&self, host: &str) -> Option<usize> {
        let host = host.as_bytes();
        let end = host.iter().position(|byte| matches!(byte, b'.' | b':'));
        let label = &host[..end.unwrap_or(host.len())];
        let mut lower = [0; LABEL_MAX];
        let lower = lower.get_mut(..label.len())?;
        lower.copy_from_slice(label);
        lower.make_ascii_lowercase();
        self.by_label.get(&*lower).copied()
    }
}

/// `NAME` of a path that is `/NAME` or starts with `/NAME/`.
fn first_segment(path: &str) -> Option<&[u8]> {
    let rest = path.as_bytes().strip_prefix(b"/")?;
    let end = rest.iter().position(|&byte| byte == b'/');
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// Where the control path publishes a new table, and the workers read the present one.
#[derive(Debug)]
pub struct Routes {
    table: ArcSwap<RouteTable>,
    published: watch::Sender<u64>,
}

impl Default for Routes {
    fn default() -> Self {
        Self::new(RouteTable::default())
    }
}

impl Routes {
    /// Starts with `table`.
    #[must_use]
    pub fn new(mut table: RouteTable) -> Self {
        table.arrange(&RouteTable::default());
        Self {
            table: ArcSwap::from_pointee(table),
            published: watch::Sender::new(0),
        }
    }

    /// Swaps `table` in. Requests that were routed by the table before finish by it. Where replicas of a service with a
    /// hash policy changed, it first makes its lookup table, which takes a few milliseconds.
    pub fn publish(&self, mut table: RouteTable) {
        table.arrange(&self.table.load());
        self.table.store(Arc::new(table));
        self.published.send_modify(|version| *version += 1);
    }

    /// The present table.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<RouteTable>> {
        self.table.load()
    }

    /// Tells of each publication.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }
}

/// Services of these names without replicas, by the numbers from 1.
#[cfg(any(test, fuzzing))]
pub(crate) fn table(names: &[&str]) -> RouteTable {
    RouteTable::new(names.iter().zip(1..).map(|(name, id)| {
        Arc::new(ServiceRoute {
            id: ServiceId(id),
            name: name.parse().expect("a good name"),
            port: None,
            policy: LoadBalancingPolicy::RoundRobin,
            stream_timeout: Duration::from_secs(1),
            affinity: None,
            traffic: Traffic::default(),
            endpoints: Vec::new(),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &RouteTable, host: &str, path: &str) -> Option<(u64, usize)> {
        table
            .resolve(host, path, Listener::Shared)
            .map(|found| (found.service.id.0, found.prefix_len))
    }

    #[test]
    fn first_label_names_the_service_whatever_its_case() {
        let table = table(&["Chat", "embed"]);
        for host in ["chat", "CHAT:8080", "chat.example.com", "Chat.x:1", "chat."] {
            assert_eq!(found(&table, host, "/embed/x"), Some((1, 0)), "{host}");
        }
        for host in ["chatx", "x.chat", "", ":80", "chat-1.example"] {
            assert_eq!(found(&table, host, "/"), None, "{host}");
        }
    }

    #[test]
    fn an_address_never_names_a_service() {
        let table = table(&["f", "a10"]);
        for host in ["10.0.0.1", "10.0.0.1:80", "[::1]", "[f::1]:8080", "[f]"] {
            assert_eq!(found(&table, host, "/"), None, "{host}");
        }
    }

    #[test]
    fn overlong_labels_name_nothing() {
        let table = table(&["a", "b"]);
        assert_eq!(found(&table, &"a".repeat(64), "/"), None);
    }

    #[test]
    fn the_prefix_is_a_whole_first_segment() {
        let table = table(&["chat", "embed"]);
        assert_eq!(found(&table, "localhost", "/embed/v1"), Some((2, 6)));
        assert_eq!(found(&table, "localhost", "/embed/"), Some((2, 6)));
        assert_eq!(found(&table, "localhost", "/embed"), Some((2, 6)));
        for path in [
            "/embedx", "/embedx/", "/Embed/", "//embed/", "embed/", "embed", "*", "/",
        ] {
            assert_eq!(found(&table, "localhost", path), None, "{path}");
        }
    }

    #[test]
    fn a_sole_service_answers_everything_else() {
        let table = table(&["chat"]);
        assert_eq!(found(&table, "10.1.2.3:8080", "/x"), Some((1, 0)));
        assert_eq!(found(&table, "other.host", "/chat/x"), Some((1, 5)));
        assert_eq!(found(&table, "other.host", "/chat"), Some((1, 5)));
        assert_eq!(found(&RouteTable::default(), "chat", "/"), None);
    }

    #[test]
    fn a_service_port_is_always_its_own() {
        let table = table(&["chat", "embed"]);
        let own = table.resolve("chat", "/chat/", Listener::Service(ServiceId(2)));
        let own = own.expect("the service is there");
        assert_eq!((own.service.id, own.prefix_len), (ServiceId(2), 0));
        let gone = table.resolve("chat", "/", Listener::Service(ServiceId(9)));
        assert!(gone.is_none());
    }
}
