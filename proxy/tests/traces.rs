//! Spans: one for each request that is sampled, one for each of its tries, and none that a request waits for.

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use raftserve_proxy::{FinishedTraces, NoSessions, RequestSpans, ServiceRoute, Tracer};
use support::{
    FakeSessions, Hand, Rig, by_hand, config, log, nowhere, recorder, replica, service, soon, until,
};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

fn traced(share: f64, services: impl IntoIterator<Item = ServiceRoute>) -> (Rig, FinishedTraces) {
    let (tracer, traces) = Tracer::new(share);
    let mut config = config();
    config.tracer = Some(tracer);
    (Rig::with(config, services, Arc::new(NoSessions)), traces)
}

async fn next(traces: &mut FinishedTraces) -> RequestSpans {
    let mut taken = Vec::new();
    soon("spans", traces.take(&mut taken, 1)).await;
    taken.remove(0)
}

fn none_waits(traces: &mut FinishedTraces) -> bool {
    !traces.take_now(&mut Vec::new())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a replica is told by a try of a request.
fn told(spans: &RequestSpans, at: usize) -> String {
    let (trace, span) = (hex(&spans.trace_id), hex(&spans.tries[at].span_id));
    format!("00-{trace}-{span}-01")
}

fn get(extra: &str) -> String {
    format!("GET /v1/x?key=SECRET HTTP/1.1\r\nhost: svc:80\r\n{extra}\r\n")
}

#[tokio::test]
async fn a_sampled_request_has_its_span_and_that_of_its_try() {
    let seen = log();
    let address = recorder("a", &seen).await;
    let (rig, mut traces) = traced(0.0, [service(1, "svc", &[address])]);
    #[expect(clippy::disallowed_methods, reason = "spans tell the time of day")]
    let before = SystemTime::now();
    let head = get(&format!("traceparent: {PARENT}-01\r\ntracestate: a=b\r\n"));
    Hand::connect(rig.address).await.ask(&head).await;
    let spans = next(&mut traces).await;
    assert_eq!(hex(&spans.trace_id), &PARENT[3..35]);
    assert_eq!(hex(&spans.parent_id.expect("it had one")), &PARENT[36..]);
    assert_eq!(spans.state, "a=b");
    assert_eq!(spans.asked.service.as_str(), "svc");
    assert_eq!(spans.asked.method, "GET");
    assert_eq!(spans.asked.host, "svc:80");
    assert_eq!(spans.asked.path, "/v1/x");
    assert!(!format!("{spans:?}").contains("SECRET"));
    assert_eq!(spans.status.map(|status| status.as_u16()), Some(200));
    assert_eq!(spans.error, None);
    let [tried] = &spans.tries[..] else {
        panic!("one try: {spans:?}");
    };
    assert_eq!((tried.replica.number, tried.address), (1, address));
    assert_eq!(tried.status, spans.status);
    assert!(before <= spans.start && spans.start <= tried.start);
    assert!(tried.start < tried.end && tried.end <= spans.end);
    assert_ne!(tried.span_id, spans.span_id);
    let seen = seen.lock().expect("no panic")[0].headers.clone();
    assert_eq!(seen["traceparent"], told(&spans, 0));
    assert_eq!(seen["tracestate"], "a=b");
}

#[tokio::test]
async fn a_request_that_is_not_sampled_has_no_span() {
    let seen = log();
    let (rig, mut traces) = traced(1.0, [service(1, "svc", &[recorder("a", &seen).await])]);
    let unsampled = format!("{PARENT}-00");
    let head = get(&format!("traceparent: {unsampled}\r\n"));
    let mut client = Hand::connect(rig.address).await;
    client.ask(&head).await;
    rig.idle().await;
    assert!(none_waits(&mut traces));
    assert_eq!(
        seen.lock().expect("no panic")[0].headers["traceparent"],
        unsampled
    );
    // The next one on the same connection has no caller, and a share of all is told.
    client.ask(&get("tracestate: of=none\r\n")).await;
    let spans = next(&mut traces).await;
    assert_eq!((spans.parent_id, spans.state.as_str()), (None, ""));
    let seen = seen.lock().expect("no panic")[1].headers.clone();
    assert_eq!(seen["traceparent"], told(&spans, 0));
    assert!(!seen.contains_key("tracestate"));
}

#[tokio::test]
async fn a_trace_that_begins_unsampled_says_so() {
    let seen = log();
    let (rig, mut traces) = traced(0.0, [service(1, "svc", &[recorder("a", &seen).await])]);
    Hand::connect(rig.address)
        .await
        .ask(&get("tracestate: of=none\r\n"))
        .await;
    rig.idle().await;
    assert!(none_waits(&mut traces));
    let seen = seen.lock().expect("no panic")[0].headers.clone();
    let line = seen["traceparent"].to_str().expect("text");
    assert!(line.len() == 55 && line.ends_with("-00"), "{line}");
    assert!(!seen.contains_key("tracestate"));
}

#[tokio::test]
async fn each_try_has_a_span_of_its_own() {
    let seen = log();
    let addresses = [nowhere(), recorder("b", &seen).await];
    let (rig, mut traces) = traced(1.0, [service(1, "svc", &addresses)]);
    let mut client = Hand::connect(rig.address).await;
    // By turns: one of the first two requests meets the replica that is not there.
    let mut retried = None;
    for _ in 0..2 {
        client.ask(&get("")).await;
        let spans = next(&mut traces).await;
        if spans.tries.len() > 1 {
            retried = Some(spans);
        } else {
            seen.lock().expect("no panic").clear();
        }
        if retried.is_some() {
            break;
        }
    }
    let spans = retried.expect("a retry");
    assert_eq!(spans.tries.len(), 2);
    assert_eq!(spans.status.map(|status| status.as_u16()), Some(200));
    let [first, second] = &spans.tries[..] else {
        panic!("two tries: {spans:?}");
    };
    assert_eq!(first.error, Some("replica_unreachable"));
    assert_eq!((first.status, second.error), (None, None));
    assert_eq!((first.replica.number, second.replica.number), (1, 2));
    assert_ne!(first.span_id, second.span_id);
    assert!(first.end <= second.start);
    let seen = seen.lock().expect("no panic")[0].headers.clone();
    assert_eq!(seen["traceparent"], told(&spans, 1));
}

#[tokio::test]
async fn a_try_that_broke_and_was_repeated_is_told_too() {
    let (broken, mut connections) = by_hand().await;
    let (whole, mut others) = by_hand().await;
    let (rig, mut traces) = traced(1.0, [service(1, "svc", &[broken, whole])]);
    let mut client = Hand::connect(rig.address).await;
    client.send(&get("")).await;
    let mut heads = Vec::new();
    // Whichever of the two gets it first breaks off.
    let mut first = tokio::select! {
        hand = connections.recv() => hand.expect("it listens"),
        hand = others.recv() => hand.expect("it listens"),
    };
    heads.push(first.head().await);
    drop(first);
    let mut second = tokio::select! {
        hand = soon("a retry", connections.recv()) => hand.expect("it listens"),
        hand = soon("a retry", others.recv()) => hand.expect("it listens"),
    };
    heads.push(second.head().await);
    second
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.head().await;
    let spans = next(&mut traces).await;
    assert_eq!(spans.tries.len(), 2, "{spans:?}");
    assert_eq!(spans.tries[0].error, Some("replica_broke_off"));
    assert_eq!(spans.tries[1].error, None);
    for (at, head) in heads.iter().enumerate() {
        let line = format!("traceparent: {}", told(&spans, at));
        assert!(head.contains(&line), "{line} in {head:?}");
    }
    assert!(none_waits(&mut traces), "one request");
}

#[tokio::test]
async fn what_fails_says_why() {
    let (address, mut connections) = by_hand().await;
    let services = [
        service(1, "svc", &[nowhere()]),
        service(2, "cut", &[address]),
    ];
    let (rig, mut traces) = traced(1.0, services);
    assert_eq!(support::get(rig.address, "svc", "/").await.0, 502);
    let spans = next(&mut traces).await;
    assert_eq!(spans.status.map(|status| status.as_u16()), Some(502));
    assert_eq!(spans.error, Some("replica_unreachable"));
    assert_eq!(spans.tries[0].error, Some("replica_unreachable"));
    support::broken_off(&rig, "cut", &mut connections).await;
    let spans = next(&mut traces).await;
    assert_eq!(spans.error, Some("answer_broke_off"));
    assert_eq!(spans.tries[0].error, Some("answer_broke_off"));
    assert_eq!(spans.tries[0].end, spans.end);
}

#[tokio::test]
async fn spans_that_nobody_takes_cost_no_request() {
    let mut none = service(1, "svc", &[]);
    none.traffic.queue.requests = 0;
    let (rig, mut traces) = traced(1.0, [none]);
    let mut client = Hand::connect(rig.address).await;
    let dropped = "raftserve_proxy_traces_dropped_total ";
    let value = || {
        let text = rig.proxy.render_prometheus();
        let line = text.lines().find_map(|line| line.strip_prefix(dropped));
        line.expect("it is told").parse::<u64>().expect("a number")
    };
    let mut asked = 0;
    while value() == 0 {
        for _ in 0..500 {
            client.ask("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        }
        asked += 500;
        assert!(asked < 20_000, "the queue has a bound");
    }
    let mut kept = Vec::new();
    while traces.take_now(&mut kept) {}
    until("all are told or counted", || {
        kept.len() as u64 + value() == asked
    })
    .await;
}

#[tokio::test]
async fn a_bound_request_is_traced_too() {
    let seen = log();
    let mut svc = service(1, "svc", &[recorder("a", &seen).await]);
    svc.affinity = support::by_header("x-session");
    let sessions = FakeSessions::new(&[replica(1, 1)], Duration::ZERO);
    let (tracer, mut traces) = Tracer::new(1.0);
    let mut config = config();
    config.tracer = Some(tracer);
    let rig = Rig::with(config, [svc], sessions);
    Hand::connect(rig.address)
        .await
        .ask(&get("x-session: s\r\n"))
        .await;
    let spans = next(&mut traces).await;
    assert_eq!(spans.tries.len(), 1);
    assert_eq!(spans.tries[0].status, spans.status);
    let seen = seen.lock().expect("no panic")[0].headers.clone();
    assert_eq!(seen["traceparent"], told(&spans, 0));
}
