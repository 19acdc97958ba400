//! `_metadata.raftserve.traffic`: what is read, what is shown, and which contradictions are refused.

use super::*;

fn with(traffic: &str) -> String {
    minimal(
        "{}",
        &format!("_metadata: {{raftserve: {{traffic: {traffic}}}}}"),
    )
}

const WHOLE: &str = r#"
service: {load_balancing_policy: round_robin}
resources: {ports: 8080}
run: serve 8080
_metadata:
  raftserve:
    traffic:
      policy: Ring_Hash
      hash_on: {json_field: /user/0/id}
      upstream:
        protocol: http2
        connect_timeout_seconds: 0.25
        tls:
          server_name: replicas.internal
          authorities: |
            -----BEGIN CERTIFICATE-----
            AAAA
            -----END CERTIFICATE-----
      timeouts: {first_byte_seconds: 5, idle_seconds: 10, total_seconds: 60, tunnel_idle_seconds: 90}
      retries:
        max: 3
        budget_percent: 10
        statuses: [503, 502, 503]
        after_sent: false
        per_try_timeout_seconds: 1.5
      ejection: {consecutive_errors: 3, base_seconds: 2, max_seconds: 8, panic_percent: 40}
      queue: {requests: 10, wait_seconds: 5}
      request_body_bytes_max: 5000000000
      request_head_bytes_max: 8192
      routes:
        - hosts: [API.example.com, "*.example.com", api.example.com]
          path_prefix: /v1/
          methods: [get, POST]
          headers: {X-Beta: "1"}
          rewrite_prefix: /
          weights: {1: 90, 2: 10}
          timeouts: {total_seconds: 30}
          retries: {max: 0}
          connect_timeout_seconds: 0.5
          request_body_bytes_max: 1000
        - weights: {3: 1}
"#;

#[test]
fn every_setting_is_read() {
    let spec = accept(WHOLE).spec;
    let secs = Duration::from_secs;
    let timeouts = Timeouts {
        first_byte: Some(secs(5)),
        idle: Some(secs(10)),
        total: Some(secs(60)),
        tunnel_idle: Some(secs(90)),
    };
    let retries = Retries {
        max: 3,
        budget_percent: 10,
        statuses: vec![502, 503],
        after_sent: false,
        per_try_timeout: Some(Duration::from_millis(1500)),
        hedge_after: None,
    };
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let rule = RouteRule {
        hosts: vec!["api.example.com".to_owned(), "*.example.com".to_owned()],
        path_prefix: Some("/v1/".to_owned()),
        methods: vec!["GET".to_owned(), "POST".to_owned()],
        headers: texts(&[("x-beta", "1")]),
        rewrite_prefix: Some("/".to_owned()),
        weights: BTreeMap::from([(1, 90), (2, 10)]),
        timeouts: Some(Timeouts {
            total: Some(secs(30)),
            ..timeouts.clone()
        }),
        retries: Some(Retries {
            max: 0,
            statuses: Vec::new(),
            ..retries.clone()
        }),
        connect_timeout: Some(Duration::from_millis(500)),
        request_body_bytes_max: Some(1000),
    };
    let last = RouteRule {
        weights: BTreeMap::from([(3, 1)]),
        ..RouteRule::default()
    };
    assert_eq!(spec.policy, LoadBalancingPolicy::RingHash);
    assert_eq!(
        spec.traffic,
        Traffic {
            hash_on: Some(HashKey::JsonField("/user/0/id".to_owned())),
            upstream: UpstreamSettings {
                protocol: UpstreamProtocol::Http2,
                tls: Some(UpstreamTls {
                    server_name: Some("replicas.internal".to_owned()),
                    trust: UpstreamTrust::Authorities(pem.to_owned()),
                }),
                connect_timeout: Duration::from_millis(250),
            },
            timeouts,
            retries,
            ejection: Ejection {
                consecutive_errors: 3,
                base: secs(2),
                max: secs(8),
                panic_percent: 40,
            },
            slow_start: Duration::ZERO,
            queue: Queue {
                requests: 10,
                wait: secs(5),
            },
            request_body_bytes_max: Some(5_000_000_000),
            request_head_bytes_max: Some(8192),
            routes: vec![rule, last],
        }
    );
}

#[test]
fn what_says_nothing_of_traffic_is_stored_as_before() {
    let spec = accept(&minimal("{}", "")).spec;
    assert_eq!(spec.traffic, Traffic::default());
    let document = serde_json::to_value(&spec).expect("encodes");
    assert!(document.get("traffic").is_none(), "{document}");
    let spec = accept(&with("{queue: {requests: 1}, routes: [{weights: {1: 1}}]}")).spec;
    let document = serde_json::to_string(&spec).expect("encodes");
    for added in [
        "request_head_bytes_max",
        "connect_timeout\":null",
        "request_body_bytes_max\":null}",
    ] {
        assert!(!document.contains(added), "{added} in {document}");
    }
}

#[test]
fn what_is_shown_of_it_parses_to_the_same_and_survives_the_log() {
    for yaml in [
        WHOLE.to_owned(),
        with("{}"),
        with("{policy: instance_aware_least_load}"),
        with("{policy: p2c, slow_start_seconds: 2.5, retries: {hedge_after_seconds: 0.05}}"),
        with("{policy: maglev, hash_on: {source_address: true}}"),
        with("{policy: maglev, hash_on: {cookie: C}, upstream: {tls: {verify: no}}}"),
        with(
            "{retries: {statuses: [503], max: 1}, routes: [{methods: [GET], retries: {budget_percent: 0}}]}",
        ),
        with("{retries: {hedge_after_seconds: 1}, routes: [{methods: [GET], retries: {max: 0}}]}"),
        with("{timeouts: {total_seconds: 9}, routes: [{timeouts: {idle_seconds: 2}}]}"),
    ] {
        let spec = accept(&yaml).spec;
        let again = accept(&spec.render().to_string()).spec;
        assert_eq!((&again.traffic, again.policy), (&spec.traffic, spec.policy));
        let document = serde_json::to_string(&spec).expect("encodes");
        assert_eq!(
            serde_json::from_str::<ServiceSpec>(&document).expect("decodes"),
            spec
        );
    }
}

#[test]
fn the_policy_here_overrides_that_of_the_service() {
    let spec = |more: &str| {
        let more = format!("_metadata: {{raftserve: {{traffic: {more}}}}}");
        accept(&minimal("{load_balancing_policy: round_robin}", &more)).spec
    };
    assert_eq!(spec("{}").policy, LoadBalancingPolicy::RoundRobin);
    for policy in LoadBalancingPolicy::ALL {
        assert_eq!(
            spec(&format!("{{policy: {}}}", policy.name())).policy,
            policy
        );
    }
    let aware = "{load_balancing_policy: Instance_Aware_Least_Load}";
    let aware = accept(&minimal(aware, "")).spec.policy;
    assert_eq!(aware, LoadBalancingPolicy::InstanceAwareLeastLoad);
    assert_eq!(
        refuse(&minimal("{load_balancing_policy: p2c}", "")),
        [
            "line 1, service.load_balancing_policy: SkyServe has no policy p2c; write it as \
             _metadata.raftserve.traffic.policy, which SkyServe ignores"
        ]
    );
}

#[test]
fn what_is_wrong_or_contradicts_itself_is_refused_by_its_path() {
    for (traffic, field) in [
        ("[]", ""),
        ("{polcy: p2c}", ".polcy"),
        ("{policy: random}", ".policy"),
        ("{hash_on: {header: x-user}}", ".hash_on"),
        ("{policy: p2c, hash_on: {header: x-user}}", ".hash_on"),
        ("{policy: maglev, hash_on: {}}", ".hash_on"),
        (
            "{policy: maglev, hash_on: {header: a, cookie: b}}",
            ".hash_on.cookie",
        ),
        (
            "{policy: maglev, hash_on: {header: host}}",
            ".hash_on.header",
        ),
        (
            "{policy: maglev, hash_on: {query: 'a=b'}}",
            ".hash_on.query",
        ),
        (
            "{policy: maglev, hash_on: {json_field: user}}",
            ".hash_on.json_field",
        ),
        (
            "{policy: maglev, hash_on: {json_field: /a~2}}",
            ".hash_on.json_field",
        ),
        (
            "{policy: maglev, hash_on: {source_address: no}}",
            ".hash_on.source_address",
        ),
        (
            "{policy: maglev, slow_start_seconds: 1}",
            ".slow_start_seconds",
        ),
        ("{upstream: {protocol: http3}}", ".upstream.protocol"),
        (
            "{upstream: {connect_timeout_seconds: 0}}",
            ".upstream.connect_timeout_seconds",
        ),
        ("{upstream: {tls: {}}}", ".upstream.tls"),
        (
            "{upstream: {tls: {authorities: x}}}",
            ".upstream.tls.authorities",
        ),
        (
            "{upstream: {tls: {authorities: '-----BEGIN CERTIFICATE-----', verify: no}}}",
            ".upstream.tls.authorities",
        ),
        (
            "{upstream: {tls: {verify: no, server_name: 'a b'}}}",
            ".upstream.tls.server_name",
        ),
        (
            "{timeouts: {total_seconds: 1, idle_seconds: 2}}",
            ".timeouts.idle_seconds",
        ),
        (
            "{timeouts: {total_seconds: 1, first_byte_seconds: 2}}",
            ".timeouts.first_byte_seconds",
        ),
        (
            "{timeouts: {total_seconds: 1}, retries: {per_try_timeout_seconds: 1}}",
            ".retries",
        ),
        ("{retries: {max: 11}}", ".retries.max"),
        (
            "{retries: {budget_percent: 101}}",
            ".retries.budget_percent",
        ),
        ("{retries: {statuses: 503}}", ".retries.statuses"),
        ("{retries: {statuses: [503, 200]}}", ".retries.statuses[1]"),
        ("{retries: {statuses: [503], max: 0}}", ".retries.statuses"),
        (
            "{retries: {hedge_after_seconds: 1, max: 0}}",
            ".retries.hedge_after_seconds",
        ),
        (
            "{retries: {hedge_after_seconds: 1, statuses: [503]}}",
            ".retries.hedge_after_seconds",
        ),
        (
            "{retries: {hedge_after_seconds: 1, per_try_timeout_seconds: 1}}",
            ".retries.hedge_after_seconds",
        ),
        (
            "{ejection: {base_seconds: 9, max_seconds: 8}}",
            ".ejection.base_seconds",
        ),
        ("{ejection: {max_seconds: 0.5}}", ".ejection.max_seconds"),
        ("{ejection: {panic_percent: 0}}", ".ejection.panic_percent"),
        ("{queue: {requests: 100001}}", ".queue.requests"),
        ("{queue: {wait_seconds: 0}}", ".queue.wait_seconds"),
        ("{request_body_bytes_max: -1}", ".request_body_bytes_max"),
        ("{request_body_bytes_max: 1MB}", ".request_body_bytes_max"),
        ("{request_head_bytes_max: 1023}", ".request_head_bytes_max"),
        ("{request_head_bytes_max: 65537}", ".request_head_bytes_max"),
        ("{request_head_bytes_max: 8k}", ".request_head_bytes_max"),
        (
            "{routes: [{path_prefix: /a, connect_timeout_seconds: 0}]}",
            ".routes[0].connect_timeout_seconds",
        ),
        (
            "{routes: [{path_prefix: /a, request_body_bytes_max: -1}]}",
            ".routes[0].request_body_bytes_max",
        ),
        (
            "{routes: [{path_prefix: /a, request_head_bytes_max: 2048}]}",
            ".routes[0].request_head_bytes_max",
        ),
        ("{routes: {}}", ".routes"),
        ("{routes: [1]}", ".routes[0]"),
        ("{routes: [{host: a}]}", ".routes[0].host"),
        ("{routes: [{hosts: ['a:80']}]}", ".routes[0].hosts[0]"),
        ("{routes: [{hosts: ['a.*.b']}]}", ".routes[0].hosts[0]"),
        ("{routes: [{hosts: ['*']}]}", ".routes[0].hosts[0]"),
        ("{routes: [{methods: [CONNECT]}]}", ".routes[0].methods[0]"),
        ("{routes: [{path_prefix: v1}]}", ".routes[0].path_prefix"),
        (
            "{routes: [{path_prefix: '/v1?'}]}",
            ".routes[0].path_prefix",
        ),
        (
            "{routes: [{rewrite_prefix: /v1}]}",
            ".routes[0].rewrite_prefix",
        ),
        (
            "{routes: [{headers: {Host: a}}]}",
            ".routes[0].headers.Host",
        ),
        (
            "{routes: [{headers: {A: '1', a: '2'}}]}",
            ".routes[0].headers.a",
        ),
        ("{routes: [{weights: {1: 0, 2: 0}}]}", ".routes[0].weights"),
        ("{routes: [{weights: {}}]}", ".routes[0].weights"),
        ("{routes: [{weights: {v1: 5}}]}", ".routes[0].weights.v1"),
        ("{routes: [{weights: {1: -5}}]}", ".routes[0].weights.1"),
        ("{routes: [{}, {path_prefix: /a}]}", ".routes[1]"),
        (
            "{routes: [{path_prefix: /}, {methods: [GET]}]}",
            ".routes[1]",
        ),
        (
            "{timeouts: {total_seconds: 1}, routes: [{path_prefix: /a, retries: {per_try_timeout_seconds: 2}}]}",
            ".routes[0].retries",
        ),
        (
            "{routes: [{path_prefix: /a, timeouts: {total_secs: 2}}]}",
            ".routes[0].timeouts.total_secs",
        ),
    ] {
        let field = format!("_metadata.raftserve.traffic{field}");
        super::rules::one_fault(&with(traffic), &field);
    }
    let many = format!("{{routes: [{}]}}", "{path_prefix: /a}, ".repeat(65));
    super::rules::one_fault(&with(&many), "_metadata.raftserve.traffic.routes");
}
