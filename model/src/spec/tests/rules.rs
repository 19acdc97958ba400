//! SkyServe's rules, row by row, and ours.

use super::*;

#[test]
fn values_of_service_fields_that_skyserve_takes_are_taken() {
    for service in [
        "{readiness_probe: /}",
        "{readiness_probe: '/health?deep=1'}",
        "{readiness_probe: {path: /}}",
        "{readiness_probe: {path: /, initial_delay_seconds: 0}}",
        "{readiness_probe: {path: /, initial_delay_seconds: 0.5}}",
        "{readiness_probe: {path: /, timeout_seconds: 1}}",
        "{readiness_probe: {path: /, endpoint_probe_interval_seconds: 2.5}}",
        "{readiness_probe: {path: /, consecutive_failure_threshold_timeout: 0}}",
        "{readiness_probe: {path: /, post_data: '{\"a\": 1}'}}",
        "{readiness_probe: {path: /, post_data: '[]'}}",
        "{readiness_probe: {path: /, post_data: {a: [1, 2.5, null, {b: yes}]}}}",
        "{readiness_probe: {path: /, headers: {}}}",
        "{readiness_probe: {path: /, headers: {X-A: '1'}}}",
        "{replicas: 0}",
        "{replicas: 3}",
        "{replicas: 2.0}",
        "{replica_policy: {min_replicas: 0}}",
        "{replica_policy: {min_replicas: 2}}",
        "{replica_policy: {min_replicas: 2, max_replicas: 2}}",
        "{load_balancer: {}}",
        "{load_balancer: {stream_timeout_seconds: 30}}",
        "{load_balancing_policy: round_robin}",
        "{load_balancing_policy: least_load}",
        "{load_balancing_policy: LEAST_LOAD}",
        "{ports: 8080}",
    ] {
        accept(&minimal(service, ""));
    }
}

#[test]
fn values_of_service_fields_that_are_wrong_are_refused_with_their_path() {
    for (service, field) in [
        ("[]", "service"),
        ("~", "service"),
        ("text", "service"),
        ("{unheard_of: 1}", "service.unheard_of"),
        ("{readiness_probe: health}", "service.readiness_probe"),
        ("{readiness_probe: 1}", "service.readiness_probe"),
        ("{readiness_probe: ~}", "service.readiness_probe"),
        ("{readiness_probe: [/]}", "service.readiness_probe"),
        ("{readiness_probe: ''}", "service.readiness_probe"),
        ("{readiness_probe: '/a b'}", "service.readiness_probe"),
        ("{readiness_probe: '/a#b'}", "service.readiness_probe"),
        ("{readiness_probe: {}}", "service.readiness_probe.path"),
        (
            "{readiness_probe: {path: health}}",
            "service.readiness_probe.path",
        ),
        (
            "{readiness_probe: {path: 1}}",
            "service.readiness_probe.path",
        ),
        (
            "{readiness_probe: {path: /, initial_delay: 1}}",
            "service.readiness_probe.initial_delay",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: soon}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: '5'}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: yes}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: -1}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: .nan}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: .inf}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, initial_delay_seconds: 315360001}}",
            "service.readiness_probe.initial_delay_seconds",
        ),
        (
            "{readiness_probe: {path: /, timeout_seconds: 0}}",
            "service.readiness_probe.timeout_seconds",
        ),
        (
            "{readiness_probe: {path: /, endpoint_probe_interval_seconds: 0}}",
            "service.readiness_probe.endpoint_probe_interval_seconds",
        ),
        (
            "{readiness_probe: {path: /, consecutive_failure_threshold_timeout: -1}}",
            "service.readiness_probe.consecutive_failure_threshold_timeout",
        ),
        (
            "{readiness_probe: {path: /, post_data: '{a: 1}'}}",
            "service.readiness_probe.post_data",
        ),
        (
            "{readiness_probe: {path: /, post_data: ''}}",
            "service.readiness_probe.post_data",
        ),
        (
            "{readiness_probe: {path: /, post_data: [1]}}",
            "service.readiness_probe.post_data",
        ),
        (
            "{readiness_probe: {path: /, post_data: {a: .nan}}}",
            "service.readiness_probe.post_data.a",
        ),
        (
            "{readiness_probe: {path: /, headers: []}}",
            "service.readiness_probe.headers",
        ),
        (
            "{readiness_probe: {path: /, headers: {A: 1}}}",
            "service.readiness_probe.headers.A",
        ),
        (
            "{readiness_probe: {path: /, headers: {'A B': x}}}",
            "service.readiness_probe.headers.A B",
        ),
        (
            "{readiness_probe: {path: /, headers: {A: \"x\\ny\"}}}",
            "service.readiness_probe.headers.A",
        ),
        ("{replicas: two}", "service.replicas"),
        ("{replicas: '2'}", "service.replicas"),
        ("{replicas: 1.5}", "service.replicas"),
        ("{replicas: -1}", "service.replicas"),
        ("{replicas: 10001}", "service.replicas"),
        ("{replicas: ~}", "service.replicas"),
        ("{replicas: yes}", "service.replicas"),
        (
            "{replicas: 1, replica_policy: {min_replicas: 1}}",
            "service.replica_policy",
        ),
        ("{replica_policy: 2}", "service.replica_policy"),
        (
            "{replica_policy: {}}",
            "service.replica_policy.min_replicas",
        ),
        (
            "{replica_policy: {min_replicas: -1}}",
            "service.replica_policy.min_replicas",
        ),
        (
            "{replica_policy: {min_replicas: 1.5}}",
            "service.replica_policy.min_replicas",
        ),
        (
            "{replica_policy: {min_replicas: 2, max_replicas: 1}}",
            "service.replica_policy.max_replicas",
        ),
        (
            "{replica_policy: {min_replicas: 1, max_replicas: 2}}",
            "service.replica_policy.max_replicas",
        ),
        (
            "{replica_policy: {min_replicas: 1, qps: 2}}",
            "service.replica_policy.qps",
        ),
        ("{load_balancer: 1}", "service.load_balancer"),
        (
            "{load_balancer: {timeout: 1}}",
            "service.load_balancer.timeout",
        ),
        (
            "{load_balancer: {stream_timeout_seconds: x}}",
            "service.load_balancer.stream_timeout_seconds",
        ),
        (
            "{load_balancing_policy: random}",
            "service.load_balancing_policy",
        ),
        (
            "{load_balancing_policy: 1}",
            "service.load_balancing_policy",
        ),
        ("{ports: '8080'}", "service.ports"),
        ("{ports: [8080]}", "service.ports"),
        ("{ports: 0}", "service.ports"),
        ("{ports: 65536}", "service.ports"),
        ("{ports: 8081}", "service.ports"),
    ] {
        one_fault(&minimal(service, ""), field);
    }
}

/// Asserts that there is one fault, in `field`.
#[track_caller]
pub(super) fn one_fault(yaml: &str, field: &str) {
    match ServiceSpec::parse(yaml, ParseOptions::default()) {
        Ok(_) => panic!("accepted\n{yaml}"),
        Err(errors) => {
            let fields: Vec<&str> = errors
                .as_slice()
                .iter()
                .map(|error| &*error.field)
                .collect();
            assert_eq!(fields, [field], "{errors}\nin\n{yaml}");
        }
    }
}

#[test]
fn fields_that_are_not_built_are_told_apart_from_unknown_ones() {
    for section in fields::SECTIONS {
        for (name, support) in section.fields {
            if *support == fields::Support::Built {
                continue;
            }
            let path = match section.path {
                "" => (*name).to_owned(),
                path => format!("{path}.{name}"),
            };
            let yaml = match section.path {
                "" => minimal("{}", &format!("{name}: {{}}")),
                "resources" => {
                    format!("service: {{}}\nresources: {{ports: 8080, {name}: 1}}\nrun: serve 8080")
                }
                "service" => minimal(&format!("{{{name}: 1}}"), ""),
                "service.replica_policy" => minimal(
                    &format!("{{replica_policy: {{min_replicas: 1, {name}: 1}}}}"),
                    "",
                ),
                "config" => minimal("{}", &format!("config: {{{name}: 1}}")),
                "config.kubernetes" => {
                    minimal("{}", &format!("config: {{kubernetes: {{{name}: 1}}}}"))
                }
                other => panic!("no example for {other}"),
            };
            let errors = ServiceSpec::parse(&yaml, ParseOptions::default())
                .expect_err("not built")
                .into_vec();
            let expected = "is valid in SkyServe, but raftserve does not support it yet";
            assert!(
                errors
                    .iter()
                    .any(|error| error.problem == expected && error.field == path),
                "{errors:?}"
            );
        }
    }
    for (yaml, field) in [
        (minimal("{}", "num_nodes: 2"), "num_nodes"),
        (minimal("{}", "secrets: [managed]"), "secrets"),
        (
            "service: {ports: 80}\nresources: {ports: [80, 81]}\nrun: serve 80".to_owned(),
            "resources.ports",
        ),
        (
            minimal(
                "{replica_policy: {min_replicas: 1, max_replicas: 3, target_qps_per_replica: 2}}",
                "",
            ),
            "service.replica_policy.target_qps_per_replica",
        ),
    ] {
        one_fault(&yaml, field);
        assert!(refuse(&yaml)[0].contains("raftserve does not support it yet"));
    }
}

#[test]
fn who_asks_for_scaling_is_told_to_write_a_fixed_number() {
    for policy in [
        "{min_replicas: 1, max_replicas: 3}",
        "{min_replicas: 1, max_replicas: 3, target_qps_per_replica: 2}",
    ] {
        let yaml = minimal(&format!("{{replica_policy: {policy}}}"), "");
        let told = refuse(&yaml).remove(0);
        assert!(told.contains("write replicas: "), "{told}");
    }
}

#[test]
fn the_top_level_is_checked() {
    for more in [
        "name: a-b.c_d",
        "setup: ''",
        "num_nodes: 1",
        "envs: {}",
        "secrets: {}",
        "_metadata: {a: 1}",
    ] {
        accept(&minimal("{}", more));
    }
    for (more, field) in [
        ("nmae: x", "nmae"),
        ("name: 9x", "name"),
        ("name: 9", "name"),
        ("setup: 1", "setup"),
        ("num_nodes: 0", "num_nodes"),
        ("num_nodes: two", "num_nodes"),
        ("envs: [A]", "envs"),
        ("envs: {A: ~}", "envs.A"),
        ("envs: {A: [1]}", "envs.A"),
        ("envs: {1A: x}", "envs.1A"),
        ("envs: {A-B: x}", "envs.A-B"),
        ("envs: {A: \"x\\0y\"}", "envs.A"),
        ("secrets: {A: ~}", "secrets.A"),
        ("secrets: text", "secrets"),
        ("_metadata: 1", "_metadata"),
    ] {
        one_fault(&minimal("{}", more), field);
    }
    for (yaml, field) in [
        ("resources: {ports: 8080}\nrun: serve 8080", "service"),
        ("service: {}\nresources: {ports: 8080}", "run"),
        ("service: {}\nresources: {ports: 8080}\nrun: ''", "run"),
        (
            "service: {}\nresources: {ports: 8080}\nrun: \"  \\n\"",
            "run",
        ),
        ("service: {}\nresources: {ports: 8080}\nrun:", "run"),
        ("service: {}\nresources: {ports: 8080}\nrun: 1", "run"),
        ("service: {}\nresources: {ports: 8080}\nrun: [a]", "run"),
        (
            "service: {}\nresources: {ports: 8080}\nrun: \"a\\0b\"",
            "run",
        ),
    ] {
        one_fault(yaml, field);
    }
    let long = format!(
        "service: {{}}\nresources: {{ports: 8080}}\nrun: {}",
        "x".repeat(131_000)
    );
    one_fault(&long, "run");
    let contradiction = minimal("{}", "pool: {}");
    assert_eq!(refuse(&contradiction).len(), 2);
    assert!(refuse(&contradiction)[0].contains("service and pool contradict each other"));
}

#[test]
fn resources_are_checked() {
    let with = |resources: &str| format!("service: {{}}\nresources: {resources}\nrun: serve 8080");
    for resources in [
        "{ports: 8080}",
        "{ports: '8080'}",
        "{ports: [8080]}",
        "{ports: ['8080']}",
        "{ports: 8080-8080}",
        "{ports: 8080, cpus: 4}",
        "{ports: 8080, cpus: 0.5}",
        "{ports: 8080, cpus: 4+}",
        "{ports: 8080, memory: 16}",
        "{ports: 8080, memory: 16+}",
        "{ports: 8080, memory: 16GB+}",
        "{ports: 8080, memory: 4x}",
        "{ports: 8080, disk_size: 256}",
        "{ports: 8080, disk_size: 1TB}",
        "{ports: 8080, use_spot: false}",
    ] {
        assert_eq!(accept(&with(resources)).spec.port, 8080, "{resources}");
    }
    for (resources, field) in [
        ("{}", "resources.ports"),
        ("{ports: }", "resources.ports"),
        ("{ports: []}", "resources.ports"),
        ("{ports: [8080, 8081]}", "resources.ports"),
        ("{ports: 8080-8090}", "resources.ports"),
        ("{ports: 8090-8080}", "resources.ports"),
        ("{ports: 0}", "resources.ports"),
        ("{ports: 70000}", "resources.ports"),
        ("{ports: eighty}", "resources.ports"),
        ("{ports: 80.5}", "resources.ports"),
        ("{ports: {a: 1}}", "resources.ports"),
        ("{ports: [8080, {}]}", "resources.ports[1]"),
        ("8080", "resources"),
        ("{ports: 8080, cpus: some}", "resources.cpus"),
        ("{ports: 8080, cpus: -1}", "resources.cpus"),
        ("{ports: 8080, cpus: [1]}", "resources.cpus"),
        ("{ports: 8080, memory: lots}", "resources.memory"),
        ("{ports: 8080, disk_size: 1.5}", "resources.disk_size"),
        ("{ports: 8080, use_spot: 1}", "resources.use_spot"),
        (
            "{ports: 8080, job_recovery: none}",
            "resources.job_recovery",
        ),
        ("{ports: 8080, cpu: 1}", "resources.cpu"),
    ] {
        one_fault(&with(resources), field);
    }
    one_fault("service: {ports: 8080}\nrun: serve 8080", "service.ports");
    one_fault("service: {}\nrun: serve 8080", "resources.ports");
    assert_eq!(
        refuse(&with("{any_of: [{ports: 80}], ordered: [{ports: 80}]}")).len(),
        3
    );
}

#[test]
fn our_own_settings_are_checked() {
    let with = |settings: &str| minimal("{}", &format!("_metadata: {{raftserve: {settings}}}"));
    for settings in [
        "{}",
        "{provider: process}",
        "{drain_timeout_seconds: 0}",
        "{stop_grace_seconds: 0.5}",
        "{session_affinity: {header: X-Session-Id}}",
        "{session_affinity: {cookie: SID, without_quorum: refuse}}",
        "{session_affinity: {header: a, ttl_seconds: 1, max_sessions: 1}}",
    ] {
        accept(&with(settings));
    }
    let affinity = accept(&with("{session_affinity: {header: X-Session-Id}}"))
        .spec
        .affinity;
    assert_eq!(
        affinity,
        Some(SessionAffinity {
            key: SessionKeySource::Header("x-session-id".to_owned()),
            ttl: Duration::from_secs(86_400),
            max_sessions: 1_000_000,
            without_quorum: WithoutQuorum::Refuse,
        })
    );
    let prefix = "_metadata.raftserve";
    for (settings, field) in [
        ("~", ""),
        ("[]", ""),
        ("{replicas: 1}", ".replicas"),
        ("{provider: kubernetes}", ".provider"),
        ("{provider: 1}", ".provider"),
        ("{drain_timeout_seconds: -1}", ".drain_timeout_seconds"),
        ("{stop_grace_seconds: long}", ".stop_grace_seconds"),
        ("{session_affinity: x-session-id}", ".session_affinity"),
        ("{session_affinity: {}}", ".session_affinity"),
        (
            "{session_affinity: {header: a, cookie: b}}",
            ".session_affinity.cookie",
        ),
        (
            "{session_affinity: {header: 'a b'}}",
            ".session_affinity.header",
        ),
        (
            "{session_affinity: {header: ''}}",
            ".session_affinity.header",
        ),
        (
            "{session_affinity: {header: Host}}",
            ".session_affinity.header",
        ),
        (
            "{session_affinity: {header: 1}}",
            ".session_affinity.header",
        ),
        (
            "{session_affinity: {cookie: 'a=b'}}",
            ".session_affinity.cookie",
        ),
        (
            "{session_affinity: {header: a, ttl: 5}}",
            ".session_affinity.ttl",
        ),
        (
            "{session_affinity: {header: a, ttl_seconds: 0}}",
            ".session_affinity.ttl_seconds",
        ),
        (
            "{session_affinity: {header: a, max_sessions: 0}}",
            ".session_affinity.max_sessions",
        ),
        (
            "{session_affinity: {header: a, without_quorum: serve}}",
            ".session_affinity.without_quorum",
        ),
    ] {
        one_fault(&with(settings), &format!("{prefix}{field}"));
    }
}

#[test]
fn faults_are_told_in_these_words() {
    let yaml = "\
nmae: web
envs:
  1ST: x
service:
  replicas: two
  readiness_probe:
    path: health
    timeout_seconds: -1
  readiness-probe: /
  replica_policy:
    min_replicas: 1
    max_replicas: 3
  load_balancing_policy: random
  ports: 9000
  tls:
    keyfile: k
  run: serve
resources:
  ports: [8080]
  disk_tier: best
run: [serve]
";
    assert_eq!(
        refuse(yaml),
        [
            "line 1, nmae: unknown field; did you mean name?",
            "line 3, envs.1ST: not a name of an environment variable; letters, digits and '_' are \
             allowed, and no digit first",
            "line 7, service.readiness_probe.path: the path \"health\" does not start with '/'; \
             write e.g. /health",
            "line 8, service.readiness_probe.timeout_seconds: -1 s is out of range; allowed are 0.01 \
             to 315360000 seconds (ten years)",
            "line 9, service.readiness-probe: unknown field; did you mean readiness_probe?",
            "line 11, service.replica_policy: replicas and replica_policy contradict each other; \
             keep one of them",
            "line 12, service.replica_policy.max_replicas: max_replicas 3 is above min_replicas 1, but \
             raftserve does not scale yet: it runs a fixed number of replicas; write replicas: 3 in \
             the place of replica_policy, or whatever fixed number serves the load at its highest",
            "line 13, service.load_balancing_policy: there is no policy \"random\"; allowed are \
             round_robin, least_load and instance_aware_least_load",
            "line 14, service.ports: port 9000 is not among resources.ports; write resources: \
             {ports: 9000}",
            "line 15, service.tls: is valid in SkyServe, but raftserve does not support \
             it yet; remove it",
            "line 15, service.tls.certfile: missing; TLS takes both keyfile and certfile",
            "line 17, service.run: unknown field; it belongs to the top level",
            "line 20, resources.disk_tier: is valid in SkyServe, but raftserve \
             does not support it yet; remove it",
            "line 21, run: expected a text, got a list",
        ]
    );
    assert_eq!(
        refuse(&minimal("{replicas: two}", "")),
        ["line 1, service.replicas: expected a whole number, got \"two\"; write e.g. replicas: 2"]
    );
}

#[test]
fn a_fault_knows_its_line_and_column() {
    let errors = ServiceSpec::parse(
        "run: serve 8080\nresources: {ports: 8080}\nservice:\n  replicas:   two\n",
        ParseOptions::default(),
    )
    .expect_err("two is no number")
    .into_vec();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].line, errors[0].column), (4, 15));
}

#[test]
fn no_more_than_a_hundred_faults_are_reported() {
    let unknown: String = (0..1000).map(|n| format!("k{n}: 1\n")).collect();
    assert_eq!(refuse(&unknown).len(), 100);
    let twice = "k: 1\n".repeat(1000);
    assert_eq!(refuse(&twice).len(), 100);
}

#[test]
fn a_short_time_is_not_rounded_to_none() {
    for (seconds, millis) in [
        ("0", 0),
        ("0.0001", 1),
        ("0.0016", 2),
        ("315360000", 315_360_000_000),
    ] {
        let probe = format!("{{readiness_probe: {{path: /, initial_delay_seconds: {seconds}}}}}");
        let delay = accept(&minimal(&probe, "")).spec.readiness.initial_delay;
        assert_eq!(delay, Duration::from_millis(millis), "{seconds}");
    }
}
