//! What goes on to the other side as it came, what ends at the proxy, and how protocols are switched.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use support::{Hand, LIMIT, Rig, accept, by_hand, http2_client, log, recorder, service, soon};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// A proxy before one replica that is spoken to by hand.
async fn rig() -> (Rig, mpsc::Receiver<Hand>) {
    let (address, connections) = by_hand().await;
    (Rig::new([service(1, "svc", &[address])]), connections)
}

fn has(head: &[String], line: &str) -> bool {
    head.iter().any(|found| found == line)
}

fn names(head: &[String], name: &str) -> bool {
    head.iter()
        .any(|line| line.starts_with(&format!("{name}:")))
}

#[tokio::test]
async fn fields_of_one_hop_end_there_both_ways() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client
        .send(
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n\
             te: gzip\r\nproxy-connection: keep-alive\r\nx-end: 2\r\nauthorization: Basic eA==\r\n\r\n",
        )
        .await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    for gone in [
        "connection",
        "x-hop",
        "keep-alive",
        "te",
        "proxy-connection",
    ] {
        assert!(!names(&head, gone), "{gone}: {head:?}");
    }
    assert!(
        has(&head, "x-end: 2") && has(&head, "authorization: basic ea=="),
        "{head:?}"
    );
    replica
        .send(
            "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
             set-cookie: a=1; path=/\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    for gone in ["connection", "x-hop", "keep-alive"] {
        assert!(!names(&head, gone), "{gone}: {head:?}");
    }
    assert!(
        has(&head, "set-cookie: a=1; path=/") && has(&head, "set-cookie: b=2"),
        "{head:?}"
    );

    // The replica's cookies are the client's affair: nobody else sends them.
    let mut other = Hand::connect(rig.address).await;
    other.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let head = tokio::select! {
        head = replica.head() => head,
        mut fresh = accept(&mut connections) => fresh.head().await,
    };
    assert!(!names(&head, "cookie"), "{head:?}");
}

#[tokio::test]
async fn an_answer_with_two_lengths_leaves_with_one() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(!names(&head, "content-length"), "{head:?}");
    assert_eq!(client.exactly(15).await, "5\r\nabcde\r\n0\r\n\r\n");
}

/// What else was applied to it would be lost here, and the client take it for what it is not.
#[tokio::test]
async fn an_answer_with_another_transfer_coding_than_chunks_is_refused() {
    let (rig, mut connections) = rig().await;
    for fields in ["", "te: trailers\r\n"] {
        for coding in [
            "gzip, chunked",
            "gzip",
            "chunked, chunked",
            "chunked\r\ntransfer-encoding: chunked",
        ] {
            let mut client = Hand::connect(rig.address).await;
            let post = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n";
            client.send(format!("{post}{fields}\r\n")).await;
            let mut replica = accept(&mut connections).await;
            replica.head().await;
            let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n");
            replica.send(format!("{head}1\r\nx\r\n0\r\n\r\n")).await;
            assert_eq!(
                client.head().await[0],
                "http/1.1 502 bad gateway",
                "{coding}"
            );
            replica.rest().await; // Nothing else is asked over this connection.
        }
    }
    rig.idle().await;
}

/// Whose body is over: the library would keep the connection, and go on with the request.
#[tokio::test]
async fn an_upload_ends_with_an_answer_that_is_refused() {
    let (rig, mut connections) = rig().await;
    for fields in ["", "te: trailers\r\n"] {
        let mut client = Hand::connect(rig.address).await;
        let post = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n";
        client.send(format!("{post}{fields}\r\nx")).await;
        let mut replica = accept(&mut connections).await;
        replica.head().await;
        assert_eq!(replica.exactly(1).await, "x");
        let twice = "transfer-encoding: chunked\r\n".repeat(2);
        replica
            .send(format!("HTTP/1.1 200 OK\r\n{twice}\r\n0\r\n\r\n"))
            .await;
        assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
        replica.rest().await;
    }
    rig.idle().await;
}

#[tokio::test]
async fn trailers_pass_both_ways_when_asked_for() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    let request = "POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\ntrailer: x-up\r\n\
                   transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-up: 1\r\n\r\n";
    client.send(request).await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    for line in ["te: trailers", "connection: te", "trailer: x-up"] {
        assert!(has(&head, line), "{line}: {head:?}");
    }
    assert_eq!(replica.exactly(20).await, "1\r\na\r\n0\r\nx-up: 1\r\n\r\n");
    let answer = "HTTP/1.1 200 OK\r\ntrailer: x-down\r\ntransfer-encoding: chunked\r\n\r\n";
    replica.send(answer).await;
    replica.send("1\r\nb\r\n0\r\nx-down: 2\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.exactly(22).await, "1\r\nb\r\n0\r\nx-down: 2\r\n\r\n");
}

/// Over HTTP/1.1 the library sends none but those that a head named. The message is whole without them.
#[tokio::test]
async fn trailers_that_no_head_announced_end_on_the_general_path() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    let request = "POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n\
                   transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-up: 1\r\n\r\n";
    client.send(request).await;
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    assert_eq!(replica.exactly(11).await, "1\r\na\r\n0\r\n\r\n");
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx-down: 2\r\n\r\n";
    replica.send(answer).await;
    client.head().await;
    assert_eq!(client.exactly(11).await, "1\r\nb\r\n0\r\n\r\n");
}

#[tokio::test]
async fn expect_is_met_once_the_replica_takes_the_body() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client
        .send("PUT / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    assert!(!names(&head, "expect"), "{head:?}");
    assert_eq!(client.head().await[0], "http/1.1 100 continue");
    client.send("body").await;
    assert_eq!(replica.exactly(4).await, "body");
    replica
        .send("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 201 created");
}

#[tokio::test]
async fn http_1_0_is_spoken_on_either_side() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client.send("GET /old HTTP/1.0\r\n\r\n").await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    assert_eq!(head[0], "get /old http/1.1");
    replica
        .send("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end")
        .await;
    drop(replica);
    let head = client.head().await;
    assert!(has(&head, "content-type: text/plain"), "{head:?}");
    assert_eq!(client.rest().await, "until the end");
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-key: x\r\n\r\n";

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client.send(UPGRADE).await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-key: x",
    ] {
        assert!(has(&head, line), "{line}: {head:?}");
    }
    // The first bytes after the head come along with it.
    replica
        .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
        .await;
    let head = client.head().await;
    assert_eq!(head[0], "http/1.1 101 switching protocols");
    assert!(
        has(&head, "upgrade: websocket") && has(&head, "connection: upgrade"),
        "{head:?}"
    );
    assert_eq!(client.exactly(5).await, "hello");
    for n in 0..10 {
        let word = format!("{n:04}");
        client.send(&word).await;
        assert_eq!(replica.exactly(4).await, word);
        replica.send(&word).await;
        assert_eq!(client.exactly(4).await, word);
    }
    assert_eq!(
        rig.proxy.loads().len(),
        1,
        "a tunnel is a request in flight"
    );
    let switched = "raftserve_proxy_responses_total{service=\"svc\",code=\"1xx\"} 1";
    let told = rig.proxy.render_prometheus();
    assert!(told.lines().any(|line| line == switched), "{told}");
    drop(client);
    assert_eq!(replica.rest().await, "");
    drop(replica);
    rig.idle().await;
}

#[tokio::test]
async fn a_tunnel_that_nothing_passes_through_ends() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.timeouts.tunnel_idle = Some(Duration::from_secs(2));
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client.send(UPGRADE).await;
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    replica
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
    client.head().await;
    client.send("last").await;
    let last = Instant::now();
    assert_eq!(replica.rest().await, "last");
    assert_eq!(client.rest().await, "");
    assert!(last.elapsed() < LIMIT, "long before its usual end");
    rig.idle().await;
}

#[tokio::test]
async fn an_upgrade_may_be_declined_and_never_be_forced() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client.send(UPGRADE).await;
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 426 upgrade required");
    assert_eq!(client.exactly(2).await, "no");

    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = tokio::select! {
        fresh = accept(&mut connections) => fresh,
        head = replica.head() => { assert!(!head.is_empty()); replica }
    };
    replica
        .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\n")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    rig.idle().await;
}

#[tokio::test]
async fn a_switch_is_to_a_protocol_that_was_asked_for_and_never_to_h2c() {
    let (rig, mut connections) = rig().await;
    let ask = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\n\
               upgrade: H2C, one\r\nUpgrade: h2c\r\nupgrade: two\r\n\r\n";
    for (agreed, status) in [
        ("upgrade: two\r\n", "101 switching protocols"),
        (
            "upgrade: ONE\r\nupgrade: Two\r\n",
            "101 switching protocols",
        ),
        ("upgrade: h2c\r\n", "502 bad gateway"),
        ("upgrade: two\r\nupgrade: evil\r\n", "502 bad gateway"),
        ("upgrade: evil\r\n", "502 bad gateway"),
    ] {
        let mut client = Hand::connect(rig.address).await;
        client.send(ask).await;
        let mut replica = accept(&mut connections).await;
        let head = replica.head().await;
        assert!(has(&head, "upgrade: one, two"), "{head:?}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n";
        replica.send(format!("{answer}{agreed}\r\n")).await;
        let head = client.head().await;
        assert_eq!(head[0], format!("http/1.1 {status}"), "{agreed}");
        drop(client);
        replica.rest().await;
    }
    rig.idle().await;
}

#[tokio::test]
async fn http_1_0_cannot_ask_for_an_upgrade() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client.send(UPGRADE.replace("HTTP/1.1", "HTTP/1.0")).await;
    let mut replica = accept(&mut connections).await;
    let head = replica.head().await;
    assert!(has(&head, "sec-websocket-key: x"), "{head:?}");
    assert!(
        !names(&head, "upgrade") && !names(&head, "connection"),
        "{head:?}"
    );
    replica
        .send("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno")
        .await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "no");
    rig.idle().await;
}

#[tokio::test]
async fn http_2_without_tls_is_understood_on_the_same_port() {
    let log = log();
    let services = [
        service(1, "svc", &[recorder("a", &log).await]),
        service(2, "other", &[recorder("o", &log).await]),
    ];
    let rig = Rig::new(services);
    let mut sender = http2_client::<Full<Bytes>>(&rig).await.0;
    let mut answers = Vec::new();
    for n in 0..20 {
        let request = Request::post(format!("http://svc.example:81/p?n={n}"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .body(Full::from(format!("body {n}")));
        answers.push(sender.send_request(request.expect("a good request")));
    }
    for answer in answers {
        let response = soon("an answer", answer).await.expect("an answer");
        assert_eq!(
            (response.status(), response.version()),
            (StatusCode::OK, Version::HTTP_2)
        );
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert_eq!(body, "a");
    }
    {
        let log = log.lock().expect("no panic");
        assert_eq!(log.len(), 20);
        for seen in log.iter() {
            assert_eq!(seen.headers["host"], "svc.example:81");
            assert_eq!(seen.headers["cookie"], "a=1; b=2");
            assert_eq!(seen.headers["te"], "trailers");
            assert!(seen.target.starts_with("/p?n="), "{}", seen.target);
            assert!(seen.body.starts_with(b"body "));
        }
    }
    let unknown = Request::get("http://127.0.0.1/").body(Full::default());
    let unknown = sender.send_request(unknown.expect("a good request"));
    let response = soon("an answer", unknown).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    assert!(
        body.starts_with(b"{\"error\":\"no_such_service\""),
        "{body:?}"
    );
    rig.idle().await;
}

#[tokio::test]
async fn an_answer_with_trailers_reaches_an_http_2_client_as_it_streams() {
    let (rig, mut connections) = rig().await;
    let mut sender = http2_client::<Full<Bytes>>(&rig).await.0;
    let request = Request::get("http://svc/")
        .header("te", "trailers")
        .body(Full::default());
    let answer = tokio::spawn(sender.send_request(request.expect("a good request")));
    let mut replica = accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ntrailer: grpc-status\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    let response = soon("a head", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let mut body = response.into_body();
    let first = soon("a chunk", body.frame())
        .await
        .expect("a frame")
        .expect("a frame");
    assert_eq!(first.into_data().expect("data"), "a");
    replica.send("0\r\ngrpc-status: 0\r\n\r\n").await;
    let last = soon("trailers", body.frame())
        .await
        .expect("a frame")
        .expect("a frame");
    let mut expected = HeaderMap::new();
    expected.insert("grpc-status", "0".parse().expect("a value"));
    assert_eq!(last.into_trailers().expect("trailers"), expected);
}

#[tokio::test]
async fn a_head_that_has_begun_gets_all_of_its_time() {
    let mut quick = support::config();
    quick.header_timeout = std::time::Duration::from_millis(300);
    let within = quick.header_timeout;
    let services = [service(1, "svc", &[recorder("one", &log()).await])];
    let rig = Rig::with(
        quick,
        services,
        std::sync::Arc::new(raftserve_proxy::NoSessions),
    );
    let mut client = Hand::connect(rig.address).await;
    let begun = std::time::Instant::now();
    let ahead = "GET / HTTP/1.1\r\nhost: h\r\n\r\nGET / HT";
    assert_eq!(client.ask(ahead).await.1, "one");
    client.rest().await;
    assert!(begun.elapsed() >= within, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_let_go() {
    let mut quick = support::config();
    quick.header_timeout = std::time::Duration::from_millis(200);
    let rig = Rig::with(quick, [], std::sync::Arc::new(raftserve_proxy::NoSessions));
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: h\r\n"] {
        let mut slow = Hand::connect(rig.address).await;
        slow.send(start).await;
        let mut rest = Vec::new();
        let _ = soon("the end", slow.0.read_to_end(&mut rest)).await;
    }
}
