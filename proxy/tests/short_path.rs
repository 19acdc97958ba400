//! What is particular to the short path of plain HTTP/1.1 requests; all that it shares with the
//! general one is tested on both.

mod support;

use std::time::Duration;

use support::{Hand, LIMIT, LINGER, Rig, by_hand, log, recorder, service, soon};
use tokio::io::AsyncReadExt;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// All that a side has sent so far, up to the end of a head.
async fn raw_head(hand: &mut Hand) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push(soon("a head", hand.0.read_u8()).await.expect("open").into());
    }
    text
}

#[tokio::test]
async fn a_plain_request_takes_it_and_keeps_its_spelling() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("GET /a?b HTTP/1.1\r\nHOST: h\r\nX-MiXeD: YeS\r\n\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    let head = raw_head(&mut replica).await;
    // The HTTP library writes all names in lower case.
    assert!(
        head.starts_with("GET /a?b HTTP/1.1\r\nHOST: h\r\nX-MiXeD: YeS\r\n"),
        "{head}"
    );
    replica
        .send("HTTP/1.1 200 Quite Fine\r\nX-OwN: v\r\ncontent-length: 0\r\n\r\n")
        .await;
    let head = raw_head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 200 Quite Fine\r\nX-OwN: v\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn the_general_path_takes_over_at_any_request_and_loses_no_byte() {
    let log = log();
    let rig = Rig::new([service(1, "svc", &[recorder("b", &log).await])]);
    let mut client = Hand::connect(rig.address).await;
    let plain = "POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\none";
    let special = "POST /2 HTTP/1.1\r\nhost: h\r\nte: trailers\r\ncontent-length: 3\r\n\r\ntwo";
    let after =
        "POST /3 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n";
    client.send(format!("{plain}{special}{after}")).await;
    for _ in 0..3 {
        assert_eq!(client.head().await[0], "http/1.1 200 ok");
        assert_eq!(client.exactly(1).await, "b");
    }
    let log = log.lock().expect("no panic");
    let seen: Vec<_> = log
        .iter()
        .map(|seen| (seen.target.as_str(), &seen.body[..]))
        .collect();
    assert_eq!(
        seen,
        [("/1", &b"one"[..]), ("/2", b"two"), ("/3", b"three")]
    );
}

#[tokio::test]
async fn a_head_in_many_pieces_is_one_request() {
    let log = log();
    let rig = Rig::new([service(1, "svc", &[recorder("b", &log).await])]);
    let mut client = Hand::connect(rig.address).await;
    let request = "POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\none";
    for byte in request.as_bytes().chunks(1) {
        client.send(byte).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(log.lock().expect("no panic")[0].body, "one");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_gets_an_end_of_its_own() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    for version in ["1.0", "1.1"] {
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let mut replica = soon("a request", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        replica
            .send(format!("HTTP/{version} 200 OK\r\n\r\nbo"))
            .await;
        let head = client.head().await;
        assert!(
            head.contains(&"transfer-encoding: chunked".to_owned()),
            "{head:?}"
        );
        assert_eq!(client.exactly(7).await, "2\r\nbo\r\n");
        replica.send("dy!").await;
        assert_eq!(client.exactly(8).await, "3\r\ndy!\r\n");
        drop(replica);
        assert_eq!(client.exactly(5).await, "0\r\n\r\n");
    }
}

#[tokio::test]
async fn interim_answers_are_not_taken_for_the_answer() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send(format!(
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{OK}"
        ))
        .await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(client.exactly(2).await, "ok");
}

#[tokio::test]
async fn a_replica_that_says_more_than_its_answer_is_not_used_again() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    let mut held = Vec::new();
    for extra in ["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", ""] {
        client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        // Each comes on a connection of its own.
        let mut replica = soon("a request", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        replica.send(format!("{OK}{extra}")).await;
        client.head().await;
        assert_eq!(client.exactly(2).await, "ok");
        held.push(replica);
    }
}

#[tokio::test]
async fn a_long_head_of_an_answer_is_passed_whole() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let long = "v".repeat(60_000);
    replica
        .send(format!(
            "HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: 2\r\n\r\nok"
        ))
        .await;
    assert!(client.head().await.contains(&format!("x-long: {long}")));
    assert_eq!(client.exactly(2).await, "ok");
}

#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_answer_and_then_the_end() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\nstart")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let begun = std::time::Instant::now();
    replica
        .send("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\nbig")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 413 payload too large");
    // Were the connection closed with this unread, the answer could be lost to a reset.
    client.send("x".repeat(100_000)).await;
    assert_eq!(client.exactly(3).await, "big");
    assert_eq!(client.rest().await, "");
    client.cut().await;
    assert!(begun.elapsed() >= LINGER, "{:?}", begun.elapsed());
    replica.rest().await;
    rig.idle().await;
}

/// The general path may learn too late that a connection is free again.
#[tokio::test]
async fn a_replica_that_gets_the_rest_after_its_answer_keeps_its_connection() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    let mut replica = None;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    for answer in [OK, chunked] {
        let head = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        client.send(format!("{head}4\r\nhalf\r\n")).await;
        let replica = match &mut replica {
            Some(replica) => replica,
            None => replica.insert(support::accept(&mut connections).await),
        };
        assert!(!replica.head().await.is_empty(), "it is open");
        assert_eq!(replica.exactly(9).await, "4\r\nhalf\r\n");
        replica.send(answer).await;
        let head = client.head().await;
        assert!(!head.contains(&"connection: close".to_owned()), "{head:?}");
        let body = answer.split_once("\r\n\r\n").expect("a head").1;
        assert_eq!(client.exactly(body.len()).await, body);
        // With what follows the request right behind it.
        client
            .send("0\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n")
            .await;
        assert_eq!(replica.exactly(5).await, "0\r\n\r\n");
        assert!(!replica.head().await.is_empty(), "it is open");
        replica.send(OK).await;
        client.head().await;
        assert_eq!(client.exactly(2).await, "ok");
    }
    rig.idle().await;
}

#[tokio::test]
async fn a_client_is_told_that_its_connection_ends_where_nobody_reads_the_rest() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let big = "HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig";
    for (body, closes) in [("half", true), ("halfother", false)] {
        let mut client = Hand::connect(rig.address).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{body}"
            ))
            .await;
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        assert_eq!(replica.exactly(body.len()).await, body);
        replica.send(big).await;
        let head = client.head().await;
        let told = head.contains(&"connection: close".to_owned());
        assert_eq!(told, closes, "{head:?}");
        assert_eq!(client.exactly(3).await, "big");
        drop(replica);
        if closes {
            assert_eq!(client.rest().await, "");
        }
        rig.idle().await;
    }
}

#[tokio::test]
async fn a_malformed_chunk_ends_the_request_on_both_sides() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    assert_eq!(replica.exactly(8).await, "3\r\none\r\n");
    client.send("1\nx\n0\n\n").await;
    assert_eq!(replica.rest().await, "", "nothing of it is passed on");
    assert_eq!(client.head().await[0], "http/1.1 400 bad request");
    assert!(client.rest().await.contains("bad_request"));

    // Once an answer has begun, it can only be broken off.
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab")
        .await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ab");
    client.send("1\nx\n0\n\n").await;
    assert_eq!(client.rest().await, "");

    // The replica's: the client must not take what it got for whole.
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    client.head().await;
    assert_eq!(client.exactly(6).await, "1\r\nx\r\n");
    replica.send("0\n\n").await;
    assert_eq!(client.rest().await, "");
    rig.idle().await;
}

#[tokio::test]
async fn trailers_pass_as_they_came_unless_they_frame_or_route() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let begun = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n";
    let mut client = Hand::connect(rig.address).await;
    client.send(begun).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    assert_eq!(replica.exactly(6).await, "1\r\na\r\n");
    let end = "0\r\nX-Up:1\r\n\r\n";
    client.send(end).await;
    assert_eq!(replica.exactly(end.len()).await, end);
    let answer = "1\r\nb\r\n0\r\nX-Down:2\r\n\r\n";
    replica
        .send(format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{answer}"
        ))
        .await;
    client.head().await;
    assert_eq!(client.exactly(answer.len()).await, answer);
    for barred in [
        "content-length: 5",
        "Transfer-Encoding: chunked",
        "HOST: evil",
        "x-forwarded-for: 1.1.1.1",
        "X_Forwarded_Client-Cert: a",
    ] {
        let mut client = Hand::connect(rig.address).await;
        client.send(begun).await;
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        assert_eq!(replica.exactly(6).await, "1\r\na\r\n");
        client.send(format!("0\r\nx: y\r\n{barred}\r\n\r\n")).await;
        assert_eq!(client.head().await[0], "http/1.1 400 bad request");
        assert_eq!(replica.rest().await, "", "{barred}");
    }
    rig.idle().await;
}

#[tokio::test]
async fn an_idle_connection_ends_with_the_time_for_a_head() {
    let mut quick = support::config();
    quick.header_timeout = Duration::from_millis(300);
    let log = log();
    let services = [service(1, "svc", &[recorder("b", &log).await])];
    let rig = Rig::with(
        quick,
        services,
        std::sync::Arc::new(raftserve_proxy::NoSessions),
    );
    let mut silent = Hand::connect(rig.address).await;
    let mut half = Hand::connect(rig.address).await;
    half.send("GET / HT").await;
    let mut used = Hand::connect(rig.address).await;
    assert_eq!(used.ask("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.1, "b");
    let started = std::time::Instant::now();
    assert_eq!(used.rest().await, "");
    assert_eq!(silent.rest().await, "");
    half.rest().await;
    assert!(started.elapsed() < LIMIT / 2);
}

#[tokio::test]
async fn a_connection_that_rests_comes_back_to_it() {
    let (address, mut connections) = by_hand().await;
    let mut config = support::config();
    config.http1_rest_after = Duration::ZERO;
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(
        config,
        services,
        std::sync::Arc::new(raftserve_proxy::NoSessions),
    );
    let mut client = Hand::connect(rig.address).await;
    // Whether its spelling was kept, as only the short path does.
    let mut kept = async |fields: &str| {
        client
            .send(format!("GET / HTTP/1.1\r\nhost: h\r\n{fields}\r\n"))
            .await;
        let mut replica = connections.recv().await.expect("it listens");
        let head = raw_head(&mut replica).await;
        replica
            .send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
            .await;
        raw_head(&mut client).await;
        assert_eq!(client.exactly(2).await, "ok");
        head.contains("X-MiXeD: YeS\r\n")
    };
    assert!(kept("X-MiXeD: YeS\r\n").await);
    assert!(!kept("X-MiXeD: YeS\r\nte: trailers\r\n").await);
    let back = async { while !kept("X-MiXeD: YeS\r\n").await {} };
    soon("the short path", back).await;
}
