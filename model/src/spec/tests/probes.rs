//! Readiness probes that are not HTTP.

use super::*;

/// A service that is asked by gRPC, in a file that SkyServe takes too.
pub(super) const GRPC: &str = "
service: {readiness_probe: {path: /, timeout_seconds: 2}}
resources: {ports: 8080}
run: serve 8080
_metadata: {raftserve: {readiness_probe: {grpc: {service: hello.Hello}}}}
";

fn probing(raftserve: &str) -> String {
    minimal("{}", &format!("_metadata: {{raftserve: {raftserve}}}"))
}

#[test]
fn probes_by_grpc_and_tcp_are_read_with_the_times_of_the_http_probe() {
    let readiness = accept(GRPC).spec.readiness;
    let service = "hello.Hello".to_owned();
    assert_eq!(readiness.kind, ProbeKind::Grpc { service });
    assert_eq!(readiness.timeout, Duration::from_secs(2));
    let whole = ProbeKind::Grpc {
        service: String::new(),
    };
    for (probe, kind) in [("{grpc: {}}", whole), ("{tcp: {}}", ProbeKind::Tcp)] {
        let yaml = probing(&format!("{{readiness_probe: {probe}}}"));
        assert_eq!(accept(&yaml).spec.readiness.kind, kind);
    }
    // Without a path, which only SkyServe wants.
    let yaml = minimal(
        "{readiness_probe: {timeout_seconds: 3}}",
        "_metadata: {raftserve: {readiness_probe: {tcp: {}}}}",
    );
    assert_eq!(accept(&yaml).spec.readiness.timeout, Duration::from_secs(3));
}

#[test]
fn an_http_probe_has_the_stored_form_that_it_always_had() {
    let spec = accept(&minimal("{readiness_probe: /health}", "")).spec;
    let document = serde_json::to_value(&spec).unwrap();
    assert_eq!(document["readiness"].get("kind"), None);
    let again: ServiceSpec = serde_json::from_value(document).unwrap();
    assert_eq!(again, spec);
    let spec = accept(GRPC).spec;
    let document = serde_json::to_vec(&spec).unwrap();
    assert_eq!(
        serde_json::from_slice::<ServiceSpec>(&document).unwrap(),
        spec
    );
}

#[test]
fn what_contradicts_the_probe_is_refused_with_what_to_do() {
    for (yaml, says) in [
        (
            probing("{readiness_probe: {grpc: {}, tcp: {}}}"),
            "grpc and tcp contradict each other; keep one of them",
        ),
        (
            probing("{readiness_probe: {}}"),
            "write grpc: {} or tcp: {}",
        ),
        (probing("{readiness_probe: grpc}"), "expected a mapping"),
        (probing("{readiness_probe: {grpc: ~}}"), "write grpc: {}"),
        (
            probing("{readiness_probe: {grpc: {port: 1}}}"),
            "unknown field",
        ),
        (probing("{readiness_probe: {tcp: 8080}}"), "write tcp: {}"),
        (
            probing("{readiness_probe: {grpc: {}}, traffic: {upstream: {protocol: http1}}}"),
            "write protocol: http2 or auto",
        ),
        (
            probing("{readiness_probe: {tcp: {}}, provider: {static: {kubernetes_service: a}}}"),
            "Kubernetes tells which are ready; remove it",
        ),
    ] {
        let errors = refuse(&yaml);
        assert!(errors.iter().any(|it| it.contains(says)), "{errors:?}");
    }
    for (service, says) in [
        ("{readiness_probe: /health}", "has no path; remove it"),
        (
            "{readiness_probe: {path: /health}}",
            "has no path; remove it",
        ),
        (
            "{readiness_probe: {path: /, headers: {a: b}}}",
            "sends no headers",
        ),
        (
            "{readiness_probe: {path: /, post_data: '1'}}",
            "sends no post_data",
        ),
    ] {
        let more = "_metadata: {raftserve: {readiness_probe: {grpc: {}}}}";
        let errors = refuse(&minimal(service, more));
        assert!(errors.iter().any(|it| it.contains(says)), "{errors:?}");
    }
    // Where Kubernetes has them.
    let errors = refuse(&minimal("{readiness_probe: {path: /, grpc: {}}}", ""));
    let says = "it belongs to _metadata.raftserve.readiness_probe";
    assert!(errors[0].contains(says), "{errors:?}");
}
