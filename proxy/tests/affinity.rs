//! Strict sessions: one replica for each binding, waited for or refused, never guessed.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body_util::Full;
use raftserve_model::spec::{Retries, UpstreamProtocol};
use raftserve_model::{LogIndex, ServiceId, SessionKey};
use raftserve_proxy::{BindFuture, BoundReplica, Lookup, ProxyConfig, ServiceRoute, Sessions};
use support::replica::Replica;
use support::{
    FakeSessions, Hand, LIMIT, Rig, Seen, ask, by_hand, by_header, config, log, nowhere, recorder,
    replica, service, soon, table, text, until,
};
use tokio::sync::{mpsc, watch};

fn with_affinity(mut service: ServiceRoute) -> ServiceRoute {
    service.affinity = by_header("x-session");
    service
}

fn patient() -> ProxyConfig {
    ProxyConfig {
        session_wait: LIMIT,
        ..config()
    }
}

fn impatient() -> ProxyConfig {
    ProxyConfig {
        session_wait: Duration::from_millis(300),
        ..config()
    }
}

fn request(key: &str) -> Request<Full<Bytes>> {
    let request = Request::get("/")
        .header("host", "h")
        .header("x-session", key);
    request.body(Full::default()).expect("a good request")
}

fn key(value: &str) -> SessionKey {
    SessionKey::of(ServiceId(1), value.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_through_two_peers_at_once_have_one_replica_each() {
    const KEYS: usize = 1000;
    const EACH: usize = 4;
    let log = log();
    let mut addresses = Vec::new();
    for label in ["a", "b", "c"] {
        addresses.push(recorder(label, &log).await);
    }
    let svc = with_affinity(service(1, "svc", &addresses));
    let replicas: Vec<_> = svc
        .endpoints
        .iter()
        .map(|endpoint| endpoint.replica)
        .collect();
    let sessions = FakeSessions::new(&replicas, Duration::from_millis(20));
    let peers = [(); 2].map(|()| Rig::with(patient(), [svc.clone()], sessions.clone()));
    let addresses = [peers[0].address, peers[1].address];
    stream::iter(0..KEYS * EACH)
        .for_each_concurrent(100, |n| async move {
            // The requests of one key come right after each other, through both peers.
            let key = format!("key-{}", n / EACH);
            let response = ask(addresses[n % 2], request(&key)).await;
            assert_eq!(response.status(), 200);
            text(response).await;
        })
        .await;
    let mut served: HashMap<String, HashSet<String>> = HashMap::new();
    for seen in log.lock().expect("no panic").iter() {
        let key = seen.headers["x-session"].to_str().expect("text").to_owned();
        served.entry(key).or_default().insert(seen.replica.clone());
    }
    assert_eq!(served.len(), KEYS);
    assert!(served.values().all(|replicas| replicas.len() == 1));
    assert_eq!(log.lock().expect("no panic").len(), KEYS * EACH);
    let binds = sessions.binds.load(Ordering::Relaxed);
    assert!(binds >= KEYS as u64);

    for n in 0..50 {
        ask(addresses[n % 2], request("key-7")).await;
    }
    assert_eq!(
        sessions.binds.load(Ordering::Relaxed),
        binds,
        "later requests are local"
    );
}

#[tokio::test]
async fn a_session_reaches_its_replica_though_that_is_not_ready() {
    let log = log();
    let addresses = [recorder("a", &log).await, recorder("b", &log).await];
    let mut svc = with_affinity(service(1, "svc", &addresses));
    svc.endpoints[0].ready = false;
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("old"), sessions.bound(replica(1, 1)));
    let rig = Rig::with(patient(), [svc], sessions);
    for _ in 0..4 {
        assert_eq!(text(ask(rig.address, request("old")).await).await, "a");
        let free = Request::get("/").header("host", "h").body(Full::default());
        let free = ask(rig.address, free.expect("a good request")).await;
        assert_eq!(text(free).await, "b", "a request without a key is balanced");
    }
}

#[tokio::test]
async fn a_session_waits_for_its_replica_and_follows_its_binding_only() {
    let log = log();
    let addresses = [
        nowhere(),
        recorder("b", &log).await,
        recorder("c", &log).await,
    ];
    let svc = with_affinity(service(1, "svc", &addresses));
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("k"), sessions.bound(replica(1, 1)));
    let mut rig = Rig::with(patient(), [svc], sessions.clone());
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    assert_eq!(
        soon("a report", rig.failures.recv()).await,
        Some(replica(1, 1))
    );
    sessions.set(key("k"), Lookup::Wait);
    sessions.set(key("k"), sessions.bound(replica(1, 3)));
    let response = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(text(response).await, "c");
    assert_eq!(log.lock().expect("no panic").len(), 1);
}

#[tokio::test]
async fn a_session_waits_for_its_replica_to_come_back() {
    let log = log();
    let mut svc = with_affinity(service(1, "svc", &[nowhere(), recorder("b", &log).await]));
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("k"), sessions.bound(replica(1, 1)));
    let mut rig = Rig::with(patient(), [svc.clone()], sessions);
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    soon("a report", rig.failures.recv()).await;
    svc.endpoints[0].address = recorder("a", &log).await;
    rig.routes.publish(table([svc]));
    let response = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(text(response).await, "a");
}

#[tokio::test]
async fn patience_ends_in_a_503_and_nowhere_else() {
    let log = log();
    let addresses = [nowhere(), recorder("b", &log).await];
    let svc = with_affinity(service(1, "svc", &addresses));
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("dead"), sessions.bound(replica(1, 1)));
    sessions.set(key("gone"), sessions.bound(replica(1, 9)));
    sessions.set(key("moving"), Lookup::Wait);
    let refused = Lookup::Refused {
        reason: "no lease".to_owned(),
    };
    sessions.set(key("refused"), refused);
    let rig = Rig::with(impatient(), [svc], sessions);
    for (key, error, why) in [
        ("dead", "session_unavailable", "accepts no connection"),
        ("gone", "session_unavailable", "has no address"),
        ("moving", "session_unavailable", "not certain"),
        ("unbound", "session_unavailable", "no replica is ready"),
        ("refused", "session_refused", "no lease"),
    ] {
        let response = ask(rig.address, request(key)).await;
        assert_eq!(response.status(), 503, "{key}");
        assert_eq!(response.headers()["retry-after"], "1");
        let body: serde_json::Value = serde_json::from_str(&text(response).await).expect("JSON");
        assert_eq!(body["error"], error, "{key}: {body}");
        let message = body["message"].as_str().expect("text");
        assert!(message.contains(why), "{key}: {body}");
    }
    assert!(log.lock().expect("no panic").is_empty());
    rig.idle().await;
}

/// Else a service whose clients all have keys would never be woken.
#[tokio::test]
async fn sessions_wait_in_the_queue_of_a_service_without_a_ready_replica_and_wake_it() {
    const PLACES: u32 = 3;
    let log = log();
    let mut svc = with_affinity(service(1, "svc", &[recorder("a", &log).await]));
    svc.endpoints[0].ready = false;
    (svc.traffic.queue.requests, svc.traffic.queue.wait) = (PLACES, LIMIT * 2);
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    let config = impatient();
    let longer_than_a_binding = config.session_wait * 2;
    let rig = Rig::with(config, [svc.clone()], sessions.clone());
    let mut begun = rig.proxy.queues().begun();
    begun.mark_unchanged();
    let start = Instant::now();
    let asks: Vec<_> = (0..PLACES)
        .map(|n| tokio::spawn(ask(rig.address, request(&format!("k{n}")))))
        .collect();
    until("all waiting", || {
        rig.metric("queue_length") == u64::from(PLACES)
    })
    .await;
    soon("a call to wake up", begun.changed())
        .await
        .expect("it runs");
    assert!(!begun.has_changed().expect("it runs"), "one call");
    let refused = ask(rig.address, request("one too many")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    until("a long wait", || start.elapsed() > longer_than_a_binding).await;
    assert_eq!(sessions.binds.load(Ordering::Relaxed), 0);
    sessions
        .replicas
        .lock()
        .expect("no panic")
        .push(replica(1, 1));
    svc.endpoints[0].ready = true;
    rig.routes.publish(table([svc]));
    for ask in asks {
        let answer = soon("an answer", ask).await.expect("no panic");
        assert_eq!(text(answer).await, "a");
    }
    assert_eq!(rig.metric("queue_length"), 0);
    assert_eq!(rig.metric("queued_total"), u64::from(PLACES));
    rig.idle().await;
}

#[tokio::test]
async fn a_bound_session_does_not_queue() {
    let log = log();
    let mut svc = with_affinity(service(1, "svc", &[recorder("a", &log).await]));
    svc.endpoints[0].ready = false;
    svc.traffic.queue.requests = 0;
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("old"), sessions.bound(replica(1, 1)));
    let rig = Rig::with(patient(), [svc], sessions);
    assert_eq!(text(ask(rig.address, request("old")).await).await, "a");
    let new = ask(rig.address, request("new")).await;
    assert_eq!(new.status(), 503);
    let body = text(new).await;
    assert!(body.contains("no_ready_replica"), "{body}");
    rig.idle().await;
}

/// A service of which replica 1 is played by hand and replica 2 is `b`, and a session bound to the former.
async fn played(
    config: ProxyConfig,
    retries: Retries,
) -> (
    Rig,
    Arc<FakeSessions>,
    mpsc::Receiver<Hand>,
    Arc<Mutex<Vec<Seen>>>,
) {
    let (address, connections) = by_hand().await;
    let log = log();
    let mut svc = with_affinity(service(1, "svc", &[address, recorder("b", &log).await]));
    svc.traffic.retries = retries;
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("k"), sessions.bound(replica(1, 1)));
    let rig = Rig::with(config, [svc], sessions.clone());
    (rig, sessions, connections, log)
}

/// The replica gets a request; its first line.
async fn receive(connections: &mut mpsc::Receiver<Hand>) -> (Hand, String) {
    let mut hand = support::accept(connections).await;
    let first = hand.head().await.swap_remove(0);
    (hand, first)
}

/// The replica gets a request and is gone before it answers.
async fn break_off(connections: &mut mpsc::Receiver<Hand>) {
    drop(receive(connections).await);
}

#[tokio::test]
async fn a_request_that_is_not_idempotent_and_reached_its_replica_is_not_sent_again() {
    let never = Retries {
        after_sent: false,
        ..Retries::default()
    };
    for (method, retries) in [("POST", Retries::default()), ("GET", never)] {
        let (rig, _, mut connections, log) = played(patient(), retries).await;
        let mut sent = request("k");
        *sent.method_mut() = method.parse().expect("a method");
        let waiting = tokio::spawn(ask(rig.address, sent));
        break_off(&mut connections).await;
        let answer = soon("an answer", waiting).await.expect("no panic");
        assert_eq!(answer.status(), 502);
        assert!(connections.try_recv().is_err());
        assert!(log.lock().expect("no panic").is_empty());
        rig.idle().await;
    }
}

#[tokio::test]
async fn an_idempotent_request_whose_replica_breaks_off_goes_where_its_session_goes() {
    let (rig, sessions, mut connections, log) = played(patient(), Retries::default()).await;
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    break_off(&mut connections).await;
    // It is bound to the same replica still, and sent to no other.
    let (hand, again) = receive(&mut connections).await;
    assert_eq!(again, "get / http/1.1");
    assert!(log.lock().expect("no panic").is_empty());
    sessions.set(key("k"), sessions.bound(replica(1, 2)));
    drop(hand);
    let answer = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(text(answer).await, "b");
    assert_eq!(log.lock().expect("no panic").len(), 1);
    assert_eq!(rig.metric("retries_total"), 2);
    rig.idle().await;
}

#[tokio::test]
async fn a_session_whose_replica_broke_off_and_that_does_not_move_is_told_when_to_ask_again() {
    let (rig, sessions, mut connections, log) = played(impatient(), Retries::default()).await;
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    let (hand, _) = receive(&mut connections).await;
    sessions.set(key("k"), Lookup::Wait);
    drop(hand);
    let answer = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert!(log.lock().expect("no panic").is_empty());
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_breaks_off_each_time_is_asked_no_more_often_than_may_be() {
    let once = Retries {
        max: 1,
        ..Retries::default()
    };
    let (rig, _, mut connections, log) = played(patient(), once).await;
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    break_off(&mut connections).await;
    break_off(&mut connections).await;
    let answer = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(answer.status(), 502);
    assert!(connections.try_recv().is_err());
    assert!(log.lock().expect("no panic").is_empty());
    rig.idle().await;
}

#[tokio::test]
async fn a_budget_that_is_spent_forbids_another_try_and_says_when_to_ask_again() {
    let few = Retries {
        max: 1,
        budget_percent: 1,
        ..Retries::default()
    };
    let (rig, _, mut connections, _log) = played(patient(), few).await;
    let mut statuses = Vec::new();
    while !statuses.contains(&503) {
        // Each of two workers has ten in reserve.
        assert!(statuses.len() < 25, "{statuses:?}");
        let mut waiting = tokio::spawn(ask(rig.address, request("k")));
        let answer = loop {
            tokio::select! {
                () = break_off(&mut connections) => {}
                answer = &mut waiting => break answer.expect("no panic"),
            }
        };
        statuses.push(answer.status().as_u16());
        if answer.status() == 503 {
            assert_eq!(answer.headers()["retry-after"], "1");
        }
    }
    assert!(statuses[0] == 502, "{statuses:?}");
    assert_eq!(rig.metric("retries_over_budget_total"), 1);
    rig.idle().await;
}

/// Names replica 1 at the first look, and replica 2 at each later one: the binding moves while the
/// proxy connects.
struct MovesWhileConnecting(AtomicU64);

impl Sessions for MovesWhileConnecting {
    fn lookup(&self, _: ServiceId, _: SessionKey) -> Lookup {
        let number = if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            1
        } else {
            2
        };
        Lookup::Bound(BoundReplica {
            replica: replica(1, number),
            epoch: LogIndex(u64::from(number)),
        })
    }

    fn bind<'a>(&'a self, _: ServiceId, _: SessionKey) -> BindFuture<'a> {
        unreachable!("it is bound")
    }

    fn changed(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

#[tokio::test]
async fn a_decision_from_before_a_wait_is_not_acted_on() {
    let log = log();
    let addresses = [recorder("a", &log).await, recorder("b", &log).await];
    let svc = with_affinity(service(1, "svc", &addresses));
    let sessions = Arc::new(MovesWhileConnecting(AtomicU64::new(0)));
    let rig = Rig::with(patient(), [svc], sessions);
    assert_eq!(text(ask(rig.address, request("k")).await).await, "b");
    assert_eq!(log.lock().expect("no panic").len(), 1);
    rig.idle().await;
}

#[tokio::test]
async fn what_else_changes_makes_no_storm_of_a_waiting_request() {
    let svc = with_affinity(service(1, "svc", &[nowhere()]));
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("dead"), sessions.bound(replica(1, 1)));
    let rig = Rig::with(impatient(), [svc], sessions.clone());
    let waiting = ["dead", "unbound"].map(|key| tokio::spawn(ask(rig.address, request(key))));
    while !waiting.iter().all(tokio::task::JoinHandle::is_finished) {
        sessions.set(key("another"), Lookup::Wait);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for answer in waiting {
        assert_eq!(answer.await.expect("no panic").status(), 503);
    }
    // 300 ms of patience, and once in 100 ms.
    assert!(rig.metric("connect_failures_total") <= 4);
    assert!(rig.metric("session_binds_total") <= 4);
}

#[tokio::test]
async fn waits_are_counted() {
    let log = log();
    let svc = with_affinity(service(1, "svc", &[recorder("a", &log).await]));
    let sessions = FakeSessions::new(&[replica(1, 1)], Duration::ZERO);
    sessions.set(key("moving"), Lookup::Wait);
    let rig = Rig::with(patient(), [svc], sessions.clone());
    ask(rig.address, request("new")).await;
    let waiting = tokio::spawn(ask(rig.address, request("moving")));
    until("a wait", || rig.metric("session_waits_total") == 1).await;
    sessions.set(key("moving"), sessions.bound(replica(1, 1)));
    let response = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(response.status(), 200);
    assert_eq!(rig.metric("session_binds_total"), 1);
}

/// Each change of any session is a reason to look at the binding again, and none to ask a replica that has just refused.
#[tokio::test]
async fn a_replica_that_refuses_requests_of_a_session_is_left_alone_for_a_moment() {
    const REFUSALS: u32 = 5;
    let mut refuses = Replica::start(1000).await;
    let mut svc = with_affinity(service(1, "svc", &[refuses.address]));
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let sessions = FakeSessions::new(&[], Duration::ZERO);
    sessions.set(key("k"), sessions.bound(replica(1, 1)));
    let rig = Rig::with(patient(), [svc], sessions.clone());
    let changes = async {
        loop {
            sessions.set(key("another"), Lookup::Wait);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waiting = tokio::spawn(ask(rig.address, request("k")));
    let calls = async {
        let (_, mut first) = refuses.call().await;
        let began = Instant::now();
        first.send_reset(h2::Reason::REFUSED_STREAM);
        for _ in 1..REFUSALS {
            let (_, mut respond) = refuses.call().await;
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        let (_, mut last) = refuses.call().await;
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(100) * REFUSALS, "{took:?}");
        let answered = last.send_response(http::Response::new(()), true);
        answered.expect("it is open");
    };
    tokio::select! {
        () = calls => {}
        () = changes => {}
    }
    let answer = soon("an answer", waiting).await.expect("no panic");
    assert_eq!(answer.status(), 200);
    rig.idle().await;
}
