//! What replicas run in, and replicas that are there already.

use super::*;

/// All that can be asked for.
pub(super) const EVERYTHING: &str = "\
service: {}
resources:
  ports: 8080
  cpus: 4+
  memory: 16
  image_id: docker:registry.example.com:5000/model:v1
  accelerators: {A100: 2}
  use_spot: true
  labels: {example.com/team: serving}
volumes: {/models: models-claim}
config:
  kubernetes:
    pod_config:
      spec:
        nodeSelector: {disk: ssd}
        priority: 10
run: serve 8080
";

/// A Kubernetes Service's endpoints.
pub(super) const STATIC: &str = "\
service: {}
_metadata: {raftserve: {provider: {static: {kubernetes_service: server.prod, port: 50051}}}}
";

fn with(resources: &str, more: &str) -> String {
    format!("service: {{}}\nresources: {{ports: 8080, {resources}}}\nrun: serve 8080\n{more}\n")
}

fn placement(resources: &str) -> Placement {
    accept(&with(resources, "")).spec.placement
}

#[test]
fn all_that_a_replica_asks_for_is_read() {
    let asked = accept(EVERYTHING).spec.placement;
    assert_eq!(
        asked.image.as_deref(),
        Some("registry.example.com:5000/model:v1")
    );
    assert_eq!(
        asked.accelerators,
        Some(Accelerators {
            kind: "A100".to_owned(),
            count: 2
        })
    );
    assert!(asked.use_spot);
    assert_eq!(asked.labels["example.com/team"], "serving");
    assert_eq!(asked.volumes["/models"], "models-claim");
    let pod = asked.pod_config.unwrap();
    assert_eq!(pod["spec"]["priority"], 10);
    for (written, kind, count) in [("T4", "T4", 1), ("'T4:8'", "T4", 8), ("{T4: }", "T4", 1)] {
        let asked = placement(&format!("accelerators: {written}")).accelerators;
        let kind = kind.to_owned();
        assert_eq!(asked, Some(Accelerators { kind, count }), "{written}");
    }
}

#[test]
fn what_cannot_be_asked_for_is_refused_by_its_field() {
    for (resources, field) in [
        ("image_id: ami-0123", "resources.image_id"),
        ("image_id: 'docker:'", "resources.image_id"),
        ("accelerators: 'A100:0'", "resources.accelerators"),
        ("accelerators: 'A100:0.5'", "resources.accelerators"),
        ("accelerators: [A100, T4]", "resources.accelerators"),
        ("labels: {-x: y}", "resources.labels.-x"),
    ] {
        let said = refuse(&with(resources, ""));
        assert!(said.len() == 1 && said[0].contains(field), "{said:?}");
    }
    for (more, field) in [
        ("volumes: {models: claim}", "volumes.models"),
        ("volumes: [claim]", "volumes"),
        (
            "config: {kubernetes: {pod_config: x}}",
            "config.kubernetes.pod_config",
        ),
        (
            "config: {kubernetes: {provision_timeout: 1}}",
            "provision_timeout",
        ),
    ] {
        let said = refuse(&with("cpus: 1", more));
        assert!(said.len() == 1 && said[0].contains(field), "{said:?}");
    }
}

#[test]
fn a_static_service_needs_neither_run_nor_port() {
    let spec = accept(STATIC).spec;
    assert!(!spec.provider.makes_replicas() && spec.provider.tells_readiness());
    assert_eq!((spec.run.as_str(), spec.port), ("", 0));
    let named = |provider: &str| {
        format!("service: {{}}\n_metadata: {{raftserve: {{provider: {provider}}}}}\n")
    };
    for good in [
        "{static: {addresses: ['10.0.0.1:80', 'models.example.com:8080', '[::1]:80']}}",
        "{static: {kubernetes_service: server}}",
        "{static: {kubernetes_service: server.ns, port: grpc}}",
    ] {
        accept(&named(good));
    }
    for bad in [
        "{static: {}}",
        "{static: {addresses: []}}",
        "{static: {addresses: [host]}}",
        "{static: {addresses: ['host:0']}}",
        "{static: {addresses: ['::1:80']}}",
        "{static: {addresses: ['a:1'], port: 2}}",
        "{static: {addresses: ['a:1'], kubernetes_service: b}}",
        "{static: {kubernetes_service: A.b}}",
    ] {
        let said = refuse(&named(bad));
        assert!(
            said.iter()
                .any(|line| line.contains("raftserve.provider.static")),
            "{bad}: {said:?}"
        );
    }
}

#[test]
fn documents_from_before_placements_read_as_they_did() {
    let spec = accept("service: {}\nresources: {ports: 8080}\nrun: serve 8080\n").spec;
    let document = serde_json::to_value(&spec).unwrap();
    assert_eq!(document["provider"], "process");
    assert!(document.get("placement").is_none());
    assert_eq!(
        serde_json::from_value::<ServiceSpec>(document).unwrap(),
        spec
    );
    let other = accept(&with("labels: {a: b}", "")).spec;
    assert!(!spec.runs_the_same(&other));
}
