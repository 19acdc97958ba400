//! While a service has no ready replica, its requests wait: in bounds, and not all for the first replica.

mod support;

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use raftserve_model::ServiceId;
use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_proxy::{NoSessions, ProxyConfig, ServiceRoute};
use support::{
    Hand, LIMIT, Rig, by_hand, get, http2_client, log, nowhere, recorder, service, soon, table,
    until, upstream,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

/// A service with these bounds whose replicas are not ready.
fn asleep(addresses: &[std::net::SocketAddr], requests: u32, wait: Duration) -> ServiceRoute {
    let mut svc = service(1, "svc", addresses);
    svc.endpoints
        .iter_mut()
        .for_each(|endpoint| endpoint.ready = false);
    (svc.traffic.queue.requests, svc.traffic.queue.wait) = (requests, wait);
    svc
}

async fn waiting(rig: &Rig, requests: u64) {
    until("so many waiting", || rig.metric("queue_length") == requests).await;
}

#[tokio::test]
async fn requests_wait_for_the_first_ready_replica() {
    let log = log();
    let mut svc = asleep(&[recorder("a", &log).await], 100, LIMIT);
    let rig = Rig::new([svc.clone()]);
    let queues = rig.proxy.queues();
    let mut begun = queues.begun();
    begun.mark_unchanged();
    let asks: Vec<_> = (0..50)
        .map(|_| {
            let address = rig.address;
            tokio::spawn(async move { get(address, "h", "/").await })
        })
        .collect();
    waiting(&rig, 50).await;
    assert_eq!(queues.lengths(), [(ServiceId(1), 50)]);
    soon("a call to wake up", begun.changed())
        .await
        .expect("it runs");
    assert!(
        !begun.has_changed().expect("it runs"),
        "one call, not one for each"
    );
    assert!(log.lock().expect("no panic").is_empty());
    svc.endpoints[0].ready = true;
    rig.routes.publish(table([svc]));
    for ask in asks {
        assert_eq!(soon("an answer", ask).await.expect("no panic").0, 200);
    }
    waiting(&rig, 0).await;
    assert_eq!(rig.metric("queued_total"), 50);
    assert_eq!(queues.lengths(), []);
}

#[tokio::test]
async fn beyond_the_bounds_requests_are_refused() {
    let svc = asleep(&[nowhere()], 3, Duration::from_millis(500));
    let rig = Rig::new([svc]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = Hand::connect(rig.address).await;
        client.send(GET).await;
        held.push(client);
    }
    waiting(&rig, 3).await;
    let (head, body) = Hand::connect(rig.address).await.ask(GET).await;
    assert_eq!(head[0], "http/1.1 429 too many requests");
    assert!(head.contains(&"retry-after: 1".to_owned()), "{head:?}");
    assert!(body.contains("queue_full"), "{body}");
    for mut client in held {
        let head = client.head().await;
        assert_eq!(head[0], "http/1.1 503 service unavailable");
        assert!(head.contains(&"retry-after: 1".to_owned()), "{head:?}");
    }
    waiting(&rig, 0).await;
    assert_eq!(rig.metric("queue_refused_total"), 1);
    assert_eq!(rig.metric("queue_expired_total"), 3);
}

/// Over HTTP/2 a part of each comes before anybody reads it.
#[tokio::test]
async fn requests_with_large_bodies_are_refused_before_there_are_too_many_bytes() {
    const MIB: usize = 1 << 20;
    // Each counts with a window of 256 KiB. One less than 64 MiB have room for: their heads count too.
    const PLACES: u64 = 255;
    const ASKS: u64 = 262;
    let rig = Rig::new([asleep(&[nowhere()], 1000, LIMIT * 2)]);
    let (mut sender, _connection) = http2_client(&rig).await;
    let body = Bytes::from(vec![0; MIB]);
    let mut asks = Vec::new();
    for _ in 0..ASKS {
        let request = Request::post("http://h/").body(Full::new(body.clone()));
        asks.push(tokio::spawn(
            sender.send_request(request.expect("a good request")),
        ));
    }
    until("those that are refused", || {
        rig.metric("queue_refused_total") == ASKS - PLACES
    })
    .await;
    assert_eq!(rig.metric("queue_length"), PLACES);
    for ask in asks {
        ask.abort();
    }
    waiting(&rig, 0).await;
}

/// A request over HTTP/2 whose body is of this size, and does not say so.
async fn post_untold(rig: &Rig, bytes: usize) -> tokio::task::JoinHandle<()> {
    let data = Frame::data(Bytes::from(vec![0; bytes]));
    let data = stream::iter([Ok::<_, Infallible>(data)]);
    let (mut sender, _) = http2_client(rig).await;
    let request = Request::post("http://h/").body(StreamBody::new(data));
    let answer = sender.send_request(request.expect("a good request"));
    tokio::spawn(async move {
        let _ = answer.await;
        drop(sender);
    })
}

#[tokio::test]
async fn large_bodies_that_tell_no_length_are_refused_as_they_come() {
    const MIB: usize = 1 << 20;
    // Each counts with what was taken of it, and with a window that may follow.
    const PLACES: u64 = 205;
    const ASKS: u64 = 214;
    let rig = Rig::new([asleep(&[nowhere()], 1000, LIMIT * 2)]);
    let mut asks = Vec::new();
    for _ in 0..ASKS {
        asks.push(post_untold(&rig, MIB).await);
    }
    until("those that are refused", || {
        rig.metric("queue_refused_total") >= ASKS - PLACES
            && rig.metric("queue_length") + rig.metric("queue_refused_total") == ASKS
    })
    .await;
    assert!(
        rig.metric("queue_length") >= PLACES - 2,
        "no more than need be"
    );
    for ask in asks {
        ask.abort();
    }
    waiting(&rig, 0).await;
}

#[tokio::test]
async fn small_bodies_that_tell_no_length_count_with_what_they_are() {
    const ASKS: usize = 200;
    let log = log();
    let mut svc = asleep(&[recorder("a", &log).await], 1000, LIMIT * 2);
    let rig = Rig::new([svc.clone()]);
    let mut asks = Vec::new();
    for _ in 0..ASKS {
        asks.push(post_untold(&rig, 100).await);
    }
    waiting(&rig, ASKS as u64).await;
    svc.endpoints[0].ready = true;
    rig.routes.publish(table([svc]));
    for ask in asks {
        soon("an answer", ask).await.expect("no panic");
    }
    let log = log.lock().expect("no panic");
    assert_eq!(log.len(), ASKS);
    assert!(log.iter().all(|seen| seen.body.len() == 100));
}

/// In the order in which they came, as far as one worker has them all.
#[tokio::test]
async fn the_first_to_wait_is_the_first_to_be_served() {
    const ASKS: usize = 40;
    let (address, mut connections) = by_hand().await;
    let mut svc = asleep(&[address], 100, LIMIT);
    let config = ProxyConfig {
        workers: NonZeroUsize::new(1),
        ..support::config()
    };
    let rig = Rig::with(config, [svc.clone()], Arc::new(NoSessions));
    let mut clients = Vec::new();
    for n in 0..ASKS {
        let mut client = Hand::connect(rig.address).await;
        client
            .send(format!("GET /{n} HTTP/1.1\r\nhost: h\r\n\r\n"))
            .await;
        waiting(&rig, n as u64 + 1).await;
        clients.push(client);
    }
    svc.endpoints[0].ready = true;
    rig.routes.publish(table([svc]));
    for (n, client) in clients.iter_mut().enumerate() {
        let mut replica = support::accept(&mut connections).await;
        assert_eq!(replica.head().await[0], format!("get /{n} http/1.1"));
        let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        replica.send(ok).await;
        assert_eq!(client.head().await[0], "http/1.1 200 ok");
    }
}

#[tokio::test]
async fn a_client_that_leaves_makes_room() {
    let rig = Rig::new([asleep(&[nowhere()], 1, LIMIT)]);
    for _ in 0..5 {
        let mut client = Hand::connect(rig.address).await;
        client.send(GET).await;
        waiting(&rig, 1).await;
        drop(client);
        waiting(&rig, 0).await;
    }
    assert_eq!(rig.metric("queue_refused_total"), 0);
    assert_eq!(rig.metric("requests_in_flight"), 0);
}

#[tokio::test]
async fn requests_of_a_service_that_goes_are_answered_at_once() {
    let rig = Rig::new([asleep(&[nowhere()], 10, LIMIT * 2)]);
    let mut client = Hand::connect(rig.address).await;
    client.send(GET).await;
    waiting(&rig, 1).await;
    rig.routes.publish(table([]));
    assert_eq!(client.head().await[0], "http/1.1 503 service unavailable");
}

#[tokio::test]
async fn the_first_replica_of_several_does_not_get_the_whole_line() {
    let counts: [Arc<std::sync::atomic::AtomicU64>; 2] = Default::default();
    let mut addresses = Vec::new();
    for count in &counts {
        let count = Arc::clone(count);
        addresses.push(
            upstream(move |_| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                async {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    Response::new(Full::new(Bytes::new()))
                }
            })
            .await,
        );
    }
    let mut svc = asleep(&addresses, 1000, LIMIT);
    svc.policy = LoadBalancingPolicy::LeastLoad;
    let rig = Rig::new([svc.clone()]);
    let asks: Vec<_> = (0..400)
        .map(|_| {
            let address = rig.address;
            tokio::spawn(async move { get(address, "h", "/").await.0 })
        })
        .collect();
    waiting(&rig, 400).await;
    svc.endpoints[0].ready = true;
    rig.routes.publish(table([svc.clone()]));
    until("the first request", || {
        counts[0].load(std::sync::atomic::Ordering::Relaxed) > 0
    })
    .await;
    svc.endpoints[1].ready = true;
    rig.routes.publish(table([svc]));
    for ask in asks {
        assert_eq!(soon("an answer", ask).await.expect("no panic"), 200);
    }
    let counts = counts.map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(counts[0] + counts[1], 400);
    assert!(counts[1] >= 100, "{counts:?}");
}
