//! A request is tried again where that is safe, within a budget, and never on the same replica.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_proxy::{NoSessions, ProxyConfig, ServiceRoute};
use support::{
    Hand, Rig, by_hand, config, get, log, recorder, service, soon, table, until, upstream,
};
use tokio::io::AsyncReadExt;

/// Longer than any of these tests: what is ejected stays so.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// How often a worker, of which each rig has two, sees a replica fail until it leaves it out.
const ERRORS: u64 = 5;
const WORKERS: u64 = 2;

/// A replica that takes a whole head, and the body that belongs to it, and closes the connection.
async fn breaks(calls: &Arc<AtomicU64>) -> SocketAddr {
    let (address, mut connections) = by_hand().await;
    let calls = Arc::clone(calls);
    tokio::spawn(async move {
        while let Some(mut replica) = connections.recv().await {
            let calls = Arc::clone(&calls);
            tokio::spawn(async move {
                let head = replica.head().await;
                let length = head
                    .iter()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length = length.map_or(0, |length| length.parse().expect("a number"));
                replica.exactly(length).await;
                calls.fetch_add(u64::from(!head.is_empty()), Ordering::Relaxed);
            });
        }
    });
    address
}

/// A replica that answers at once with this status.
async fn answers(status: u16, calls: &Arc<AtomicU64>) -> SocketAddr {
    let calls = Arc::clone(calls);
    upstream(move |_| {
        calls.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = status.try_into().expect("a status");
            response
        }
    })
    .await
}

fn unforgiving(mut svc: ServiceRoute) -> ServiceRoute {
    (svc.traffic.ejection.base, svc.traffic.ejection.max) = (FOR_EVER, FOR_EVER);
    svc
}

async fn status(address: SocketAddr, method: &str, body: &str) -> String {
    let length = body.len();
    let request =
        format!("{method} / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{body}");
    let (head, _) = Hand::connect(address).await.ask(&request).await;
    head[0].split(' ').nth(1).expect("a status").to_owned()
}

/// SkyServe's `least_load` sends most requests to a replica that fails fast, as it is never busy.
#[tokio::test]
async fn a_replica_that_fails_fast_attracts_no_traffic() {
    for status_of_failure in [None, Some(503)] {
        let calls = Arc::<AtomicU64>::default();
        let fails = match status_of_failure {
            None => breaks(&calls).await,
            Some(status) => answers(status, &calls).await,
        };
        let busy = upstream(|_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Response::new(Full::new(Bytes::from_static(b"ok")))
        })
        .await;
        let mut svc = unforgiving(service(1, "svc", &[fails, busy]));
        svc.policy = LoadBalancingPolicy::LeastLoad;
        let rig = Rig::new([svc]);
        let mut failed = 0;
        for _ in 0..15 {
            let asks = (0..8).map(|_| status(rig.address, "POST", "body"));
            for status in futures_util::future::join_all(asks).await {
                failed += u64::from(status != "200");
            }
        }
        // What was on its way when the last error came may fail beside it: eight at most.
        assert!(
            (1..=WORKERS * ERRORS + 8).contains(&failed),
            "{failed} of 120 failed"
        );
        assert_eq!(
            calls.load(Ordering::Relaxed),
            failed,
            "no POST was sent twice"
        );
        assert!(rig.metric("ejections_total") >= 1);
        rig.idle().await;
    }
}

#[tokio::test]
async fn an_idempotent_request_survives_a_replica_that_breaks_off() {
    let calls = Arc::<AtomicU64>::default();
    let log = log();
    let fails = breaks(&calls).await;
    let rig = Rig::new([service(1, "svc", &[fails, recorder("b", &log).await])]);
    for _ in 0..30 {
        assert_eq!(status(rig.address, "GET", "").await, "200");
        assert_eq!(status(rig.address, "PUT", "whole body").await, "200");
    }
    let log = log.lock().expect("no panic");
    assert_eq!(log.len(), 60);
    let puts = log.iter().filter(|seen| seen.method == "PUT");
    assert!(puts.into_iter().all(|seen| seen.body == "whole body"));
    let failed = calls.load(Ordering::Relaxed);
    assert!(failed >= 1, "the test met the replica that fails");
    assert_eq!(rig.metric("retries_total"), failed);
}

#[tokio::test]
async fn what_must_not_be_sent_again_is_not_whatever_else_is_set() {
    let calls = Arc::<AtomicU64>::default();
    let addresses = [breaks(&calls).await, breaks(&calls).await];
    let mut svc = service(1, "svc", &addresses);
    svc.traffic.ejection.consecutive_errors = 0;
    svc.traffic.retries.budget_percent = 100;
    svc.traffic.retries.after_sent = false;
    let plain = svc.clone();
    let mut by_status = svc.clone();
    by_status.traffic.retries.statuses = vec![503];
    let mut by_time = svc.clone();
    by_time.traffic.retries.per_try_timeout = Some(support::LIMIT);
    svc.traffic.retries.hedge_after = Some(support::LIMIT);
    let rig = Rig::new([]);
    let mut asked = 0;
    for settings in [plain, by_status, by_time, svc] {
        let retries = settings.traffic.retries.clone();
        rig.routes.publish(table([settings]));
        for method in ["GET", "PUT"] {
            assert_eq!(status(rig.address, method, "").await, "502", "{retries:?}");
            asked += 1;
            assert_eq!(calls.load(Ordering::Relaxed), asked, "{method} {retries:?}");
        }
    }
    assert_eq!(rig.metric("retries_total"), 0);
}

/// Statuses and patience are settings of their own.
#[tokio::test]
async fn what_is_safe_is_tried_again_for_a_status_or_a_silence_where_no_break_is_worth_it() {
    let calls = Arc::<AtomicU64>::default();
    let refuses = answers(503, &calls).await;
    let (silent, _connections) = by_hand().await;
    let good = recorder("good", &log()).await;
    let (mut by_status, mut by_time) = (
        service(1, "svc", &[refuses, good]),
        service(1, "svc", &[silent, good]),
    );
    by_status.traffic.retries.statuses = vec![503];
    by_time.traffic.retries.per_try_timeout = Some(Duration::from_millis(50));
    let rig = Rig::new([]);
    for mut svc in [by_status, by_time] {
        svc.traffic.ejection.consecutive_errors = 0;
        svc.traffic.retries.budget_percent = 100;
        svc.traffic.retries.after_sent = false;
        rig.routes.publish(table([svc]));
        let before = rig.metric("retries_total");
        for _ in 0..4 {
            assert_eq!(status(rig.address, "GET", "").await, "200");
        }
        assert!(rig.metric("retries_total") > before);
    }
    rig.idle().await;
}

#[tokio::test]
async fn a_body_too_long_to_keep_is_not_sent_again() {
    let calls = Arc::<AtomicU64>::default();
    let log = log();
    let fails = breaks(&calls).await;
    let rig = Rig::new([service(1, "svc", &[fails, recorder("b", &log).await])]);
    let body = "x".repeat(256 << 10);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(status(rig.address, "PUT", &body).await);
    }
    let failed = statuses.iter().filter(|&status| status == "502").count();
    assert_eq!(failed as u64, calls.load(Ordering::Relaxed));
    assert!(failed >= 1 && log.lock().expect("no panic").len() + failed == 4);
    assert_eq!(rig.metric("retries_total"), 0);
}

#[tokio::test]
async fn a_body_is_not_kept_where_others_keep_too_much_unless_it_is_small() {
    const SMALL: usize = 1 << 10;
    const LARGER: usize = 32 << 10;
    /// As much as one body that is larger may take.
    const ONE: u64 = 64 << 10;
    for (kept_bodies_bytes, bytes, again) in
        [(ONE, LARGER, true), (0, LARGER, false), (0, SMALL, true)]
    {
        let calls = Arc::<AtomicU64>::default();
        let services = [service(
            1,
            "svc",
            &[breaks(&calls).await, recorder("b", &log()).await],
        )];
        let config = ProxyConfig {
            kept_bodies_bytes,
            ..config()
        };
        let rig = Rig::with(config, services, Arc::new(NoSessions));
        let body = "x".repeat(bytes);
        let mut failed = 0;
        // One after the other: each gives back what it took.
        for _ in 0..8 {
            failed += u64::from(status(rig.address, "PUT", &body).await == "502");
        }
        let met = calls.load(Ordering::Relaxed);
        assert!(met > 0, "{bytes} bytes");
        assert_eq!(failed, if again { 0 } else { met }, "{bytes} bytes");
        rig.idle().await;
        assert_eq!(rig.peer_metric("kept_bodies_max_bytes"), kept_bodies_bytes);
        until("none is kept", || rig.peer_metric("kept_bodies_bytes") == 0).await;
    }
}

#[tokio::test]
async fn retries_stay_within_the_budget() {
    let calls = Arc::<AtomicU64>::default();
    let mut addresses = Vec::new();
    for _ in 0..4 {
        addresses.push(breaks(&calls).await);
    }
    let mut svc = service(1, "svc", &addresses);
    svc.traffic.ejection.consecutive_errors = 0;
    svc.traffic.retries.max = 3;
    let rig = Rig::new([svc]);
    for _ in 0..200 {
        assert_eq!(status(rig.address, "GET", "").await, "502");
    }
    // A fifth of two hundred, and ten in reserve for each worker.
    let (tries, retries) = (calls.load(Ordering::Relaxed), rig.metric("retries_total"));
    assert_eq!(tries, 200 + retries);
    assert!((40..=60).contains(&retries), "{retries} retries");
    assert!(rig.metric("retries_over_budget_total") >= 140);
}

#[tokio::test]
async fn named_statuses_are_tried_again_for_safe_requests_only() {
    let calls = Arc::<AtomicU64>::default();
    let log = log();
    let addresses = [answers(429, &calls).await, recorder("b", &log).await];
    let mut svc = service(1, "svc", &addresses);
    svc.traffic.retries.statuses = vec![429];
    // Each retry moves the turn on, so nearly every request needs one; and one worker may get most of them.
    svc.traffic.retries.budget_percent = 100;
    let rig = Rig::new([svc]);
    for _ in 0..20 {
        assert_eq!(status(rig.address, "GET", "").await, "200");
    }
    let before = calls.load(Ordering::Relaxed);
    assert!(before >= 1);
    let mut refused = 0;
    for _ in 0..20 {
        refused += u64::from(status(rig.address, "PUT", "x").await == "429");
    }
    assert!(refused >= 5, "an answer is passed on: {refused}");
    assert_eq!(calls.load(Ordering::Relaxed), before + refused);
    rig.idle().await;
}

#[tokio::test]
async fn with_no_other_replica_the_answer_is_passed_on() {
    let calls = Arc::<AtomicU64>::default();
    let mut svc = service(1, "svc", &[answers(503, &calls).await]);
    svc.traffic.retries.statuses = vec![503];
    let rig = Rig::new([svc]);
    for _ in 0..20 {
        assert_eq!(status(rig.address, "GET", "").await, "503");
    }
    assert_eq!(
        calls.load(Ordering::Relaxed),
        20,
        "a sole replica is never left out"
    );
}

/// The replica closed it as unused, just when the request was on its way.
#[tokio::test]
async fn a_request_lost_with_a_kept_connection_is_sent_to_the_only_replica_over_a_new_one() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let mut next = async || {
        let connection = soon("a connection", connections.recv());
        let mut replica = connection.await.expect("it listens");
        replica.head().await;
        replica
    };
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = next().await;
    replica.send(answer).await;
    client.head().await;
    for method in ["GET", "DELETE"] {
        let request = format!("{method} / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
        client.send(&request).await;
        replica.head().await;
        drop(replica);
        replica = next().await;
        replica.send(answer).await;
        assert_eq!(client.head().await[0], "http/1.1 200 ok", "{method}");
    }
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
        .await;
    replica.head().await;
    drop(replica);
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    // A new one that ends so is the replica's failure.
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    drop(next().await);
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    assert_eq!(rig.metric("retries_total"), 2);
}

/// Two replicas, the first of which takes requests and says nothing; its connections.
async fn silent_and_good() -> (ServiceRoute, tokio::sync::mpsc::Receiver<Hand>) {
    let (silent, connections) = by_hand().await;
    let svc = service(1, "svc", &[silent, recorder("b", &log()).await]);
    (svc, connections)
}

#[tokio::test]
async fn a_try_without_an_answer_is_given_up_for_another_one() {
    let (mut svc, mut silent) = silent_and_good().await;
    svc.traffic.retries.per_try_timeout = Some(Duration::from_millis(50));
    // Else a worker that happens to get most of these requests leaves it out, and maybe gets all that follow.
    svc.traffic.ejection.consecutive_errors = 0;
    let rig = Rig::new([svc.clone()]);
    for _ in 0..6 {
        assert_eq!(get(rig.address, "h", "/").await.0, 200);
    }
    let mut given_up = soon("a try", silent.recv()).await.expect("it listens");
    given_up.head().await;
    assert_eq!(given_up.rest().await, "", "the first try's connection ends");
    rig.idle().await;
    // What must not be sent again waits as long as any.
    svc.traffic.timeouts.first_byte = Some(Duration::from_millis(400));
    rig.routes.publish(table([svc]));
    let start = std::time::Instant::now();
    let statuses = [
        status(rig.address, "POST", "x").await,
        status(rig.address, "POST", "x").await,
        status(rig.address, "POST", "x").await,
        status(rig.address, "POST", "x").await,
    ];
    let silent = statuses.iter().filter(|&status| status == "504").count();
    assert!(silent >= 1, "{statuses:?}");
    assert!(start.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn each_of_several_tries_is_given_up_in_its_time() {
    let (one, mut at_one) = by_hand().await;
    let (two, mut at_two) = by_hand().await;
    let good = recorder("good", &log()).await;
    let mut svc = service(1, "svc", &[one, two, good]);
    svc.traffic.retries.max = 2;
    svc.traffic.retries.budget_percent = 100;
    svc.traffic.retries.per_try_timeout = Some(Duration::from_millis(50));
    svc.traffic.ejection.consecutive_errors = 0;
    let rig = Rig::new([svc]);
    // One after the other in turn: of each worker's three first, one meets both silent ones.
    let mut both = 0;
    for _ in 0..9 {
        assert_eq!(get(rig.address, "h", "/").await.0, 200);
        let met = [&mut at_one, &mut at_two].map(|tries| tries.try_recv().is_ok());
        both += usize::from(met == [true, true]);
    }
    assert!(both >= 1, "none has met both");
    assert!(rig.metric("retries_total") > 9 / 3);
    rig.idle().await;
}

#[tokio::test]
async fn a_try_is_not_given_up_while_its_client_is_sending() {
    let (one, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[one, one]);
    svc.traffic.retries.per_try_timeout = Some(Duration::from_millis(700));
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n")
        .await;
    let mut replica = soon("a try", connections.recv()).await.expect("it listens");
    replica.head().await;
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    for _ in 0..10 {
        pace.tick().await;
        client.send("x").await;
        replica.exactly(1).await;
    }
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(rig.metric("retries_total"), 0);
}

#[tokio::test]
async fn a_hedge_wins_and_the_first_try_is_let_go() {
    let (mut svc, mut silent) = silent_and_good().await;
    svc.traffic.retries.hedge_after = Some(Duration::from_millis(30));
    let rig = Rig::new([svc]);
    for _ in 0..6 {
        assert_eq!(get(rig.address, "h", "/").await.0, 200);
    }
    let hedges = rig.metric("hedges_total");
    assert!(hedges >= 1);
    for _ in 0..hedges {
        let mut loser = soon("a try", silent.recv()).await.expect("it listens");
        loser.head().await;
        assert_eq!(loser.rest().await, "");
    }
    rig.idle().await;
}

#[tokio::test]
async fn the_first_of_two_tries_may_win_after_all() {
    let (slow, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[slow, slow]);
    svc.traffic.retries.hedge_after = Some(Duration::from_millis(30));
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut first = soon("the first", connections.recv())
        .await
        .expect("it listens");
    let mut second = soon("the second", connections.recv())
        .await
        .expect("it listens");
    first.head().await;
    second.head().await;
    first
        .send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst")
        .await;
    client.head().await;
    assert_eq!(client.exactly(5).await, "first");
    assert_eq!(second.rest().await, "");
    rig.idle().await;
}

#[tokio::test]
async fn the_whole_time_of_a_request_bounds_it_at_each_stage() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.timeouts.total = Some(Duration::from_millis(300));
    let rig = Rig::new([svc]);
    let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    // Before the answer begins.
    let (head, body) = Hand::connect(rig.address).await.ask(get).await;
    assert_eq!(head[0], "http/1.1 504 gateway timeout");
    assert!(body.contains("request_timeout"), "{body}");
    soon("a request", connections.recv())
        .await
        .expect("it listens")
        .head()
        .await;
    // Within an answer that never ends and never pauses.
    let mut client = Hand::connect(rig.address).await;
    client.send(get).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let endless = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        replica.send(head).await;
        while replica.0.write_all(b"1\r\nx\r\n").await.is_ok() {}
    });
    client.head().await;
    client.rest().await;
    soon("the replica's end", endless).await.expect("no panic");
    rig.idle().await;
    until("no request running", || {
        rig.metric("requests_in_flight") == 0
    })
    .await;
}

/// What replicas were told of the time left, of each request that was seen since.
fn told(log: &std::sync::Mutex<Vec<support::Seen>>) -> Vec<Vec<String>> {
    let mut log = log.lock().expect("no panic");
    let seen = log.drain(..).map(|seen| {
        let values = seen.headers.get_all("x-envoy-expected-rq-timeout-ms");
        let values = values.iter().map(|value| value.to_str().expect("text"));
        values.map(str::to_owned).collect()
    });
    seen.collect()
}

#[tokio::test]
async fn a_replica_is_told_what_is_left_of_the_whole_time() {
    let log = log();
    let address = recorder("a", &log).await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let asks = ["", "x-envoy-expected-rq-timeout-ms: 5000\r\n"]
        .map(|field| format!("GET / HTTP/1.1\r\nhost: h\r\n{field}\r\n"));
    let mut client = Hand::connect(rig.address).await;
    for ask in &asks {
        client.ask(ask).await;
    }
    let none: Vec<String> = Vec::new();
    assert_eq!(told(&log), [none, vec!["5000".to_owned()]]);

    // Beside a replica that breaks off what it was sent, so that half of the requests are tried again.
    let (broken, mut connections) = by_hand().await;
    let pause = Duration::from_millis(20);
    tokio::spawn(async move {
        while let Some(mut replica) = connections.recv().await {
            replica.head().await;
            // Until so much of the time has passed; it never sends more.
            let _ = tokio::time::timeout(pause, replica.0.read_u8()).await;
        }
    });
    let mut svc = service(1, "svc", &[address, broken]);
    svc.traffic.ejection.consecutive_errors = 0;
    svc.traffic.retries.budget_percent = 100;
    svc.traffic.timeouts.total = Some(Duration::from_secs(30));
    rig.routes.publish(table([svc]));
    for (ask, most) in asks.iter().zip([30_000, 5_000]) {
        let mut least = u64::MAX;
        for _ in 0..4 {
            let (head, _) = client.ask(ask).await;
            assert_eq!(head[0], "http/1.1 200 ok");
            let told = told(&log).concat();
            let [told] = &told[..] else {
                panic!("{told:?}")
            };
            let told: u64 = told.parse().expect("a number");
            assert!(told > 0 && told <= most, "{told}");
            least = least.min(told);
        }
        // What the first try took is told with the second.
        assert!(least <= most - 20, "{least}");
    }
}

#[tokio::test]
async fn a_new_replica_comes_up_slowly() {
    let log = log();
    let mut addresses = Vec::new();
    for label in ["a", "b", "new"] {
        addresses.push(recorder(label, &log).await);
    }
    let mut svc = service(1, "svc", &addresses);
    svc.traffic.slow_start = Duration::from_millis(1);
    svc.endpoints[2].ready = false;
    let rig = Rig::new([svc.clone()]);
    while rig.metric("requests_total") < 50 {
        get(rig.address, "h", "/").await;
    }
    svc.traffic.slow_start = FOR_EVER;
    svc.endpoints[2].ready = true;
    for policy in [
        LoadBalancingPolicy::RoundRobin,
        LoadBalancingPolicy::LeastLoad,
    ] {
        svc.policy = policy;
        rig.routes.publish(table([svc.clone()]));
        log.lock().expect("no panic").clear();
        for _ in 0..300 {
            get(rig.address, "h", "/").await;
        }
        let seen = log.lock().expect("no panic");
        let new = seen.iter().filter(|seen| seen.replica == "new").count();
        assert!(new < 60, "{policy:?}: it got {new} of 300");
        if policy == LoadBalancingPolicy::RoundRobin {
            assert!(new > 0, "it gets some");
        }
    }
}

#[tokio::test]
async fn ejections_are_ignored_where_too_many_are_out() {
    for (panic_percent, ignored) in [(50, true), (100, false)] {
        let calls = [(); 4].map(|()| Arc::<AtomicU64>::default());
        let mut addresses = vec![answers(200, &calls[0]).await];
        for failing in &calls[1..] {
            addresses.push(answers(503, failing).await);
        }
        let mut svc = unforgiving(service(1, "svc", &addresses));
        svc.traffic.ejection.panic_percent = panic_percent;
        let rig = Rig::new([svc]);
        let ask = async || get(rig.address, "h", "/").await.0;
        // Each worker comes to know of each replica that it fails.
        while rig.metric("ejections_total") < 3 * WORKERS {
            ask().await;
        }
        rig.idle().await;
        let count = || calls.each_ref().map(|calls| calls.load(Ordering::Relaxed));
        let before = count();
        for _ in 0..40 {
            let status = ask().await;
            assert!(ignored || status == 200, "{status}");
        }
        let after = count();
        let more = [0, 1, 2, 3].map(|at| after[at] - before[at]);
        assert_eq!(more.iter().sum::<u64>(), 40, "{more:?}");
        match ignored {
            true => assert!(more.iter().all(|&more| more > 0), "{more:?}"),
            false => assert_eq!(more, [40, 0, 0, 0]),
        }
    }
}
