//! The parser seen from outside: what is taken, what is refused, and in which words.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

mod arbitrary;
mod documents;
mod files;
mod manual;
mod placement;
mod probes;
mod rules;
mod traffic;

/// A service that is as small as it can be, with `service` and more top-level lines around.
fn minimal(service: &str, more: &str) -> String {
    format!("service: {service}\nresources: {{ports: 8080}}\nrun: serve 8080\n{more}\n")
}

#[track_caller]
fn accept(yaml: &str) -> Parsed {
    match ServiceSpec::parse(yaml, ParseOptions::default()) {
        Ok(parsed) => parsed,
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

#[track_caller]
fn refuse(yaml: &str) -> Vec<String> {
    match ServiceSpec::parse(yaml, ParseOptions::default()) {
        Ok(parsed) => panic!("accepted: {:?}\nin\n{yaml}", parsed.spec),
        Err(errors) => errors.as_slice().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_smallest_service_gets_skyserves_defaults() {
    let parsed = accept("service: {}\nresources: {ports: 8080}\nrun: serve 8080\n");
    let spec = parsed.spec;
    assert_eq!(parsed.name, None);
    assert_eq!(parsed.warnings, [""; 0]);
    assert_eq!(
        spec.readiness,
        ReadinessProbe {
            kind: ProbeKind::Http,
            path: "/".to_owned(),
            post_data: None,
            headers: BTreeMap::new(),
            initial_delay: Duration::from_secs(1200),
            timeout: Duration::from_secs(15),
            interval: Duration::from_secs(10),
            failure_threshold: Duration::from_secs(180),
        }
    );
    assert_eq!((spec.replicas, spec.port), (1, 8080));
    assert_eq!(spec.policy, LoadBalancingPolicy::LeastLoad);
    assert_eq!(spec.stream_timeout, Duration::from_secs(120));
    assert_eq!(spec.drain_timeout, Duration::from_secs(120));
    assert_eq!(spec.stop_grace, Duration::from_secs(10));
    assert_eq!((spec.setup, spec.affinity), (None, None));
}

#[test]
fn every_field_that_is_built_is_read() {
    let parsed = accept(
        r#"
name: llm
num_nodes: 1
envs: {MODEL: tiny, RETRIES: 3, RATE: 1.50, DEBUG: yes}
secrets: {TOKEN: hush}
setup: |
  pip install server
run: |
  serve --port 8080
resources:
  ports: ["8080"]
  cpus: 2+
  memory: 4GB
  disk_size: 100
  use_spot: false
service:
  ports: 8080
  replica_policy: {min_replicas: 2, max_replicas: 2}
  load_balancing_policy: Round_Robin
  load_balancer: {stream_timeout_seconds: 1.5}
  readiness_probe:
    path: /v1/$MODEL
    initial_delay_seconds: 60
    timeout_seconds: 0.25
    endpoint_probe_interval_seconds: 1
    consecutive_failure_threshold_timeout: 30
    post_data: {model: "${MODEL}", n: 1}
    headers: {Authorization: Bearer $TOKEN}
_metadata:
  anyone: {else: [1]}
  raftserve:
    provider: process
    drain_timeout_seconds: 30
    stop_grace_seconds: 5
    session_affinity:
      cookie: SID
      ttl_seconds: 60
      max_sessions: 10
      without_quorum: serve_stale
"#,
    );
    let spec = parsed.spec;
    assert_eq!(
        parsed.name.map(|name| name.to_string()).as_deref(),
        Some("llm")
    );
    let envs = [
        ("DEBUG", "True"),
        ("MODEL", "tiny"),
        ("RATE", "1.5"),
        ("RETRIES", "3"),
    ];
    assert_eq!(spec.envs, texts(&envs));
    assert_eq!(spec.secrets, texts(&[("TOKEN", "hush")]));
    assert_eq!(spec.setup.as_deref(), Some("pip install server\n"));
    assert_eq!(spec.run, "serve --port 8080\n");
    let resources = [("cpus", "2+"), ("disk_size", "100"), ("memory", "4GB")];
    assert_eq!(spec.resources, texts(&resources));
    assert_eq!((spec.replicas, spec.port), (2, 8080));
    assert_eq!(spec.policy, LoadBalancingPolicy::RoundRobin);
    assert_eq!(spec.stream_timeout, Duration::from_millis(1500));
    assert_eq!(spec.readiness.path, "/v1/tiny");
    assert_eq!(spec.readiness.initial_delay, Duration::from_secs(60));
    assert_eq!(spec.readiness.timeout, Duration::from_millis(250));
    assert_eq!(spec.readiness.interval, Duration::from_secs(1));
    assert_eq!(spec.readiness.failure_threshold, Duration::from_secs(30));
    assert_eq!(
        spec.readiness.post_data.as_deref(),
        Some(r#"{"model":"tiny","n":1}"#)
    );
    assert_eq!(
        spec.readiness.headers,
        texts(&[("Authorization", "Bearer hush")])
    );
    assert_eq!(spec.drain_timeout, Duration::from_secs(30));
    assert_eq!(spec.stop_grace, Duration::from_secs(5));
    assert_eq!(
        spec.affinity,
        Some(SessionAffinity {
            key: SessionKeySource::Cookie("SID".to_owned()),
            ttl: Duration::from_secs(60),
            max_sessions: 10,
            without_quorum: WithoutQuorum::ServeStale,
        })
    );
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn options_add_to_the_environment_and_replace_what_it_has() {
    let yaml = minimal(
        "{readiness_probe: /$A/$B}",
        "envs: {A: null, C: c}\nsecrets: {S: }",
    );
    let options = ParseOptions {
        envs: texts(&[("A", "a"), ("B", "b")]),
        secrets: texts(&[("S", "s")]),
        files: None,
    };
    let spec = ServiceSpec::parse(&yaml, options).expect("whole").spec;
    assert_eq!(spec.readiness.path, "/a/b");
    assert_eq!(spec.envs, texts(&[("A", "a"), ("B", "b"), ("C", "c")]));
    assert_eq!(spec.secrets, texts(&[("S", "s")]));

    let options = ParseOptions {
        envs: texts(&[("not a name", "a"), ("A", "")]),
        secrets: texts(&[("S", "s")]),
        files: None,
    };
    let errors = ServiceSpec::parse(&yaml, options).expect_err("a bad name");
    assert_eq!(
        errors.to_string(),
        "envs.not a name: not a name of an environment variable; letters, digits and '_' are \
         allowed, and no digit first"
    );
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    for (yaml, warning) in [
        (
            minimal("{readiness_probe: /$WHAT}", ""),
            "service names $WHAT",
        ),
        (
            "service: {}\nresources: {ports: 8080}\nrun: serve -p8080".to_owned(),
            "run names neither 8080 nor $PORT",
        ),
        (
            "service: {}\nresources: {ports: 80}\nrun: serve 80".to_owned(),
            "the port 80 looks like an ordinary number",
        ),
    ] {
        let warnings = accept(&yaml).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with(warning), "{warnings:?}");
    }
    for run in ["serve $PORT", "serve ${PORT}", "serve --at=:8080"] {
        let yaml = format!("service: {{}}\nresources: {{ports: 8080}}\nrun: {run}");
        assert_eq!(accept(&yaml).warnings, [""; 0], "{run}");
    }
}

#[test]
fn a_specification_survives_the_log() {
    let spec = accept(include_str!("../../../examples/sessions.yaml")).spec;
    let config = bincode::config::standard();
    let bytes = bincode::encode_to_vec(&spec, config).expect("encodes");
    let (decoded, _): (ServiceSpec, _) =
        bincode::decode_from_slice(&bytes, config).expect("decodes");
    assert_eq!(decoded, spec);
}

#[test]
fn a_document_from_before_secrets_still_decodes() {
    let spec = accept(include_str!("../../../examples/http_server.yaml")).spec;
    let mut document = serde_json::to_value(&spec).expect("encodes");
    document
        .as_object_mut()
        .expect("an object")
        .remove("secrets");
    assert_eq!(
        serde_json::from_value::<ServiceSpec>(document).expect("decodes"),
        spec
    );
}
