//! Where requests come into a release of the chart: what peers tell of their services' ports is true of their pods, and
//! whoever asks from elsewhere comes in through the client Service.

use serde_json::Value;

/// The client Service, as somebody outside of the peers' pods reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entrance {
    /// Host and port of each port of the Service.
    ports: Vec<Port>,
    /// Whether it is reached from pods only.
    pub(super) inside_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    /// As the peers have it.
    number: u64,
    outside: String,
}

impl Entrance {
    /// From the Service and the peers' pods, whose nodes surely let requests in.
    pub(super) fn read(service: &Value, pods: &[Value]) -> Option<Self> {
        let balancer = &service["status"]["loadBalancer"]["ingress"][0];
        let balancer = balancer["hostname"].as_str().or(balancer["ip"].as_str());
        let node = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .find_map(|pod| pod["status"]["hostIP"].as_str());
        let name = service["metadata"]["name"].as_str()?;
        let namespace = service["metadata"]["namespace"].as_str()?;
        let inside = format!("{name}.{namespace}.svc");
        let mut inside_only = false;
        let ports = service["spec"]["ports"].as_array()?.iter();
        let ports = ports.filter_map(|port| {
            let number = port["port"].as_u64()?;
            let outside = match (balancer, node, port["nodePort"].as_u64()) {
                (Some(host), _, _) => authority(host, number),
                (None, Some(node), Some(on_nodes)) => authority(node, on_nodes),
                _ => {
                    inside_only = true;
                    authority(&inside, number)
                }
            };
            let name = port["name"].as_str().unwrap_or_default().to_owned();
            Some(Port {
                name,
                number,
                outside,
            })
        });
        let ports = ports.collect();
        Some(Self { ports, inside_only })
    }

    /// The URL of a service of that name, which peers tell as `inner`. One whose port the Service does not have is
    /// reached by its path.
    pub(super) fn url(&self, service: &str, inner: &str) -> Option<String> {
        let (scheme, at) = inner.split_once("://")?;
        let number: u64 = at.rsplit_once(':')?.1.parse().ok()?;
        let own = self.ports.iter().find(|port| port.number == number);
        if let Some(own) = own {
            return Some(format!("{scheme}://{}", own.outside));
        }
        let all = self.ports.iter().find(|port| port.name == "http")?;
        Some(format!("{scheme}://{}/{service}", all.outside))
    }
}

fn authority(host: &str, port: u64) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INNER: &str = "http://rs-0.rs-peers.ns.svc.cluster.local:30001";

    fn service(status: Value, on_nodes: bool) -> Value {
        let mut ports = json!([
            { "name": "http", "port": 8080 },
            { "name": "service-1", "port": 30001 },
        ]);
        if on_nodes {
            ports[0]["nodePort"] = 32000.into();
            ports[1]["nodePort"] = 32001.into();
        }
        json!({
            "metadata": { "name": "rs", "namespace": "ns" },
            "spec": { "ports": ports },
            "status": { "loadBalancer": status },
        })
    }

    fn pods() -> Vec<Value> {
        vec![
            json!({ "metadata": { "deletionTimestamp": "now" }, "status": { "hostIP": "10.0.0.1" } }),
            json!({ "metadata": {}, "status": {} }),
            json!({ "metadata": {}, "status": { "hostIP": "10.0.0.2" } }),
        ]
    }

    fn url(service: &Value, pods: &[Value], inner: &str) -> (String, bool) {
        let entrance = Entrance::read(service, pods).unwrap();
        (entrance.url("web", inner).unwrap(), entrance.inside_only)
    }

    #[test]
    fn the_load_balancer_comes_before_nodes_and_nodes_before_the_inner_name() {
        let balanced = json!({ "ingress": [{ "ip": "203.0.113.7" }] });
        assert_eq!(
            url(&service(balanced, true), &pods(), INNER),
            ("http://203.0.113.7:30001".to_owned(), false)
        );
        let named = json!({ "ingress": [{ "hostname": "lb.example.com" }] });
        assert_eq!(
            url(&service(named, true), &pods(), INNER).0,
            "http://lb.example.com:30001"
        );
        assert_eq!(
            url(&service(json!({}), true), &pods(), INNER),
            ("http://10.0.0.2:32001".to_owned(), false)
        );
        assert_eq!(
            url(&service(json!({}), false), &pods(), INNER),
            ("http://rs.ns.svc:30001".to_owned(), true)
        );
        // Without a pod on any node, nobody knows a node.
        assert!(url(&service(json!({}), true), &[], INNER).1);
    }

    #[test]
    fn a_service_whose_port_is_not_let_in_is_reached_by_its_path() {
        let inner = "http://10.0.0.9:30002";
        assert_eq!(
            url(&service(json!({}), true), &pods(), inner).0,
            "http://10.0.0.2:32000/web"
        );
    }

    #[test]
    fn addresses_of_version_6_stand_in_brackets() {
        let balanced = json!({ "ingress": [{ "ip": "2001:db8::7" }] });
        assert_eq!(
            url(&service(balanced, false), &[], INNER).0,
            "http://[2001:db8::7]:30001"
        );
    }
}
