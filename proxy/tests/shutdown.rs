//! A proxy that is told to stop fails no request that it could still serve.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use raftserve_proxy::{NoSessions, ProxyConfig};
use support::{
    Hand, LIMIT, Rig, by_hand, config, get, http2_client, service, soon, until, upstream,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

fn lingering(linger: Duration) -> ProxyConfig {
    ProxyConfig { linger, ..config() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_under_load() {
    let address = upstream(|_| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        http::Response::new(Full::new(Bytes::from_static(b"ok")))
    })
    .await;
    let services = [service(1, "svc", &[address])];
    let stops = Rig::with(
        lingering(Duration::from_secs(1)),
        services.clone(),
        Arc::new(NoSessions),
    );
    let stays = Rig::new(services);
    let (first, second) = (stops.address, stays.address);
    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..24)
        .map(|n| {
            let (done, served) = (Arc::clone(&done), Arc::clone(&served));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    // A new connection goes to the stopping peer for as long as it accepts.
                    let stream = match TcpStream::connect(first).await {
                        Ok(stream) => stream,
                        Err(_) => TcpStream::connect(second).await.expect("it stays"),
                    };
                    let mut client = Hand::new(stream);
                    for _ in 0..if n % 2 == 0 { 1 } else { 1_000 } {
                        let (head, body) = client.ask(GET).await;
                        assert_eq!(body, "ok", "{head:?}");
                        served.fetch_add(1, Ordering::Relaxed);
                        let close = head.iter().any(|line| line == "connection: close");
                        if close || done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    until("load", || served.load(Ordering::Relaxed) > 500).await;
    soon("the stop", stops.proxy.shutdown(LIMIT)).await;
    let at_stop = served.load(Ordering::Relaxed);
    until("load elsewhere", || {
        served.load(Ordering::Relaxed) > at_stop + 200
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for client in clients {
        soon("a client", client).await.expect("no request failed");
    }
}

#[tokio::test]
async fn a_proxy_that_serves_nothing_stops_at_once() {
    let rig = Rig::with(lingering(LIMIT * 2), [], Arc::new(NoSessions));
    soon("the stop", rig.proxy.shutdown(LIMIT * 2)).await;
}

/// A stream through a proxy that is then told to stop.
async fn running_stream(rig: &Rig, connections: &mut mpsc::Receiver<Hand>) -> (Hand, Hand) {
    let mut client = Hand::connect(rig.address).await;
    client.send(GET).await;
    let mut replica = support::accept(connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
        .await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "one");
    (client, replica)
}

#[tokio::test]
async fn running_streams_finish_within_the_grace() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let (mut client, mut replica) = running_stream(&rig, &mut connections).await;
    let address = rig.address;
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    soon("a closed port", closed).await;
    assert!(!stopped.is_finished());
    replica.send("two").await;
    assert_eq!(client.rest().await, "two");
    soon("the stop", stopped).await.expect("no panic");
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let (mut client, mut replica) = running_stream(&rig, &mut connections).await;
    soon("the stop", rig.proxy.shutdown(Duration::from_millis(100))).await;
    assert_eq!(client.rest().await, "");
    assert_eq!(replica.rest().await, "");
}

#[tokio::test]
async fn idle_connections_are_told_before_they_are_closed() {
    let (address, mut connections) = by_hand().await;
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(
        lingering(Duration::from_secs(1)),
        services,
        Arc::new(NoSessions),
    );
    let replica = tokio::spawn(async move {
        let mut replica = connections.recv().await.expect("it listens");
        while !replica.head().await.is_empty() {
            replica
                .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    });
    let mut told = Hand::connect(rig.address).await;
    let mut untold = Hand::connect(rig.address).await;
    let closes = |head: &[String]| head.iter().any(|line| line == "connection: close");
    assert!(!closes(&told.ask(GET).await.0));
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    // Within the linger it answers on, and soon says that it goes.
    while !closes(&told.ask(GET).await.0) {}
    assert_eq!(told.rest().await, "");
    assert_eq!(
        untold.rest().await,
        "",
        "one that never asks is closed at the end"
    );
    soon("the stop", stopped).await.expect("no panic");
    soon("the replica", replica).await.expect("no panic");
}

/// Waits until nobody listens there.
async fn closed(address: SocketAddr) {
    // Not told by a connect: one that meets the closing listener waits for a second.
    // A refused bind never waits, so it must let the others run by itself.
    let closed = async {
        while TcpListener::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("a closed port", closed).await;
}

#[tokio::test]
async fn ports_stay_open_while_clients_may_not_have_heard() {
    let linger = Duration::from_millis(300);
    let services = [service(1, "svc", &[support::nowhere()])];
    let rig = Rig::with(lingering(linger), services, Arc::new(NoSessions));
    let address = rig.address;
    let begun = Instant::now();
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    closed(address).await;
    assert!(begun.elapsed() >= linger, "{:?}", begun.elapsed());
    soon("the stop", stopped).await.expect("no panic");
}

#[tokio::test]
async fn a_stop_that_was_announced_lingers_from_then_on() {
    let address =
        upstream(|_| async { http::Response::new(Full::new(Bytes::from_static(b"ok"))) }).await;
    let linger = Duration::from_secs(2);
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(lingering(linger), services, Arc::new(NoSessions));
    let announced = Instant::now();
    rig.proxy.announcer().announce().await;
    let closes = |head: &[String]| head.iter().any(|line| line == "connection: close");
    // It serves for as long as nobody stops it, and says that it goes, to each connection anew.
    let mut told = 0;
    while told < 2 || announced.elapsed() < linger {
        let mut client = Hand::connect(rig.address).await;
        let (head, body) = client.ask(GET).await;
        assert_eq!(body, "ok", "{head:?}");
        told += u32::from(closes(&head));
    }
    // A second word changes nothing.
    rig.proxy.announcer().announce().await;
    let begun = Instant::now();
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    closed(rig.address).await;
    let lingered = begun.elapsed();
    assert!(lingered < linger, "lingered {lingered:?} more");
    soon("the stop", stopped).await.expect("no panic");
}

#[tokio::test]
async fn an_announcer_keeps_no_proxy_alive() {
    let rig = Rig::new([service(1, "svc", &[support::nowhere()])]);
    let (address, announcer) = (rig.address, rig.proxy.announcer());
    drop(rig);
    closed(address).await;
    announcer.announce().await;
}

#[tokio::test]
async fn a_connection_accepted_at_the_last_moment_gets_its_first_answer() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    let address = rig.address;
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    closed(address).await;
    client.send(GET).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    let head = client.head().await;
    assert!(head.contains(&"connection: close".to_owned()), "{head:?}");
    assert_eq!(client.rest().await, "ok");
    soon("the stop", stopped).await.expect("no panic");
}

/// Once it has begun to come it has its own time, and not the second that one gets who has said nothing.
#[tokio::test]
async fn a_first_request_that_is_under_way_when_the_ports_close_goes_on() {
    const LONGER: Duration = Duration::from_millis(1_500);
    let address =
        upstream(|_| async { http::Response::new(Full::new(Bytes::from_static(b"ok"))) }).await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    let (begins, ends) = GET.split_at(GET.len() / 2);
    client.send(begins).await;
    let address = rig.address;
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    closed(address).await;
    tokio::time::sleep(LONGER).await;
    let (head, body) = client.ask(ends).await;
    assert!(head.contains(&"connection: close".to_owned()), "{head:?}");
    assert_eq!(body, "ok");
    soon("the stop", stopped).await.expect("no panic");
}

/// Nobody had room for them before.
#[tokio::test]
async fn who_sits_in_the_queue_of_a_port_that_closes_is_answered() {
    let address =
        upstream(|_| async { http::Response::new(Full::new(Bytes::from_static(b"ok"))) }).await;
    let config = ProxyConfig {
        workers: std::num::NonZeroUsize::new(1),
        connections_max: 1,
        ..config()
    };
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(config, services, Arc::new(NoSessions));
    let mut first = Hand::connect(rig.address).await;
    assert_eq!(first.ask(GET).await.1, "ok");
    let mut queued = Vec::new();
    for _ in 0..5 {
        let mut client = Hand::connect(rig.address).await;
        client.send(GET).await;
        queued.push(client);
    }
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    for mut client in queued {
        assert_eq!(client.head().await[0], "http/1.1 200 ok");
    }
    soon("the stop", stopped).await.expect("no panic");
}

#[tokio::test]
async fn http_2_streams_finish_after_goaway() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let (mut sender, connection) = http2_client(&rig).await;
    let request = Request::get("http://svc/").body(Full::<Bytes>::default());
    let answer = tokio::spawn(sender.send_request(request.expect("a good request")));
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT));
    let address = rig.address;
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    soon("a closed port", closed).await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    let response = soon("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let body = soon("a body", response.into_body().collect())
        .await
        .expect("a body");
    assert_eq!(body.to_bytes(), "ok");
    soon("the stop", stopped).await.expect("no panic");
    let ended = soon("the connection's end", connection).await;
    ended.expect("no panic").expect("GOAWAY is a proper end");
    drop(sender);
}

#[tokio::test]
async fn a_dropped_proxy_lets_go_of_its_port() {
    let rig = Rig::new([]);
    let address = rig.address;
    assert_eq!(get(address, "h", "/").await.0, 404);
    drop(rig);
    soon("a closed port", async {
        while TcpStream::connect(address).await.is_ok() {}
    })
    .await;
}
