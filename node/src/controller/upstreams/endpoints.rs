//! The ready endpoints of a Kubernetes Service, as its EndpointSlices tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::watcher::Event;
use raftserve_model::spec::KubernetesService;

use crate::controller::chain;
use crate::kubernetes::ApiServer;
use crate::kubernetes::watching::{Heard, Watching};

/// The pause before credentials are looked for again, where there are none.
const NO_CLIENT_PAUSE: Duration = Duration::from_secs(10);

/// Tells the addresses now and whenever they change, for ever, and why there are none. While the API server is away, the
/// addresses that were told last stay.
pub(super) async fn follow(
    api: ApiServer,
    service: KubernetesService,
    tell: impl Fn(Option<BTreeSet<String>>, Option<String>),
) {
    let client = loop {
        match api.client().await {
            Ok(client) => break client,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(service = service.name, %error, "no Kubernetes to ask for endpoints");
                tell(
                    None,
                    Some(format!(
                        "the leader knows no Kubernetes to ask for the endpoints of {}: {error}",
                        service.name
                    )),
                );
                tokio::time::sleep(NO_CLIENT_PAUSE).await;
            }
        }
    };
    let namespace = service.namespace.as_deref();
    let namespace = namespace.unwrap_or(client.default_namespace()).to_owned();
    let slices: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let labels = format!("kubernetes.io/service-name={}", service.name);
    let port = service.port.as_deref();
    let mut watching = Watching::begin(slices, &labels);
    let mut known = Slices::new();
    let mut troubled = false;
    let tell_known = |known: &Slices| {
        let addresses = union(known);
        let trouble = addresses
            .is_empty()
            .then(|| nothing(&service, &namespace, known));
        tell(Some(addresses), trouble);
    };
    while let Some(heard) = watching.next().await {
        match heard {
            Heard::Event(Event::Init) => {
                // Told before anybody is asked: what was in the way still may be.
                known.clear();
                continue;
            }
            Heard::Event(Event::InitApply(slice)) => {
                note(&mut known, &slice, port);
            }
            Heard::Event(Event::InitDone) | Heard::Recovered => tell_known(&known),
            Heard::Event(Event::Apply(slice)) => {
                note(&mut known, &slice, port);
                tell_known(&known);
            }
            Heard::Event(Event::Delete(slice)) => {
                known.remove(slice.metadata.name.as_deref().unwrap_or_default());
                tell_known(&known);
            }
            Heard::Failed(error) => {
                let said = format!(
                    "cannot watch the endpoints of {} in {namespace}: {}; those told last stay; the peers' service \
                     account needs list and watch on endpointslices.discovery.k8s.io there",
                    service.name,
                    chain(&error)
                );
                if !troubled {
                    tracing::warn!("{said}");
                }
                tell(None, Some(said));
                troubled = true;
                continue;
            }
        }
        troubled = false;
    }
}

/// The name of a Service in the names of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceName {
    name: String,
    namespace: String,
    port: u16,
}

impl ServiceName {
    /// Of `NAME.NAMESPACE.svc:PORT`, with or without the cluster's domain after `svc`. Other names may be anybody's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::parse_in(text, cluster_domain())
    }

    fn parse_in(text: &str, domain: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut labels = host.splitn(4, '.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        let is_service = labels.next() == Some("svc") && !name.is_empty() && !namespace.is_empty();
        let is_service = is_service && labels.next().is_none_or(|tail| tail == domain);
        is_service.then_some(())?;
        Some(Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            port: port.parse().ok()?,
        })
    }
}

/// The domain of this cluster's names, as the resolver of a pod has it.
fn cluster_domain() -> &'static str {
    static DOMAIN: OnceLock<String> = OnceLock::new();
    DOMAIN.get_or_init(|| {
        let settings = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        domain_in(&settings).unwrap_or("cluster.local").to_owned()
    })
}

fn domain_in(settings: &str) -> Option<&str> {
    let mut searched = settings
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("search"))
        .flat_map(str::split_whitespace);
    searched.find_map(|domain| domain.trim_end_matches('.').strip_prefix("svc."))
}

/// Tells where the ready pods of a headless Service are, now and whenever that changes, for ever: much sooner than a resolver
/// that keeps answers for a while. Tells nothing where that cannot be known, as of a Service with an address of its own.
pub(super) async fn follow_headless(
    api: ApiServer,
    service: ServiceName,
    tell: impl Fn(Option<BTreeSet<String>>),
) {
    if api.is_known().await.is_err() {
        return; // No peer of a Kubernetes cluster.
    }
    let Ok(client) = api.client().await else {
        return;
    };
    let slices: Api<EndpointSlice> = Api::namespaced(client, &service.namespace);
    let labels = format!(
        "kubernetes.io/service-name={},service.kubernetes.io/headless",
        service.name
    );
    let mut watching = Watching::begin(slices, &labels);
    let mut known = Slices::new();
    let mut troubled = false;
    let tell_known = |known: &Slices| tell((!known.is_empty()).then(|| union(known)));
    while let Some(heard) = watching.next().await {
        match heard {
            Heard::Event(Event::Init) => {
                known.clear();
                continue;
            }
            Heard::Event(Event::InitApply(slice)) => note(&mut known, &slice, service.port),
            Heard::Event(Event::InitDone) | Heard::Recovered => tell_known(&known),
            Heard::Event(Event::Apply(slice)) => {
                note(&mut known, &slice, service.port);
                tell_known(&known);
            }
            Heard::Event(Event::Delete(slice)) => {
                known.remove(slice.metadata.name.as_deref().unwrap_or_default());
                tell_known(&known);
            }
            Heard::Failed(error) => {
                if !std::mem::replace(&mut troubled, true) {
                    tracing::info!(
                        service = service.name, namespace = service.namespace, error = %chain(&error),
                        "cannot watch the endpoints of a name, which is resolved every two seconds instead"
                    );
                }
                tell(None);
                continue;
            }
        }
        troubled = false;
    }
}

/// Why there is no address.
fn nothing(service: &KubernetesService, namespace: &str, known: &Slices) -> String {
    let name = format!("Kubernetes Service {} in {namespace}", service.name);
    if known.is_empty() {
        return format!("{name} has no endpoints, or is not there");
    }
    match &service.port {
        Some(port) => format!("{name} has no ready endpoints with port {port}"),
        None => format!("{name} has no ready endpoints"),
    }
}

/// What is known of each slice, by its name.
type Slices = BTreeMap<String, Slice>;

struct Slice {
    /// Whether it is of IPv4, and has endpoints at all.
    is_ipv4: bool,
    ready: BTreeSet<String>,
}

/// Which port of the endpoints is asked for.
#[derive(Clone, Copy)]
enum Port<'a> {
    /// One that their Service has, by name or number, or its first.
    OfService(Option<&'a str>),
    /// This one, whether or not their Service says anything of it.
    Given(u16),
}

impl<'a> From<Option<&'a str>> for Port<'a> {
    fn from(port: Option<&'a str>) -> Self {
        Self::OfService(port)
    }
}

impl From<u16> for Port<'_> {
    fn from(port: u16) -> Self {
        Self::Given(port)
    }
}

impl Port<'_> {
    fn of(self, slice: &EndpointSlice) -> Option<u16> {
        let wanted = match self {
            Self::Given(port) => return Some(port),
            Self::OfService(wanted) => wanted,
        };
        let mut ports = slice.ports.iter().flatten();
        let chosen = ports.find(|it| {
            wanted.is_none_or(|wanted| {
                it.name.as_deref() == Some(wanted)
                    || it.port.is_some_and(|number| number.to_string() == wanted)
            })
        });
        u16::try_from(chosen?.port?).ok()
    }
}

fn note<'a>(known: &mut Slices, slice: &EndpointSlice, port: impl Into<Port<'a>>) {
    let name = slice.metadata.name.clone().unwrap_or_default();
    let told = Slice {
        is_ipv4: slice.address_type == "IPv4" && !slice.endpoints.is_empty(),
        ready: addresses(slice, port.into()),
    };
    known.insert(name, told);
}

/// All that are ready, each once: a Service of two families has slices of both for each pod. Those of IPv4 count if
/// there are any.
fn union(known: &Slices) -> BTreeSet<String> {
    let ipv4 = known.values().any(|slice| slice.is_ipv4);
    let of_family = known.values().filter(|slice| slice.is_ipv4 == ipv4);
    of_family.flat_map(|slice| &slice.ready).cloned().collect()
}

/// The endpoints of a slice that are ready, which those that terminate are not. Of several addresses of one, only the
/// first means anything.
fn addresses(slice: &EndpointSlice, port: Port<'_>) -> BTreeSet<String> {
    let Some(port) = port.of(slice) else {
        return BTreeSet::new();
    };
    let ready = slice.endpoints.iter().filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_none_or(|it| it.ready != Some(false))
    });
    ready
        .filter_map(|endpoint| endpoint.addresses.first())
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, port).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints_are_told_with_the_port_that_is_asked_for() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "s"},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}, {"name": "grpc", "port": 50051}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"]},
            ],
        }))
        .unwrap();
        let of = |port| addresses(&slice, port).into_iter().collect::<Vec<_>>();
        let told = |port| of(Port::OfService(port));
        assert_eq!(of(Port::Given(9)), ["10.0.0.1:9", "10.0.0.3:9"]);
        assert_eq!(told(None), ["10.0.0.1:80", "10.0.0.3:80"]);
        assert_eq!(told(Some("grpc")), ["10.0.0.1:50051", "10.0.0.3:50051"]);
        assert_eq!(told(Some("50051")), told(Some("grpc")));
        assert_eq!(told(Some("other")), [""; 0]);
    }

    #[test]
    fn the_domain_of_a_cluster_is_what_its_resolver_searches() {
        let settings =
            "nameserver 10.0.0.10\nsearch ns.svc.my.org svc.my.org my.org\noptions ndots:5\n";
        assert_eq!(domain_in(settings), Some("my.org"));
        assert_eq!(domain_in("search example.com\n"), None);
    }

    #[test]
    fn only_a_name_that_can_be_nothing_else_is_that_of_a_service() {
        let parsed = |text| {
            let name = ServiceName::parse_in(text, "cluster.local")?;
            Some((name.name, name.namespace, name.port))
        };
        let service = Some(("web".to_owned(), "ns".to_owned(), 80));
        assert_eq!(parsed("web.ns.svc:80"), service);
        assert_eq!(parsed("web.ns.svc.cluster.local:80"), service);
        for other in [
            "web:80",
            "web.ns:80",
            "web.example.com:80",
            "api.shop.svc.example.com:443",
            // One pod of a Service.
            "web-0.web.ns.svc.cluster.local:80",
            ".ns.svc:80",
            "web.ns.svc",
            "10.0.0.1:80",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    #[test]
    fn a_pod_with_addresses_of_both_families_is_one_endpoint() {
        let slice = |name: &str, family: &str, addresses: &[&str], ready: bool| -> EndpointSlice {
            let endpoints: Vec<_> = addresses
                .iter()
                .map(|it| json!({"addresses": [it, "10.9.9.9"], "conditions": {"ready": ready}}))
                .collect();
            serde_json::from_value(json!({
                "metadata": {"name": name}, "addressType": family,
                "ports": [{"port": 80}], "endpoints": endpoints,
            }))
            .unwrap()
        };
        let mut known = Slices::new();
        let mut told = |given: EndpointSlice| {
            note(&mut known, &given, Port::OfService(None));
            union(&known).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(
            told(slice("six", "IPv6", &["fd00::1"], true)),
            ["[fd00::1]:80"]
        );
        assert_eq!(
            told(slice("four", "IPv4", &["10.0.0.1"], true)),
            ["10.0.0.1:80"]
        );
        let more = slice("more", "IPv4", &["10.0.0.2"], true);
        assert_eq!(told(more), ["10.0.0.1:80", "10.0.0.2:80"]);
        // While its IPv4 address is not ready yet, the pod is not: the other family is no second chance.
        told(slice("more", "IPv4", &[], true));
        assert_eq!(told(slice("four", "IPv4", &["10.0.0.1"], false)), [""; 0]);
        assert_eq!(told(slice("four", "IPv4", &[], true)), ["[fd00::1]:80"]);
    }
}
