//! What is told of requests: enough to find what is slow or fails, and nothing that is a secret.

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftserve_proxy::{AccessLog, NoSessions, Tracer};
use support::{Hand, Rig, accept, by_hand, config, log, nowhere, recorder, service, soon, until};
use tokio::io::AsyncReadExt;

/// A sink whose bytes a test can read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }

    fn all(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        lines.collect()
    }
}

fn logged(services: impl IntoIterator<Item = raftserve_proxy::ServiceRoute>) -> (Rig, Lines) {
    let lines = Lines::default();
    let mut config = config();
    config.access_log = Some(AccessLog::start(lines.clone()).expect("a thread"));
    (Rig::with(config, services, Arc::new(NoSessions)), lines)
}

#[tokio::test]
async fn each_request_is_told_once_its_answer_has_ended() {
    let (address, mut connections) = by_hand().await;
    let (rig, lines) = logged([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST /v1/x HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
        .await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    replica
        .send("HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\nab")
        .await;
    client.head().await;
    assert_eq!(lines.text(), "", "its answer has not ended");
    replica.send("cd").await;
    client.exactly(4).await;
    until("a line", || !lines.text().is_empty()).await;
    let line = &lines.all()[0];
    for (field, value) in [
        ("service", serde_json::json!("svc")),
        ("version", 1.into()),
        ("replica", 1.into()),
        ("client", "127.0.0.1".into()),
        ("method", "POST".into()),
        ("host", "h".into()),
        ("path", "/v1/x".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 201.into()),
        ("refusal", serde_json::Value::Null),
        ("tries", 1.into()),
        ("bytes", 4.into()),
        ("broke_off", false.into()),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    let trace = head
        .iter()
        .find_map(|line| line.strip_prefix("traceparent: "));
    let trace = trace
        .expect("it was begun")
        .split('-')
        .nth(1)
        .expect("an id");
    assert_eq!(line["trace_id"], trace);
    assert!(line["duration_ms"].as_f64() >= line["first_byte_ms"].as_f64());
}

/// Whichever way carries it in the end.
#[tokio::test]
async fn the_time_of_a_request_begins_with_its_first_try() {
    const SILENCE: Duration = Duration::from_millis(150);
    let (silent, mut connections) = by_hand().await;
    let svc = service(1, "svc", &[silent, recorder("b", &log()).await]);
    let (rig, lines) = logged([svc]);
    let ask = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut client = Hand::connect(rig.address).await;
    let mut quick = 0;
    // A worker's turn may begin at either.
    let mut replica = loop {
        client.send(ask).await;
        tokio::select! {
            replica = accept(&mut connections) => break replica,
            head = client.head() => assert_eq!(head[0], "http/1.1 200 ok"),
        }
        assert_eq!(client.exactly(1).await, "b");
        quick += 1;
    };
    replica.head().await;
    // It says nothing for so long, and never more.
    let _ = tokio::time::timeout(SILENCE, replica.0.read_u8()).await;
    drop(replica);
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    until("its line", || lines.all().len() == quick + 1).await;
    let line = &lines.all()[quick];
    assert_eq!(line["tries"], 2, "{line}");
    for field in ["first_byte_ms", "duration_ms"] {
        let passed = line[field].as_f64().expect("a number");
        assert!(passed >= SILENCE.as_secs_f64() * 1e3, "{field} in {line}");
    }
    let text = rig.proxy.render_prometheus();
    for name in ["first_byte", "request"] {
        let name = format!("raftserve_proxy_{name}_seconds_sum{{service=\"svc\",version=\"1\"}} ");
        let sum = text.lines().find_map(|line| line.strip_prefix(&name));
        let sum: f64 = sum.expect("it is told").parse().expect("a number");
        assert!(sum >= SILENCE.as_secs_f64(), "{name}{sum}");
    }
}

#[tokio::test]
async fn an_answer_ends_with_its_last_byte_not_with_its_head() {
    for [first, last] in [["", "abcd"], ["ab", "cd"]] {
        let (address, mut connections) = by_hand().await;
        let (rig, lines) = logged([service(1, "svc", &[address])]);
        let mut client = Hand::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let mut replica = accept(&mut connections).await;
        replica.head().await;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{first}");
        replica.send(answer).await;
        client.head().await;
        replica.send(last).await;
        client.exactly(4).await;
        until("a line", || !lines.text().is_empty()).await;
        let line = &lines.all()[0];
        assert!(
            line["duration_ms"].as_f64() > line["first_byte_ms"].as_f64(),
            "{line}"
        );
    }
}

/// SkyServe logs every header of every request.
#[tokio::test]
async fn the_access_log_holds_no_secret() {
    let (rig, lines) = logged([service(1, "svc", &[recorder("a", &log()).await])]);
    let request = "GET /x?api_key=SECRET HTTP/1.1\r\nhost: h\r\nauthorization: Bearer SECRET\r\n\
                   cookie: sid=SECRET\r\nx-api-key: SECRET\r\nproxy-authorization: SECRET\r\n\r\n";
    Hand::connect(rig.address).await.ask(request).await;
    until("a line", || !lines.text().is_empty()).await;
    assert!(!lines.text().contains("SECRET"), "{}", lines.text());
    assert_eq!(lines.all()[0]["path"], "/x");
    assert!(!rig.proxy.render_prometheus().contains("SECRET"));
}

#[tokio::test]
async fn what_fails_is_told_with_its_reason() {
    let (address, mut connections) = by_hand().await;
    let services = [
        service(1, "svc", &[nowhere()]),
        service(2, "cut", &[address]),
    ];
    let (rig, lines) = logged(services);
    assert_eq!(support::get(rig.address, "svc", "/").await.0, 502);
    until("a line", || lines.all().len() == 1).await;
    assert_eq!(lines.all()[0]["refusal"], "replica_unreachable");
    assert_eq!(lines.all()[0]["replica"], serde_json::Value::Null);
    support::broken_off(&rig, "cut", &mut connections).await;
    until("a line", || lines.all().len() == 2).await;
    assert_eq!(lines.all()[1]["broke_off"], true);
    assert_eq!(lines.all()[1]["bytes"], 2);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_no_request() {
    /// Takes the first bytes, and then blocks until the test is over.
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (over, wait) = std::sync::mpsc::sync_channel(1);
    let mut config = config();
    config.access_log = Some(AccessLog::start(Stuck(wait)).expect("a thread"));
    let mut none = service(1, "svc", &[]);
    none.traffic.queue.requests = 0;
    let rig = Rig::with(config, [none], Arc::new(NoSessions));
    let mut client = Hand::connect(rig.address).await;
    // More than wait at most, and some that are being written.
    let dropped = "raftserve_proxy_access_log_dropped_total ";
    let mut asked = 0;
    while rig
        .proxy
        .render_prometheus()
        .lines()
        .any(|line| line.strip_prefix(dropped) == Some("0"))
    {
        for _ in 0..500 {
            client.ask("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        }
        asked += 500;
        assert!(asked < 20_000, "the queue has a bound");
    }
    drop(over);
}

#[tokio::test]
async fn each_replica_and_version_has_its_own_counters() {
    let log = log();
    let addresses = [
        recorder("a", &log).await,
        recorder("b", &log).await,
        nowhere(),
    ];
    let mut svc = service(1, "svc", &addresses);
    svc.endpoints[1].version = raftserve_model::ServiceVersion(2);
    let rig = Rig::new([svc]);
    for _ in 0..30 {
        assert_eq!(support::get(rig.address, "h", "/").await.0, 200);
    }
    rig.idle().await;
    until("all ended", || rig.metric("requests_in_flight") == 0).await;
    let text = rig.proxy.render_prometheus();
    let value = |line: &str| -> u64 {
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        let found = found.unwrap_or_else(|| panic!("no {line} in {text}"));
        found.trim().parse().expect("a number")
    };
    let name = "raftserve_proxy_replica";
    let labels = |version: u32, replica: u32| {
        format!("service=\"svc\",version=\"{version}\",replica=\"{replica}\"")
    };
    let (a, b, c) = (labels(1, 1), labels(2, 2), labels(1, 3));
    let requests = [&a, &b].map(|each| value(&format!("{name}_requests_total{{{each}}}")));
    assert_eq!(requests[0] + requests[1], 30);
    assert!(requests.iter().all(|&count| count > 0));
    let answers =
        [&a, &b].map(|each| value(&format!("{name}_responses_total{{{each},code=\"2xx\"}}")));
    assert_eq!(answers, requests);
    assert!(value(&format!("{name}_failures_total{{{c}}}")) >= 1);
    assert!(value(&format!("{name}_ejections_total{{{c}}}")) >= 1);
    assert_eq!(value(&format!("{name}_requests_in_flight{{{a}}}")), 0);
    for (labels, count) in [(&a, requests[0]), (&b, requests[1])] {
        let name = format!("{name}_first_byte_seconds");
        assert_eq!(value(&format!("{name}_count{{{labels}}}")), count);
        for end in ["30", "+Inf"] {
            let bucket = format!("{name}_bucket{{{labels},le=\"{end}\"}}");
            assert_eq!(value(&bucket), count, "each took less");
        }
    }
    for (version, count) in [(1, requests[0]), (2, requests[1])] {
        let labels = format!("service=\"svc\",version=\"{version}\"");
        for histogram in ["first_byte", "request"] {
            let name = format!("raftserve_proxy_{histogram}_seconds");
            assert_eq!(value(&format!("{name}_count{{{labels}}}")), count);
            assert_eq!(
                value(&format!("{name}_bucket{{{labels},le=\"+Inf\"}}")),
                count
            );
        }
    }
}

/// Weights are for canaries: what they do is read by version.
#[tokio::test]
async fn the_error_rate_of_a_version_outlives_its_replicas() {
    let broken = |_| async {
        let mut answer = http::Response::new(http_body_util::Full::default());
        *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        answer
    };
    let (address, mut connections) = by_hand().await;
    let addresses = [
        recorder("a", &log()).await,
        support::upstream(broken).await,
        nowhere(),
        address,
    ];
    let mut svc = service(1, "svc", &addresses);
    let versions = [1, 2, 2, 3].map(raftserve_model::ServiceVersion);
    for (endpoint, version) in svc.endpoints.iter_mut().zip(versions) {
        endpoint.version = version;
    }
    let canary = svc.endpoints.split_off(3);
    let rig = Rig::new([svc.clone()]);
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..30 {
        let (status, _) = support::get(rig.address, "h", "/").await;
        *answers.entry(status).or_insert(0_u64) += 1;
    }
    rig.idle().await;
    let value = |name: &str, labels: &str| -> u64 {
        let text = rig.proxy.render_prometheus();
        let line = format!("raftserve_proxy_{name}{{service=\"svc\",{labels}}} ");
        let found = text.lines().find_map(|found| found.strip_prefix(&line));
        found.map_or(0, |value| value.parse().expect("a number"))
    };
    let counts = || {
        [
            value("version_responses_total", "version=\"1\",code=\"2xx\""),
            value("version_responses_total", "version=\"2\",code=\"5xx\""),
            value("version_failures_total", "version=\"2\""),
            value("version_ejections_total", "version=\"2\""),
            value("version_requests_total", "version=\"1\""),
            value("version_requests_total", "version=\"2\""),
            value("version_retries_total", "version=\"1\"")
                + value("version_retries_total", "version=\"2\""),
        ]
    };
    let [good, bad, failures, ejections, first, second, retries] = counts();
    assert_eq!((good, bad), (answers[&200], answers[&500]));
    assert!(failures >= 1 && ejections >= 1);
    assert_eq!((first, second), (good, bad + failures));
    assert_eq!(retries, failures, "each was tried elsewhere");
    assert_eq!(retries, rig.metric("retries_total"));
    let labels = "version=\"1\",replica=\"1\"";
    assert_eq!(value("replica_first_byte_seconds_count", labels), good);

    // One replica becomes one of version 3, and the others of version 2 go.
    let before = counts();
    svc.endpoints.truncate(1);
    svc.endpoints[0].version = versions[3];
    svc.endpoints.extend(canary);
    rig.routes.publish(support::table([svc]));
    let mut clients = Vec::new();
    let mut replica = loop {
        let mut client = Hand::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let canary = tokio::select! {
            canary = connections.recv() => canary,
            _ = client.head() => None,
        };
        clients.push(client);
        if let Some(replica) = canary {
            break replica;
        }
    };
    replica.head().await;
    assert_eq!(counts(), before);
    let running = || value("version_requests_in_flight", "version=\"3\"");
    assert!(running() >= 1);
    let of_new = value("version_requests_total", "version=\"3\"");
    assert_eq!(of_new, clients.len() as u64, "since it is of that version");
    drop((replica, connections, clients));
    until("all ended", || running() == 0).await;
    assert_eq!(counts(), before);
}

#[tokio::test]
async fn a_line_and_its_spans_name_one_trace() {
    let address = recorder("a", &log()).await;
    let lines = Lines::default();
    let (tracer, mut traces) = Tracer::new(1.0);
    let mut config = config();
    config.access_log = Some(AccessLog::start(lines.clone()).expect("a thread"));
    config.tracer = Some(tracer);
    let rig = Rig::with(
        config,
        [service(1, "svc", &[address])],
        Arc::new(NoSessions),
    );
    let mut client = Hand::connect(rig.address).await;
    client.ask("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut spans = Vec::new();
    soon("spans", traces.take(&mut spans, 1)).await;
    until("a line", || !lines.text().is_empty()).await;
    let id: String = spans[0]
        .trace_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(lines.all()[0]["trace_id"], id);
}
