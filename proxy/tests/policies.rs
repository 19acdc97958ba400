//! Which replica the policy of a service gives a request to.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use raftserve_model::spec::{HashKey, LoadBalancingPolicy};
use raftserve_proxy::policy::LOAD_FREE;
use raftserve_proxy::{NoSessions, ProxyConfig, ServiceRoute};
use support::{
    Hand, Rig, accept, ask, by_hand, config, get, log, nowhere, recorder, service, soon, table,
    text, until, upstream,
};
use tokio::net::TcpSocket;
use tokio::sync::watch;

const HASHES: [LoadBalancingPolicy; 2] =
    [LoadBalancingPolicy::RingHash, LoadBalancingPolicy::Maglev];

fn one_worker() -> ProxyConfig {
    ProxyConfig {
        workers: NonZeroUsize::new(1),
        ..config()
    }
}

/// Replicas that answer with their labels: `1`, `2` and so on.
async fn labelled(count: usize) -> Vec<SocketAddr> {
    let log = log();
    join_all((1..=count).map(|label| {
        let log = Arc::clone(&log);
        async move { recorder(&label.to_string(), &log).await }
    }))
    .await
}

fn request(name: &str, value: &str) -> Request<Full<Bytes>> {
    let request = Request::get("/").header("host", "h").header(name, value);
    request.body(Full::default()).expect("a good request")
}

async fn label(address: SocketAddr, request: Request<Full<Bytes>>) -> String {
    text(ask(address, request).await).await
}

fn hashing(policy: LoadBalancingPolicy, on: HashKey, addresses: &[SocketAddr]) -> ServiceRoute {
    let mut svc = service(1, "svc", addresses);
    svc.policy = policy;
    svc.traffic.hash_on = Some(on);
    svc
}

#[tokio::test]
async fn equal_keys_meet_equal_replicas_on_all_peers_and_few_move_when_one_leaves() {
    const KEYS: usize = 60;
    let addresses = labelled(5).await;
    for policy in HASHES {
        let svc = hashing(policy, HashKey::Header("x-user".to_owned()), &addresses);
        let mut turned = svc.clone();
        turned.endpoints.reverse();
        let peers = [Rig::new([svc.clone()]), Rig::new([turned])];
        let mut met = HashMap::new();
        for n in 0..KEYS {
            let user = format!("user-{n}");
            for peer in [&peers[0], &peers[1], &peers[0]] {
                let now = label(peer.address, request("x-user", &user)).await;
                let before = met.entry(user.clone()).or_insert(now.clone());
                assert_eq!(*before, now, "{policy:?} {user}");
            }
        }
        let used: BTreeMap<&String, usize> = met.values().fold(BTreeMap::new(), |mut used, it| {
            *used.entry(it).or_default() += 1;
            used
        });
        assert_eq!(used.len(), 5, "{policy:?} {used:?}");

        let mut without = svc;
        without.endpoints[1].ready = false;
        peers[0].routes.publish(table([without]));
        let mut moved = 0;
        for (user, before) in &met {
            let now = label(peers[0].address, request("x-user", user)).await;
            assert_ne!(now, "2");
            if *before != "2" && now != *before {
                moved += 1;
            }
        }
        let allowed = if policy == LoadBalancingPolicy::RingHash {
            0
        } else {
            6
        };
        assert!(moved <= allowed, "{policy:?}: {moved} of {KEYS}");
    }
}

#[tokio::test]
async fn the_key_is_taken_from_where_the_service_says() {
    let addresses = labelled(6).await;
    let named = |name: &str| name.to_owned();
    let cookie = |user: &str| request("cookie", &format!("a=1; user={user}"));
    let header = |user: &str| request("x-user", user);
    let query = |user: &str| {
        let mut request = request("x-other", "1");
        let target = format!("/p?a=1&user={user}");
        *request.uri_mut() = target.parse().expect("a target");
        request
    };
    type Make<'m> = &'m dyn Fn(&str) -> Request<Full<Bytes>>;
    let makers: [(HashKey, Make<'_>); 3] = [
        (HashKey::Cookie(named("user")), &cookie),
        (HashKey::Header(named("x-user")), &header),
        (HashKey::Query(named("user")), &query),
    ];
    let mut all: Vec<Vec<String>> = Vec::new();
    for (source, make) in makers {
        let rig = Rig::new([hashing(LoadBalancingPolicy::Maglev, source, &addresses)]);
        let mut labels = Vec::new();
        for n in 0..20 {
            labels.push(label(rig.address, make(&format!("user-{n}"))).await);
        }
        // Without a key the client's address decides.
        let mut keyless = Vec::new();
        for _ in 0..4 {
            keyless.push(label(rig.address, request("x-none", "1")).await);
        }
        keyless.dedup();
        assert_eq!(keyless.len(), 1);
        all.push(labels);
    }
    assert!(all.iter().all(|labels| *labels == all[0]), "{all:?}");
    all[0].sort();
    all[0].dedup();
    assert!(all[0].len() > 2, "{all:?}");
}

#[tokio::test]
async fn a_key_in_a_json_body_is_found_and_the_body_arrives_whole() {
    let log = log();
    let mut addresses = Vec::new();
    for label in 1..=6 {
        addresses.push(recorder(&label.to_string(), &log).await);
    }
    let on = HashKey::JsonField("/user/id".to_owned());
    let svc = hashing(LoadBalancingPolicy::RingHash, on, &addresses);
    let peers = [Rig::new([svc.clone()]), Rig::new([svc])];
    let post = |body: String| {
        let request = Request::post("/").header("host", "h");
        request.body(Full::from(body)).expect("a good request")
    };
    let long = "x".repeat(300_000);
    let mut met: HashMap<String, String> = HashMap::new();
    let mut sent = Vec::new();
    for n in 0..12 {
        let short = format!("{{\"a\": [1], \"user\": {{\"id\": \"u{n}\"}}}}");
        let first = format!("{{\"user\": {{\"id\": \"u{n}\"}}, \"prompt\": \"{long}\"}}");
        for (peer, body) in [(0, short), (1, first)] {
            let now = label(peers[peer].address, post(body.clone())).await;
            sent.push(body);
            let before = met.entry(format!("u{n}")).or_insert(now.clone());
            assert_eq!(*before, now);
        }
    }
    let mut used: Vec<_> = met.into_values().collect();
    used.sort();
    used.dedup();
    assert!(used.len() > 1);

    // Beyond the first 64 KiB, in what is no JSON, or absent: the client's address decides.
    let mut keyless = Vec::new();
    for n in 0..6 {
        let last = format!("{{\"prompt\": \"{long}\", \"user\": {{\"id\": \"u{n}\"}}}}");
        for body in [
            last,
            format!("user=u{n}"),
            format!("{{\"user\": {n}}}"),
            String::new(),
        ] {
            keyless.push(label(peers[n % 2].address, post(body.clone())).await);
            sent.push(body);
        }
    }
    keyless.dedup();
    assert_eq!(keyless.len(), 1);
    let seen = log.lock().expect("no panic");
    for (seen, sent) in seen.iter().zip(&sent) {
        assert!(
            seen.body == sent.as_bytes(),
            "a body of {} bytes",
            sent.len()
        );
    }
    assert_eq!(seen.len(), sent.len());
}

/// What is looked through is held for as long as the client likes.
#[tokio::test]
async fn a_body_is_sent_on_without_its_key_where_others_hold_too_much() {
    const LENGTH: usize = 100_000;
    const BEGINNING: usize = 20_000;
    let (address, mut connections) = by_hand().await;
    let on = HashKey::JsonField("/user".to_owned());
    let begin = async |kept_bodies_bytes, replica| {
        let svc = hashing(LoadBalancingPolicy::RingHash, on.clone(), &[replica]);
        let config = ProxyConfig {
            kept_bodies_bytes,
            ..config()
        };
        let rig = Rig::with(config, [svc], Arc::new(NoSessions));
        let mut client = Hand::connect(rig.address).await;
        let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {LENGTH}\r\n\r\n");
        client.send(head + &"x".repeat(BEGINNING)).await;
        (rig, client)
    };
    let (rig, client) = begin(64 << 10, nowhere()).await;
    until("it is kept", || rig.peer_metric("kept_bodies_bytes") > 0).await;
    drop(client);
    until("none is kept", || rig.peer_metric("kept_bodies_bytes") == 0).await;
    rig.idle().await;

    let (rig, mut client) = begin(0, address).await;
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    replica.exactly(BEGINNING).await;
    client.send("x".repeat(LENGTH - BEGINNING)).await;
    replica.exactly(LENGTH - BEGINNING).await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    rig.idle().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_while_its_key_is_looked_for_is_never_taken_for_whole() {
    let log = log();
    let on = HashKey::JsonField("/user".to_owned());
    let svc = hashing(
        LoadBalancingPolicy::Maglev,
        on,
        &[recorder("1", &log).await],
    );
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\nzz\r\n")
        .await;
    client.rest().await;
    rig.idle().await;
    let seen = log.lock().expect("no panic");
    // The recorder notes what it could not read to the end as empty.
    assert!(seen.iter().all(|seen| seen.body.is_empty()), "{seen:?}");
}

#[tokio::test]
async fn without_a_key_each_client_keeps_its_replica() {
    let addresses = labelled(4).await;
    let mut svc = service(1, "svc", &addresses);
    svc.policy = LoadBalancingPolicy::RingHash;
    let rig = Rig::new([svc]);
    let mut met = HashMap::new();
    for round in 0..2 {
        for client in 1..=12 {
            let from = IpAddr::from([127, 0, 0, client]);
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind((from, 0).into()).expect("a loopback address");
            let stream = soon("a connection", socket.connect(rig.address)).await;
            let io = TokioIo::new(stream.expect("it is accepted"));
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
                .await
                .expect("a connection");
            tokio::spawn(connection);
            let answer = sender.send_request(request("x", "1")).await;
            let now = text(answer.expect("an answer")).await;
            let before = met.entry(client).or_insert(now.clone());
            assert_eq!(*before, now, "round {round}");
        }
    }
    let mut used: Vec<_> = met.into_values().collect();
    used.sort();
    used.dedup();
    assert!(used.len() > 1);
}

/// Replicas that hold every request until the sender says so.
async fn holding(count: usize) -> (Vec<SocketAddr>, watch::Sender<bool>) {
    let released = watch::Sender::new(false);
    let mut addresses = Vec::new();
    for label in 1..=count {
        let released = released.subscribe();
        let answer = move |_| {
            let mut released = released.clone();
            async move {
                let _ = released.wait_for(|is| *is).await;
                Response::new(Full::from(label.to_string()))
            }
        };
        addresses.push(upstream(answer).await);
    }
    (addresses, released)
}

/// Sends one after the other, each once the one before is on its way, and says how many each replica got.
async fn held(rig: &Rig, count: u32, released: &watch::Sender<bool>) -> Vec<u32> {
    let mut answers = Vec::new();
    for n in 1..=count {
        let address = rig.address;
        answers.push(tokio::spawn(async move {
            label(address, request("x-user", "always-the-same")).await
        }));
        let in_flight = || rig.proxy.loads().iter().map(|(_, load)| load).sum::<u32>();
        until("one more in flight", || in_flight() == n).await;
    }
    let mut loads: Vec<u32> = rig.proxy.loads().iter().map(|(_, load)| *load).collect();
    loads.sort_unstable();
    released.send_replace(true);
    for answer in answers {
        soon("an answer", answer).await.expect("no panic");
    }
    rig.idle().await;
    loads
}

#[tokio::test]
async fn a_key_beyond_the_bound_of_its_replica_goes_on_along_the_ring() {
    let (addresses, released) = holding(4).await;
    let on = HashKey::Header("x-user".to_owned());
    let svc = hashing(LoadBalancingPolicy::RingHash, on.clone(), &addresses);
    let rig = Rig::new([svc]);
    assert_eq!(held(&rig, LOAD_FREE, &released).await, [LOAD_FREE]);

    released.send_replace(false);
    let loads = held(&rig, 40, &released).await;
    assert_eq!(loads.len(), 4);
    assert!(loads.iter().all(|load| *load <= 13), "{loads:?}");

    released.send_replace(false);
    let svc = hashing(LoadBalancingPolicy::Maglev, on, &addresses);
    rig.routes.publish(table([svc]));
    let loads = held(&rig, 20, &released).await;
    assert_eq!(loads, [20], "Maglev knows no loads");
}

#[tokio::test]
async fn an_instance_that_can_take_more_gets_more() {
    let (addresses, released) = holding(2).await;
    let mut svc = service(1, "svc", &addresses);
    svc.policy = LoadBalancingPolicy::InstanceAwareLeastLoad;
    svc.endpoints[0].weight = 4_000;
    let rig = Rig::new([svc.clone()]);
    assert_eq!(held(&rig, 20, &released).await, [4, 16]);

    released.send_replace(false);
    svc.policy = LoadBalancingPolicy::LeastLoad;
    rig.routes.publish(table([svc]));
    assert_eq!(held(&rig, 20, &released).await, [10, 10]);
}

#[tokio::test]
async fn round_robin_takes_turns_by_weight() {
    let mut svc = service(1, "svc", &labelled(3).await);
    svc.endpoints[0].weight = 3_000;
    svc.endpoints[1].weight = 2_000;
    let rig = Rig::with(one_worker(), [svc], Arc::new(NoSessions));
    let mut turns = String::new();
    for _ in 0..12 {
        turns += &get(rig.address, "h", "/").await.1;
    }
    assert_eq!(turns, "121321121321", "{turns}");
}

#[tokio::test]
async fn under_p2c_a_slow_replica_is_left_after_one_answer() {
    let mut addresses = labelled(3).await;
    let slow = upstream(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Response::new(Full::from("slow"))
    });
    addresses.push(slow.await);
    let mut svc = service(1, "svc", &addresses);
    svc.policy = LoadBalancingPolicy::P2c;
    let rig = Rig::with(one_worker(), [svc], Arc::new(NoSessions));
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..80 {
        *counts
            .entry(get(rig.address, "h", "/").await.1)
            .or_default() += 1;
    }
    assert!(
        counts.get("slow").is_none_or(|slow| *slow <= 2),
        "{counts:?}"
    );
    assert!(
        ["1", "2", "3"].iter().all(|it| counts[*it] >= 5),
        "{counts:?}"
    );
}

#[tokio::test]
async fn a_policy_changes_live_and_no_request_fails() {
    let addresses = labelled(4).await;
    let rig = Rig::new([service(1, "svc", &addresses)]);
    let stop = watch::Sender::new(false);
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (stop, address) = (stop.subscribe(), rig.address);
            tokio::spawn(async move {
                let mut sent = 0;
                while !*stop.borrow() {
                    let request = request("x-user", &format!("{client}-{sent}"));
                    assert_eq!(ask(address, request).await.status(), 200);
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    for policy in LoadBalancingPolicy::ALL.iter().cycle().take(24) {
        let mut svc = hashing(*policy, HashKey::Header("x-user".to_owned()), &addresses);
        svc.endpoints[0].ready = policy.hashes();
        rig.routes.publish(table([svc]));
        for _ in 0..5 {
            assert_eq!(get(rig.address, "h", "/").await.0, 200);
        }
    }
    stop.send_replace(true);
    for client in clients {
        assert!(soon("the end", client).await.expect("no failure") > 0);
    }
}
