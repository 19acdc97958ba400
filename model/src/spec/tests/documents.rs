//! Whole documents: the examples, what is shown of a specification, and hostile sources.

use std::time::Instant;

use super::*;

#[test]
fn the_examples_are_accepted_without_a_warning() {
    for (yaml, replicas, run) in [
        (
            include_str!("../../../../examples/http_server.yaml"),
            2,
            "python3 -m http.server 20001",
        ),
        (
            include_str!("../../../../examples/http_service.yaml"),
            1,
            "python3 -m http.server 20001 --bind 0.0.0.0",
        ),
        (
            include_str!("../../../../examples/sessions.yaml"),
            3,
            "python3 -m http.server 20001",
        ),
    ] {
        let parsed = accept(yaml);
        assert_eq!(parsed.warnings, [""; 0]);
        assert_eq!(parsed.spec.source, yaml);
        assert_eq!(parsed.spec.replicas, replicas);
        assert_eq!(parsed.spec.command_for_port(&parsed.spec.run, 20001), run);
    }
}

#[test]
fn what_is_rendered_parses_to_the_same_specification() {
    for yaml in [
        include_str!("../../../../examples/http_server.yaml").to_owned(),
        include_str!("../../../../examples/sessions.yaml").to_owned(),
        minimal(
            "{readiness_probe: {path: /, post_data: '[1, \"ä\"]', headers: {A: b}, timeout_seconds: 0.025}}",
            "setup: echo\nenvs: {A: '1', B: \"two\\nlines\"}\n_metadata: {raftserve: {session_affinity: {cookie: c}}}",
        ),
        probes::GRPC.to_owned(),
        minimal("{}", "_metadata: {raftserve: {readiness_probe: {tcp: {}}}}"),
        placement::EVERYTHING.to_owned(),
        placement::STATIC.to_owned(),
        "service: {}\n_metadata: {raftserve: {provider: {static: {addresses: ['a:1', '[::1]:2']}}}}".to_owned(),
    ] {
        let spec = accept(&yaml).spec;
        let again = accept(&spec.render().to_string()).spec;
        assert_eq!(
            ServiceSpec {
                source: spec.source.clone(),
                ..again
            },
            spec
        );
    }
}

#[test]
fn secrets_are_masked_wherever_a_specification_is_shown() {
    let yaml = "\
secrets:
  A: hush-one   # kept
  B: \"hush-two\"
  C: |
    hush-three
    hush-four
  D: hush-five
  F: 12345
envs: {G: seen}
service:
  readiness_probe: {path: '/$A', post_data: '\"$B\"', headers: {X: 'Bearer ${A}'}}
resources: {ports: 8080}
run: serve 8080 $A
";
    let spec = accept(yaml).spec;
    assert_eq!(spec.readiness.headers["X"], "Bearer hush-one");
    let shown = format!("{}\n{spec:?}\n{}", spec.render(), spec.source_masked());
    for secret in ["hush", "12345"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert_eq!(spec.render()["secrets"]["A"], MASK);
    assert_eq!(
        spec.render()["service"]["readiness_probe"]["headers"]["X"],
        "Bearer ***"
    );
    let masked = spec.source_masked();
    for kept in [
        "# kept",
        "G: seen",
        "  B: '***'\n",
        "run: serve 8080 $A\n",
        "post_data: '\"$B\"'",
    ] {
        assert!(masked.contains(kept), "{kept} in {masked}");
    }
    assert_eq!(masked.lines().count(), yaml.lines().count() - 1);
    accept(&masked);

    let yaml = minimal("{}", "secrets: {A: &a hush, B: *a, <<: {C: !!str hush}}");
    assert!(!accept(&yaml).spec.source_masked().contains("hush"));
}

#[test]
fn no_message_tells_a_secret() {
    let errors = refuse(
        "secrets: {A: hush, 'B C': hush}\nservice: {readiness_probe: $A, replicas: $A, \
         load_balancing_policy: $A, oops: $A}\nrun: $A\n",
    );
    assert!(errors.len() >= 5, "{errors:?}");
    assert!(
        errors.iter().all(|error| !error.contains("hush")),
        "{errors:?}"
    );
}

#[test]
fn merge_keys_and_aliases_are_followed() {
    let spec = accept(
        "_metadata: {x: &probe {path: /a, timeout_seconds: 3}, y: &more {timeout_seconds: 9, initial_delay_seconds: 7}}\n\
         service:\n  readiness_probe:\n    <<: [*probe, *more]\n    path: /b\n  replicas: &n 2\n  ports: 8080\n\
         resources: {ports: 8080}\nrun: serve 8080\n",
    )
    .spec;
    assert_eq!(spec.readiness.path, "/b");
    assert_eq!(spec.readiness.timeout, Duration::from_secs(3));
    assert_eq!(spec.readiness.initial_delay, Duration::from_secs(7));
}

#[test]
fn sources_that_are_no_service_are_refused_in_plain_words() {
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let huge = "#".repeat(SPEC_SOURCE_BYTES_MAX + 1);
    for (yaml, error) in [
        ("", "the file is empty; a service needs at least"),
        ("# nothing\n", "the file is empty; a service needs at least"),
        ("[a, b]", "line 1: expected a mapping, got a list; "),
        ("hello", "line 1: expected a mapping, got \"hello\"; "),
        ("~", "line 1: expected a mapping, got nothing; "),
        (
            "a: 1\n---\nb: 2\n",
            "line 2: a second YAML document starts here; ",
        ),
        (
            "service:\n\treplicas: 2\n",
            "line 2: a tab in the indentation; indent with spaces",
        ),
        (
            "run: a\0b",
            "line 1: the control character U+0000 is not allowed in YAML; ",
        ),
        (
            "a:\n  b: \u{7}",
            "line 2: the control character U+0007 is not allowed in YAML; ",
        ),
        ("service: {replicas: 1", "line 1: not valid YAML: "),
        ("run: *nowhere", "line 1: not valid YAML: "),
        ("run: !!python/object x", "line 1, run: the tag "),
        (
            "run: !mine x",
            "line 1, run: the tag !mine has no meaning here; remove it",
        ),
        (
            "run: !!int x",
            "line 1, run: the value does not fit its tag !!int; remove the tag",
        ),
        (
            "a: &a [*a]",
            "line 1, a[0]: the alias stands inside what it names; ",
        ),
        (
            "service:\n  replicas: 1\n  replicas: 2\n",
            "line 3, service.replicas: the key is already on line 2; ",
        ),
        ("{[a]: b}", "line 1: a list or a mapping cannot be a key; "),
        (
            "service: {<<: 1}",
            "line 1, service.<<: '<<' merges mappings only; ",
        ),
        (&deep, "line 1: nested deeper than 64 levels"),
        (
            &huge,
            "the file has 1048577 bytes; at most 1048576 are allowed; ",
        ),
    ] {
        let errors = refuse(yaml);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].starts_with(error),
            "{:?}, wanted {error:?}",
            errors[0]
        );
    }
}

#[test]
fn aliases_cannot_multiply_a_document() {
    let mut bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..30 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let errors = refuse(&bomb);
    assert!(
        errors[0].contains("the aliases up to here repeat more than"),
        "{errors:?}"
    );
    let nest = format!(
        "a: {}{}{}",
        "&a [".repeat(60),
        "1,".repeat(45_000),
        "]".repeat(60)
    );
    let errors = refuse(&nest);
    assert!(
        errors[0].contains("the anchors up to here hold more than"),
        "{errors:?}"
    );
    let errors = refuse(&"- 1\n".repeat(150_000));
    assert_eq!(
        errors,
        ["line 100000: more than 100000 values; move data out of the file"]
    );
    let variables = format!(
        "envs: {{A: {}}}\n{}",
        "x".repeat(100_000),
        minimal(
            &format!("{{readiness_probe: /{}}}", "$A".repeat(100_000)),
            ""
        )
    );
    let errors = refuse(&variables);
    assert!(
        errors[0].contains("the variables up to here put in more than"),
        "{errors:?}"
    );
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the time it takes is what is tested"
)]
fn large_sources_are_read_in_bounded_time() {
    // A second in an idle debug build; quadratic work would take hours.
    let limit = Duration::from_secs(60);
    let fill = |unit: &str| unit.repeat((SPEC_SOURCE_BYTES_MAX - 100) / unit.len());
    for (shape, yaml) in [
        ("brackets", fill("[")),
        ("braces", fill("{")),
        ("dashes", fill("- ")),
        ("keys", fill("? ")),
        ("colons", fill(": ")),
        ("quotes", fill("\"")),
        (
            "dollars",
            minimal(
                &format!("{{readiness_probe: '/{}'}}", "$A${".repeat(200_000)),
                "",
            ),
        ),
        ("lines", fill("a\n")),
        ("anchors", fill("&a ")),
        ("items", format!("run: [{}]", fill("1,"))),
        (
            "unknown keys",
            (0..80_000).map(|n| format!("k{n}: 1\n")).collect(),
        ),
        ("same keys", fill("k: 1\n")),
        ("values below long keys", below_long_keys("")),
        (
            "posted values below long keys",
            below_long_keys("service: {readiness_probe: {post_data: "),
        ),
        ("long key", format!("{}: 1", "k".repeat(900_000))),
        ("one line", format!("run: {}", fill("x"))),
        ("words", format!("run: {}", fill("8080 "))),
        ("comment", fill("#")),
        ("indentation", fill(" ")),
        ("newlines", fill("\n")),
        (
            "wide anchored nest",
            format!(
                "a: {}{}{}",
                "&a [".repeat(60),
                "1,".repeat(45_000),
                "]".repeat(60)
            ),
        ),
        (
            "anchored nest",
            format!("{}{}", "&a [".repeat(60), "]".repeat(60)),
        ),
    ] {
        let started = Instant::now();
        let result = ServiceSpec::parse(&yaml, ParseOptions::default());
        if let Err(errors) = &result {
            let shown = errors.to_string().len();
            assert!(shown < 100 * 1024, "{shape}: {shown} bytes of errors");
        }
        let took = started.elapsed();
        assert!(took < limit, "{shape}: {took:?}");
    }
}

/// Many values, each with a long path.
fn below_long_keys(start: &str) -> String {
    format!(
        "{start}{}[{}]{}",
        format!("{{{}: ", "k".repeat(10_000)).repeat(55),
        "1,".repeat(99_000),
        "}".repeat(55 + 2 * usize::from(!start.is_empty()))
    )
}
