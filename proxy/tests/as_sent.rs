//! What SkyServe does to requests on their way, which must not happen here.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use raftserve_model::spec::LoadBalancingPolicy;
use support::{Hand, Rig, by_hand, log, recorder, service, soon, upstream};

/// SkyServe's pool keeps cookies: what one user was given went out with the next one's request.
#[tokio::test]
async fn a_cookie_that_was_set_for_one_client_is_sent_by_no_other() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let replica = tokio::spawn(async move {
        let mut heads = Vec::new();
        let mut replica = connections.recv().await.expect("it listens");
        for _ in 0..2 {
            heads.push(replica.head().await);
            let head = "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2; Expires=Thu, 01 Jan 2099 00:00:00 GMT\r\n\
                        content-length: 0\r\n\r\n";
            replica.send(head).await;
        }
        heads
    });
    let mut client = Hand::connect(rig.address).await;
    let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    for _ in 0..2 {
        let (head, _) = client.ask(get).await;
        let cookies = head.iter().filter(|line| line.starts_with("set-cookie: "));
        assert_eq!(cookies.count(), 2, "each on its own line: {head:?}");
    }
    for head in soon("the replica", replica).await.expect("no panic") {
        assert!(
            !head.iter().any(|line| line.starts_with("cookie")),
            "{head:?}"
        );
    }
}

/// SkyServe answers PATCH, HEAD and OPTIONS with 405, `/docs` by itself, and decodes `%2F`.
#[tokio::test]
async fn every_method_and_path_reaches_the_replica_as_it_is() {
    let log = log();
    let rig = Rig::new([service(1, "svc", &[recorder("a", &log).await])]);
    for method in [
        "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "QUERY",
    ] {
        for target in [
            "/docs",
            "/openapi.json",
            "/a%2Fb//c/../d?x=%2f&y=a+b",
            "/redoc",
        ] {
            let request =
                format!("{method} {target} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
            let mut client = Hand::connect(rig.address).await;
            client.send(&request).await;
            assert_eq!(
                client.head().await[0],
                "http/1.1 200 ok",
                "{method} {target}"
            );
            let seen = log.lock().expect("no panic").pop().expect("it came");
            assert_eq!(
                (seen.method.as_str(), seen.target.as_str()),
                (method, target)
            );
        }
    }
}

/// SkyServe holds each body in memory, and sends both lengths with a chunked one.
#[tokio::test]
async fn a_chunked_body_goes_on_with_one_length_only() {
    let log = log();
    let rig = Rig::new([service(1, "svc", &[recorder("a", &log).await])]);
    let request =
        "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    Hand::connect(rig.address).await.ask(request).await;
    let seen = log.lock().expect("no panic").pop().expect("it came");
    assert_eq!(seen.body, "abc");
    assert!(seen.headers.contains_key("transfer-encoding"));
    assert!(!seen.headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_busy_replica_gets_less_while_others_are_free() {
    let (busy, _connections) = by_hand().await;
    let free = upstream(|_| async { Response::new(Full::new(Bytes::from_static(b"ok"))) }).await;
    let mut svc = service(1, "svc", &[busy, free]);
    svc.policy = LoadBalancingPolicy::LeastLoad;
    let rig = Rig::new([svc]);
    let mut stuck = Vec::new();
    // Another request may be in flight at the free one.
    let is_stuck = || {
        let loads = rig.proxy.loads();
        loads.iter().any(|(at, _)| *at == support::replica(1, 1))
    };
    while !is_stuck() {
        let mut client = Hand::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        stuck.push(client);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        assert_eq!(support::get(rig.address, "h", "/").await.0, 200);
    }
}
