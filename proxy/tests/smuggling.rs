//! Requests that two readers may tell apart differently: each is refused, and its connection closed, or leaves in
//! one form only.

mod support;

use support::{Hand, Rig, by_hand, service, soon};
use tokio::sync::mpsc;

async fn rig() -> (Rig, mpsc::Receiver<Hand>) {
    let (address, connections) = by_hand().await;
    (Rig::new([service(1, "svc", &[address])]), connections)
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";

/// A replica that knows fields as variables takes `_` for `-`, and would believe the client what only the proxy may say.
#[tokio::test]
async fn what_the_proxy_says_cannot_be_said_with_underscores() {
    let (rig, mut connections) = rig().await;
    let forged = "X_Forwarded_Client_Cert: Hash=forged\r\nx-forwarded_client-cert: Hash=forged\r\n\
                  X_FORWARDED_FOR: forged\r\nx_forwarded-host: forged\r\nx_forwarded_proto: forged\r\n\
                  x-forwarded_prefix: forged\r\n";
    let fields = format!("{forged}X_Own: 1\r\nx_forwarded_port: 2\r\nx-forwarded-for: 1.1.1.1\r\n");
    let mut client = Hand::connect(rig.address).await;
    client
        .send(format!("GET / HTTP/1.1\r\nhost: h\r\n{fields}\r\n"))
        .await;
    let mut replica = support::accept(&mut connections).await;
    let head = replica.head().await;
    assert!(!head.iter().any(|line| line.contains("forged")), "{head:?}");
    for line in [
        "x_own: 1",
        "x_forwarded_port: 2",
        "x-forwarded-for: 1.1.1.1, 127.0.0.1",
        "x-forwarded-host: h",
        "x-forwarded-proto: http",
    ] {
        assert!(head.iter().any(|found| found == line), "{line}: {head:?}");
    }
    replica
        .send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.head().await;

    // Trailers that need the general path; the short one refuses such a request.
    let mut client = Hand::connect(rig.address).await;
    let names = "trailer: x_forwarded_client_cert, x-forwarded_for, x-up";
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n{names}\r\n{CHUNKED}"
        ))
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    client
        .send(format!("1\r\na\r\n0\r\n{forged}x-up: 1\r\n\r\n"))
        .await;
    assert_eq!(replica.exactly(20).await, "1\r\na\r\n0\r\nx-up: 1\r\n\r\n");
    replica
        .send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.head().await;
    rig.idle().await;
}

#[tokio::test]
async fn what_two_readers_may_take_for_different_requests_is_refused() {
    let large = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n",
        "x".repeat(80 << 10)
    );
    let host = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nhost: h\r\n{fields}");
    let table = [
        (
            "both, length first",
            post(&format!("content-length: 5\r\n{CHUNKED}0\r\n\r\n")),
        ),
        (
            "both, coding first",
            post("transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
        ),
        (
            "both, odd case",
            post("cOnTeNt-LeNgTh: 5\r\nTRANSFER-encoding:\tChunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "two lengths",
            post("content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
        ),
        (
            "one length twice",
            post("content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
        ),
        ("a list of lengths", post("content-length: 3, 3\r\n\r\nabc")),
        ("a signed length", post("content-length: +3\r\n\r\nabc")),
        ("a negative length", post("content-length: -3\r\n\r\nabc")),
        (
            "a hexadecimal length",
            post("content-length: 0x3\r\n\r\nabc"),
        ),
        ("an empty length", post("content-length:\r\n\r\nabc")),
        (
            "a length beyond bounds",
            post("content-length: 99999999999999999999\r\n\r\nabc"),
        ),
        ("identity", post("transfer-encoding: identity\r\n\r\nabc")),
        ("another coding", post("transfer-encoding: gzip\r\n\r\nabc")),
        (
            "another coding before",
            post("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "another coding behind",
            post("transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked twice",
            post("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked on two lines",
            post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "almost chunked",
            post("transfer-encoding: x-chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "quoted chunked",
            post("transfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
        ),
        (
            "a vertical tab",
            post("transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunks in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nhost: h\r\n{CHUNKED}0\r\n\r\n"),
        ),
        (
            "a folded line",
            post("x: 1\r\n 2\r\ncontent-length: 0\r\n\r\n"),
        ),
        (
            "a folded coding",
            post("transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "space before a colon",
            post("content-length : 3\r\n\r\nabc"),
        ),
        (
            "space before the first field",
            "GET / HTTP/1.1\r\n host: h\r\n\r\n".to_owned(),
        ),
        ("no colon", post("content-length 3\r\n\r\nabc")),
        ("NUL in a value", post("x: a\0b\r\n\r\n")),
        ("NUL in a name", post("x\0: a\r\n\r\n")),
        (
            "a bare CR in a value",
            post("x: a\rcontent-length: 3\r\n\r\nabc"),
        ),
        (
            "NUL in the target",
            "GET /a\0b HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        ),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("a user and a host", host("svc@evil")),
        ("a host and a path", host("svc/x")),
        ("a host and a query", host("svc?x")),
        ("two hosts on one line", host("a, b")),
        ("two hosts without a space", host("a,b")),
        ("a space in a host", host("a b")),
        ("two ports", host("svc:80:81")),
        ("a port of letters", host("svc:http")),
        ("a port alone", host(":80")),
        ("an encoded host", host("svc%2ex")),
        ("half an address", host("[::1")),
        ("a name in brackets", host("[svc]")),
        ("a quoted host", host("\"svc\"")),
        (
            "a user in the target",
            "GET http://svc@evil/ HTTP/1.1\r\nhost: svc\r\n\r\n".to_owned(),
        ),
        (
            "a good target and no good host",
            "GET http://svc/ HTTP/1.1\r\nhost: svc@evil\r\n\r\n".to_owned(),
        ),
        (
            "an unknown version",
            "GET / HTTP/1.2\r\nhost: h\r\n\r\n".to_owned(),
        ),
    ];
    let (rig, mut connections) = rig().await;
    for (name, bytes) in table {
        let mut client = Hand::connect(rig.address).await;
        client
            .send(bytes + "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n")
            .await;
        let rest = client.rest().await;
        assert!(rest.starts_with("HTTP/1.1 400"), "{name}: {rest}");
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{name}: {rest}");
    }
    let mut client = Hand::connect(rig.address).await;
    // The proxy may have closed before all was sent.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut client.0, large.as_bytes()).await;
    let rest = client.rest().await;
    assert!(rest.starts_with("HTTP/1.1 431"), "{rest}");
    assert!(connections.try_recv().is_err(), "no replica saw any of it");
}

#[tokio::test]
async fn a_second_request_with_two_claims_is_refused_too() {
    let (rig, mut connections) = rig().await;
    let mut client = Hand::connect(rig.address).await;
    client
        .send(format!(
            "POST /1 HTTP/1.1\r\nhost: h\r\n{CHUNKED}3\r\nabc\r\n0\r\n\r\n"
        ))
        .await;
    let mut replica = soon("a connection", connections.recv())
        .await
        .expect("it listens");
    replica.head().await;
    assert_eq!(replica.exactly(13).await, "3\r\nabc\r\n0\r\n\r\n");
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    client
        .send(format!(
            "POST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n{CHUNKED}0\r\n\r\n"
        ))
        .await;
    assert!(client.rest().await.starts_with("HTTP/1.1 400"));
}

/// What is no chunk, or no chunked body.
const NO_CHUNKS: [&str; 15] = [
    "g\r\nabc",
    "-1\r\nabc",
    "3\r\nabcd\r\n0\r\n\r\n",
    "ffffffffffffffffff\r\na",
    " 3\r\nabc\r\n",
    "3\nabc\n0\n\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "3,\r\nabc\r\n0\r\n\r\n",
    "3 0\r\nabc\r\n0\r\n\r\n",
    "3;x\r\r\nabc\r\n0\r\n\r\n",
    "0\r\nx\r\n\r\n",
    "0\r\n: x\r\n\r\n",
    "0\r\nx y: z\r\n\r\n",
    "0\r\nx: a\0b\r\n\r\n",
];

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";

/// The client is refused, once, and the connection closed.
async fn is_refused(client: &mut Hand, what: &str) {
    let rest = client.rest().await;
    assert!(rest.starts_with("HTTP/1.1 400"), "{what:?}: {rest}");
    assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{what:?}: {rest}");
}

/// A replica may have seen the beginning, and never an end, nor what came behind.
async fn sees_no_end(replica: &mut Hand, what: &str) {
    let seen = replica.rest().await;
    let ends = seen.ends_with("0\r\n\r\n") || seen.contains("smuggled");
    assert!(!ends, "{what:?}: {seen}");
}

#[tokio::test]
async fn chunks_that_are_none_end_the_request_on_both_sides() {
    for bad in NO_CHUNKS {
        let (rig, mut connections) = rig().await;
        let mut client = Hand::connect(rig.address).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: h\r\n{CHUNKED}{bad}{SMUGGLED}"
            ))
            .await;
        is_refused(&mut client, bad).await;
        if let Ok(mut replica) = connections.try_recv() {
            sees_no_end(&mut replica, bad).await;
        }
        rig.idle().await;
    }
}

#[tokio::test]
async fn chunks_that_are_none_are_refused_behind_some_that_were_passed_on() {
    let (rig, mut connections) = rig().await;
    for bad in NO_CHUNKS {
        let mut client = Hand::connect(rig.address).await;
        client
            .send(format!("POST / HTTP/1.1\r\nhost: h\r\n{CHUNKED}1\r\nx\r\n"))
            .await;
        let mut replica = soon("a connection", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        assert_eq!(replica.exactly(6).await, "1\r\nx\r\n");
        client.send(format!("{bad}{SMUGGLED}")).await;
        is_refused(&mut client, bad).await;
        sees_no_end(&mut replica, bad).await;
        rig.idle().await;
    }
}

#[tokio::test]
async fn what_has_one_meaning_leaves_in_one_form() {
    let table = [
        ("GET / HTTP/1.1\nhost: h\nx: 1\n\n", "get / http/1.1", ""),
        (
            "\r\nGET / HTTP/1.1\r\nhost: h\r\nx: 1\r\n\r\n",
            "get / http/1.1",
            "",
        ),
        (
            "GET http://h/a?b HTTP/1.1\r\nhost: other\r\nx: 1\r\n\r\n",
            "get /a?b http/1.1",
            "",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\nx: \t1 \t\r\nconnection: content-length, host\r\ncontent-length: 003\r\n\r\nabc",
            "post / http/1.1",
            "abc",
        ),
    ];
    for (bytes, line, body) in table {
        let (rig, mut connections) = rig().await;
        let mut client = Hand::connect(rig.address).await;
        client.send(bytes).await;
        let mut replica = soon("a connection", connections.recv())
            .await
            .expect("it listens");
        let head = replica.head().await;
        assert_eq!(head[0], line, "{bytes:?}");
        for field in ["host: h", "x: 1"] {
            assert_eq!(
                head.iter().filter(|line| *line == field).count(),
                1,
                "{bytes:?}: {head:?}"
            );
        }
        assert_eq!(
            head.iter().filter(|line| line.starts_with("host:")).count(),
            1,
            "{head:?}"
        );
        assert_eq!(replica.exactly(body.len()).await, body);
        replica
            .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert_eq!(client.head().await[0], "http/1.1 200 ok");
    }
}
