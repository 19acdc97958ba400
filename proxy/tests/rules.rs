//! What the route rules of a service make of a request.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use raftserve_model::ServiceVersion;
use raftserve_model::spec::{HashKey, LoadBalancingPolicy, Retries, RouteRule, Timeouts};
use raftserve_proxy::{NoSessions, ProxyConfig, ServiceRoute};
use support::{
    Hand, LIMIT, Rig, accept, ask, by_hand, config, get, log, nowhere, recorder, service, soon,
    table, text, upstream,
};
use tokio::io::AsyncWriteExt;

/// A service whose replicas, one at each address, are of these versions.
fn versions(replicas: &[(SocketAddr, u32)], rules: Vec<RouteRule>) -> ServiceRoute {
    let addresses: Vec<_> = replicas.iter().map(|(address, _)| *address).collect();
    let mut svc = service(1, "svc", &addresses);
    for (endpoint, (_, version)) in svc.endpoints.iter_mut().zip(replicas) {
        endpoint.version = ServiceVersion(*version);
    }
    svc.traffic.routes = rules;
    svc
}

fn shared(weights: &[(u64, u32)]) -> RouteRule {
    RouteRule {
        weights: weights.iter().copied().collect(),
        ..RouteRule::default()
    }
}

fn one_worker() -> ProxyConfig {
    ProxyConfig {
        workers: NonZeroUsize::new(1),
        ..config()
    }
}

async fn counts(address: SocketAddr, requests: u32) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let (status, label) = get(address, "h", "/").await;
        assert_eq!(status, 200);
        *counts.entry(label).or_default() += 1;
    }
    counts
}

fn expected(counts: &[(&str, u32)]) -> BTreeMap<String, u32> {
    let counts = counts
        .iter()
        .map(|(label, count)| ((*label).to_owned(), *count));
    counts.collect()
}

#[tokio::test]
async fn the_first_rule_that_matches_decides_and_rewrites_its_prefix_alone() {
    let log = log();
    let replicas = [
        (recorder("one", &log).await, 1),
        (recorder("two", &log).await, 2),
    ];
    let to_two = shared(&[(2, 1)]);
    let rules = vec![
        RouteRule {
            hosts: vec!["*.beta.example".to_owned()],
            ..to_two.clone()
        },
        RouteRule {
            path_prefix: Some("/v2".to_owned()),
            rewrite_prefix: Some("/api/".to_owned()),
            ..to_two.clone()
        },
        RouteRule {
            methods: vec!["DELETE".to_owned()],
            ..to_two.clone()
        },
        RouteRule {
            headers: BTreeMap::from([("x-beta".to_owned(), "yes".to_owned())]),
            ..to_two
        },
        shared(&[(1, 1)]),
    ];
    let rig = Rig::new([
        versions(&replicas, rules),
        service(2, "other", &[nowhere()]),
    ]);
    for (method, host, target, header, label, seen) in [
        ("GET", "svc", "/a", "no", "one", "/a"),
        ("GET", "svc", "/v2", "no", "two", "/api"),
        ("GET", "svc", "/v2?q=/v2", "no", "two", "/api?q=/v2"),
        (
            "GET",
            "svc",
            "/v2/a%2Fb//c?d=%20",
            "no",
            "two",
            "/api/a%2Fb//c?d=%20",
        ),
        ("GET", "svc", "/v2x", "no", "one", "/v2x"),
        ("GET", "svc", "/v2%2Fx", "no", "one", "/v2%2Fx"),
        ("GET", "127.0.0.1", "/svc/v2/x", "no", "two", "/api/x"),
        ("GET", "127.0.0.1", "/svc/x", "no", "one", "/x"),
        ("DELETE", "svc", "/a", "no", "two", "/a"),
        ("GET", "svc", "/a", "yes", "two", "/a"),
        ("GET", "svc", "/a", "Yes", "one", "/a"),
    ] {
        let request = Request::builder().method(method).uri(target);
        let request = request.header("host", host).header("x-beta", header);
        let request = request.body(Full::default()).expect("a good request");
        let response = ask(rig.address, request).await;
        assert_eq!(text(response).await, label, "{method} {host} {target}");
        let seen_by = log.lock().expect("no panic").pop().expect("seen");
        assert_eq!(seen_by.target, seen, "{method} {host} {target}");
    }
    let own = versions(
        &replicas,
        vec![RouteRule {
            hosts: vec!["*.beta.example".to_owned()],
            ..shared(&[(2, 1)])
        }],
    );
    rig.routes.publish(table([own]));
    for _ in 0..4 {
        assert_eq!(get(rig.address, "X.beta.example:80", "/").await.1, "two");
    }
}

#[tokio::test]
async fn versions_get_exactly_their_shares_and_the_others_nothing() {
    let log = log();
    let replicas = [
        (recorder("a1", &log).await, 1),
        (recorder("b1", &log).await, 1),
        (recorder("a2", &log).await, 2),
        (recorder("a3", &log).await, 3),
    ];
    for policy in [
        LoadBalancingPolicy::RoundRobin,
        LoadBalancingPolicy::LeastLoad,
        LoadBalancingPolicy::P2c,
    ] {
        let mut svc = versions(&replicas, vec![shared(&[(1, 90), (2, 10)])]);
        svc.policy = policy;
        let rig = Rig::with(one_worker(), [svc.clone()], Arc::new(NoSessions));
        let counted = counts(rig.address, 100).await;
        assert_eq!(counted["a2"], 10, "{policy:?} {counted:?}");
        assert!(!counted.contains_key("a3"));

        // All of them are new, then all of one version.
        svc.traffic.slow_start = Duration::from_secs(100_000);
        let fresh = Rig::with(one_worker(), [svc.clone()], Arc::new(NoSessions));
        let counted = counts(fresh.address, 100).await;
        assert_eq!(counted["a2"], 10, "{policy:?} {counted:?}");
        svc.traffic.slow_start = Duration::ZERO;
        svc.endpoints[2].ready = false;
        fresh.routes.publish(table([svc.clone()]));
        counts(fresh.address, 1).await;
        svc.traffic.slow_start = Duration::from_secs(100_000);
        svc.endpoints[2].ready = true;
        fresh.routes.publish(table([svc.clone()]));
        let counted = counts(fresh.address, 100).await;
        assert_eq!(counted["a2"], 10, "{policy:?} {counted:?}");
        svc.traffic.slow_start = Duration::ZERO;

        // More and more, live.
        svc.traffic.routes = vec![shared(&[(1, 1), (2, 1)])];
        rig.routes.publish(table([svc.clone()]));
        assert_eq!(counts(rig.address, 20).await["a2"], 10);
        svc.traffic.routes = vec![shared(&[(1, 0), (2, 5)])];
        rig.routes.publish(table([svc.clone()]));
        assert_eq!(counts(rig.address, 10).await, expected(&[("a2", 10)]));

        // A version without ready replicas leaves its share to the others; if all do, anybody serves.
        svc.endpoints[2].ready = false;
        svc.traffic.routes = vec![shared(&[(2, 9), (3, 1)])];
        rig.routes.publish(table([svc.clone()]));
        assert_eq!(counts(rig.address, 10).await, expected(&[("a3", 10)]));
        svc.traffic.routes = vec![shared(&[(2, 1)])];
        rig.routes.publish(table([svc]));
        assert_eq!(counts(rig.address, 10).await.values().sum::<u32>(), 10);
    }
}

#[tokio::test]
async fn a_dead_version_is_served_by_another_that_is_named() {
    let log = log();
    let replicas = [
        (recorder("a1", &log).await, 1),
        (nowhere(), 2),
        (recorder("a3", &log).await, 3),
    ];
    let svc = versions(&replicas, vec![shared(&[(1, 1), (2, 9)])]);
    let rig = Rig::new([svc]);
    assert_eq!(counts(rig.address, 20).await, expected(&[("a1", 20)]));
}

#[tokio::test]
async fn with_a_hash_policy_a_key_keeps_its_version_and_its_replica() {
    let log = log();
    let replicas = [
        (recorder("a1", &log).await, 1),
        (recorder("b1", &log).await, 1),
        (recorder("a2", &log).await, 2),
        (recorder("b2", &log).await, 2),
    ];
    for policy in [LoadBalancingPolicy::RingHash, LoadBalancingPolicy::Maglev] {
        let mut svc = versions(&replicas, vec![shared(&[(1, 70), (2, 30)])]);
        svc.policy = policy;
        svc.traffic.hash_on = Some(HashKey::Query("user".to_owned()));
        let rig = Rig::new([svc]);
        let mut counted: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..100 {
            let target = format!("/?user={n}");
            let (_, first) = get(rig.address, "h", &target).await;
            assert_eq!(get(rig.address, "h", &target).await.1, first);
            *counted.entry(first).or_default() += 1;
        }
        assert_eq!(counted.len(), 4, "{policy:?} {counted:?}");
        let two = counted["a2"] + counted["b2"];
        assert!((12..50).contains(&two), "{policy:?} {counted:?}");
    }
}

fn timed(path_prefix: &str, timeouts: Timeouts) -> RouteRule {
    RouteRule {
        path_prefix: Some(path_prefix.to_owned()),
        timeouts: Some(timeouts),
        ..RouteRule::default()
    }
}

/// A request that has come to its replica, from its client.
async fn asked(
    rig: &Rig,
    path: &str,
    connections: &mut tokio::sync::mpsc::Receiver<Hand>,
) -> (Hand, Hand) {
    let mut client = Hand::connect(rig.address).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    client.send(request).await;
    let mut replica = accept(connections).await;
    let head = replica.head().await;
    assert!(head[0].starts_with(&format!("get {path} ")), "{head:?}");
    (client, replica)
}

#[tokio::test]
async fn the_times_of_a_rule_go_before_those_of_its_service() {
    const SHORT: Duration = Duration::from_millis(300);
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.ejection.consecutive_errors = 0;
    // Each far beyond what is waited for.
    let long = Timeouts {
        first_byte: Some(LIMIT * 2),
        idle: Some(LIMIT * 2),
        total: Some(LIMIT * 2),
        tunnel_idle: None,
    };
    svc.traffic.timeouts = long.clone();
    let mut first_byte = long.clone();
    first_byte.first_byte = Some(SHORT);
    let mut idle = long.clone();
    idle.idle = Some(SHORT);
    let mut total = long.clone();
    total.total = Some(SHORT);
    svc.traffic.routes = vec![
        timed("/first", first_byte.clone()),
        timed("/idle", idle),
        timed("/total", total),
    ];
    let rig = Rig::new([svc.clone()]);

    let (mut client, mut replica) = asked(&rig, "/first", &mut connections).await;
    assert_eq!(client.head().await[0], "http/1.1 504 gateway timeout");
    assert_eq!(replica.rest().await, "");

    let (mut client, mut replica) = asked(&rig, "/idle", &mut connections).await;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab";
    replica.send(answer).await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(client.rest().await, "ab");

    let (mut client, mut replica) = asked(&rig, "/total", &mut connections).await;
    let never_pauses = tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        replica.send(head).await;
        while replica.0.write_all(b"1\r\nx\r\n").await.is_ok() {}
    });
    client.head().await;
    client.rest().await;
    soon("the replica's end", never_pauses)
        .await
        .expect("no panic");

    // The other way round: what the service would have ended by now goes on.
    svc.traffic.timeouts = first_byte;
    svc.traffic.routes = vec![timed("/long", long)];
    rig.routes.publish(table([svc]));
    let (mut client, mut replica) = asked(&rig, "/long", &mut connections).await;
    let (mut other, _silent) = asked(&rig, "/", &mut connections).await;
    assert_eq!(other.head().await[0], "http/1.1 504 gateway timeout");
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    replica.send(answer).await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(client.exactly(2).await, "ok");
    rig.idle().await;
}

#[tokio::test]
async fn the_retries_of_a_rule_go_before_those_of_its_service() {
    let overloaded = upstream(async |_| {
        let mut answer = Response::new(Full::from("overloaded"));
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        answer
    });
    let replicas = [overloaded.await, recorder("good", &log()).await];
    let mut svc = service(1, "svc", &replicas);
    svc.traffic.ejection.consecutive_errors = 0;
    let again = Retries {
        statuses: vec![503],
        ..Retries::default()
    };
    let never = Retries {
        max: 0,
        ..again.clone()
    };
    for (service, own, at_the_rule) in [
        (again.clone(), never.clone(), [503, 200]),
        (never, again, [200, 200]),
    ] {
        svc.traffic.retries = service;
        svc.traffic.routes = vec![RouteRule {
            path_prefix: Some("/own".to_owned()),
            retries: Some(own),
            ..RouteRule::default()
        }];
        let rig = Rig::with(one_worker(), [svc.clone()], Arc::new(NoSessions));
        let mut statuses = Vec::new();
        for target in ["/own", "/own", "/", "/"] {
            statuses.push(get(rig.address, "h", target).await.0);
        }
        statuses[..2].sort_unstable_by(|one, two| two.cmp(one));
        assert_eq!(statuses[..2], at_the_rule, "{statuses:?}");
        let others = statuses[2..].iter().filter(|&&status| status == 503);
        let expected = usize::from(at_the_rule == [200, 200]);
        assert_eq!(others.count(), expected, "{statuses:?}");
    }
}
