//! Replicas that refuse, reset, stall and answer garbage: each request has one end, and is counted
//! in flight until then and no longer.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use raftserve_model::spec::{LoadBalancingPolicy, RouteRule, UpstreamProtocol};
use raftserve_model::{Incarnation, NodeId};
use raftserve_proxy::NoSessions;
use support::{
    Hand, LIMIT, Rig, by_hand, get, log, nowhere, recorder, replica, service, soon, table, until,
};
use tokio::io::AsyncWriteExt;

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";

#[tokio::test]
async fn a_refused_connection_is_retried_on_another_replica() {
    let log = log();
    for policy in [
        LoadBalancingPolicy::RoundRobin,
        LoadBalancingPolicy::LeastLoad,
    ] {
        let mut svc = service(1, "svc", &[nowhere(), recorder("b", &log).await]);
        svc.policy = policy;
        let mut rig = Rig::new([svc]);
        for _ in 0..20 {
            let (head, body) = Hand::connect(rig.address).await.ask(POST).await;
            assert_eq!((head[0].as_str(), body.as_str()), ("http/1.1 200 ok", "b"));
        }
        assert_eq!(
            soon("a report", rig.failures.recv()).await,
            Some(replica(1, 1))
        );
        // Once known to refuse, it is left alone for a while: it costs not every request a connect.
        assert!(rig.metric("connect_failures_total") <= 4);
        rig.idle().await;
    }
    assert_eq!(
        log.lock().expect("no panic").len(),
        40,
        "each was sent once"
    );
}

#[tokio::test]
async fn no_replica_is_tried_twice_and_no_more_than_three() {
    for (dead, tries) in [(1, 1), (2, 2), (5, 3)] {
        let mut addresses = Vec::new();
        for _ in 0..dead {
            addresses.push(nowhere());
        }
        let mut rig = Rig::new([service(1, "svc", &addresses)]);
        let (status, body) = get(rig.address, "h", "/").await;
        assert_eq!(status, 502);
        assert!(body.contains("replica_unreachable"), "{body}");
        let mut tried = Vec::new();
        while let Ok(replica) = rig.failures.try_recv() {
            tried.push(replica);
        }
        assert_eq!(tried.len(), tries);
        tried.sort();
        tried.dedup();
        assert_eq!(tried.len(), tries, "one was tried twice");
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let (address, mut connections) = by_hand().await;
    let log = log();
    let rig = Rig::new([service(1, "svc", &[address, recorder("b", &log).await])]);
    let break_off = tokio::spawn(async move {
        let mut replica = connections.recv().await.expect("it listens");
        replica.head().await;
        replica.exactly(4).await;
        drop(replica);
        connections
    });
    // One connection has one worker, whose turns alternate.
    let mut client = Hand::connect(rig.address).await;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let (head, _) = client.ask(POST).await;
        statuses.push(head[0].clone());
    }
    statuses.sort();
    assert_eq!(statuses, ["http/1.1 200 ok", "http/1.1 502 bad gateway"]);
    assert_eq!(log.lock().expect("no panic").len(), 1);
    let mut connections = soon("the end", break_off).await.expect("no panic");
    assert!(connections.try_recv().is_err(), "it was not called again");
}

#[tokio::test]
async fn a_connection_that_the_replica_closed_unused_costs_no_request() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let serve = tokio::spawn(async move {
        for _ in 0..50 {
            let mut replica = connections.recv().await.expect("it listens");
            replica.head().await;
            replica.exactly(4).await;
            replica
                .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    });
    let mut client = Hand::connect(rig.address).await;
    for _ in 0..50 {
        assert_eq!(client.ask(POST).await.1, "ok");
    }
    soon("the replica", serve).await.expect("no panic");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_reaches_the_client() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\nstart")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let answer =
        "HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig";
    replica.send(answer).await;
    drop(replica);
    assert_eq!(client.head().await[0], "http/1.1 413 payload too large");
    assert_eq!(client.exactly(3).await, "big");
    rig.idle().await;
}

/// It would keep its own connection, and that of the replica, for as long as it likes.
#[tokio::test]
async fn a_client_that_was_answered_and_sends_nothing_more_loses_its_connection() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    for body in [
        "content-length: 1000000\r\n\r\nstart",
        "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
    ] {
        let mut client = Hand::connect(rig.address).await;
        client
            .send(format!("POST / HTTP/1.1\r\nhost: h\r\n{body}"))
            .await;
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        // It keeps its connection, and would take the rest.
        let answer = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
        replica.send(answer).await;
        assert_eq!(client.head().await[0], "http/1.1 401 unauthorized");
        assert_eq!(client.exactly(2).await, "no");
        assert_eq!(client.rest().await, "");
        replica.rest().await;
        rig.idle().await;
    }
}

/// The end of its body may come after its answer: it keeps its connection, and as a rule so does the replica.
#[tokio::test]
async fn a_client_whose_last_bytes_come_late_keeps_its_connection() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    // The second is not the short path's.
    for idle in [None, Some(LIMIT)] {
        let (address, mut connections) = by_hand().await;
        let mut svc = service(1, "svc", &[address]);
        svc.traffic.timeouts.idle = idle;
        let rig = Rig::new([svc]);
        let mut client = Hand::connect(rig.address).await;
        client
            .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf")
            .await;
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        replica.send(OK).await;
        let head = client.head().await;
        assert!(!head.contains(&"connection: close".to_owned()), "{head:?}");
        assert_eq!(client.exactly(2).await, "ok");
        client.send("other").await;
        assert_eq!(replica.exactly(9).await, "halfother");
        client.send(GET).await;
        let mut next = tokio::select! {
            // Over the same connection, if that was known to be free by then.
            head = replica.head() => { assert!(!head.is_empty()); replica }
            next = support::accept(&mut connections) => next,
        };
        next.send(OK).await;
        client.head().await;
        assert_eq!(client.exactly(2).await, "ok");
        rig.idle().await;
    }
}

#[tokio::test]
async fn connections_to_replicas_are_reused() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let serve = tokio::spawn(async move {
        let mut replica = connections.recv().await.expect("it listens");
        for _ in 0..50 {
            replica.head().await;
            replica
                .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    });
    let mut client = Hand::connect(rig.address).await;
    for _ in 0..50 {
        assert_eq!(client.ask(GET).await.1, "ok");
    }
    soon("the replica", serve).await.expect("no panic");
}

/// A listener whose queue is full: a connect to it neither succeeds nor fails.
fn black_hole() -> (socket2::Socket, Vec<std::net::TcpStream>, SocketAddr) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let listener = listener.expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any.into()).expect("a free port");
    listener.listen(0).expect("bound");
    let address = listener
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("an address");
    let mut fill = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))
    {
        fill.push(stream);
    }
    (listener, fill, address)
}

#[tokio::test]
async fn a_silent_host_costs_the_connect_timeout_only() {
    let hole = tokio::task::spawn_blocking(black_hole)
        .await
        .expect("no panic");
    let log = log();
    let mut services = [
        service(1, "svc", &[hole.2, recorder("b", &log).await]),
        service(2, "alone", &[hole.2]),
    ];
    for service in &mut services {
        service.traffic.upstream.connect_timeout = Duration::from_millis(500);
    }
    let rig = Rig::new(services);
    for _ in 0..2 {
        assert_eq!(get(rig.address, "svc", "/").await, (200, "b".to_owned()));
    }
    let (status, body) = get(rig.address, "alone", "/").await;
    assert_eq!(status, 504);
    assert!(body.contains("replica_connect_timeout"), "{body}");
}

#[tokio::test]
async fn a_rule_has_a_connect_timeout_of_its_own() {
    let hole = tokio::task::spawn_blocking(black_hole)
        .await
        .expect("no panic");
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let mut svc = service(1, "svc", &[hole.2]);
        svc.traffic.upstream.protocol = protocol;
        svc.traffic.upstream.connect_timeout = Duration::from_millis(1500);
        svc.traffic.routes = vec![RouteRule {
            path_prefix: Some("/quick".to_owned()),
            connect_timeout: Some(Duration::from_millis(100)),
            ..RouteRule::default()
        }];
        let mut config = support::config();
        config.workers = std::num::NonZeroUsize::new(1);
        let mut rig = Rig::with(config, [svc], std::sync::Arc::new(NoSessions));
        let (start, address) = (std::time::Instant::now(), rig.address);
        let took = async |target: &str| {
            let (status, body) = get(address, "svc", target).await;
            assert_eq!(status, 504);
            assert!(body.contains("replica_connect_timeout"), "{body}");
            start.elapsed()
        };
        // The first to ask is who opens a connection that all of HTTP/2 wait for.
        let (quick, slow) = tokio::join!(took("/quick"), took("/"));
        let (quick, slow) = (quick.as_millis(), slow.as_millis());
        assert!(quick >= 100 && slow >= 1500, "{protocol:?}: {quick} {slow}");
        assert!(quick < slow, "{protocol:?}: {quick} {slow}");
        assert_eq!(rig.metric("connect_failures_total"), 2);
        // The rule's own patience says nothing of the replica.
        assert_eq!(rig.failures.try_recv(), Ok(replica(1, 1)));
        assert!(
            rig.failures.try_recv().is_err(),
            "{protocol:?}: blamed twice"
        );
    }
}

#[tokio::test]
async fn in_flight_counts_return_to_zero_whatever_ends_the_request() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    let rig = Rig::new([svc.clone()]);
    let next = async |connections: &mut tokio::sync::mpsc::Receiver<Hand>| {
        let mut client = Hand::connect(rig.address).await;
        client.send(GET).await;
        let mut replica = soon("a request", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        assert_eq!(rig.proxy.loads(), [(support::replica(1, 1), 1)]);
        (client, replica)
    };

    // The client leaves before the answer.
    let (client, mut replica) = next(&mut connections).await;
    drop(client);
    rig.idle().await;
    assert_eq!(replica.rest().await, "", "the replica is told");

    // The client leaves within the answer.
    let (mut client, mut replica) = next(&mut connections).await;
    replica
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    client.head().await;
    drop(client);
    rig.idle().await;
    assert_eq!(replica.rest().await, "", "the replica is told");

    // The replica leaves before the answer.
    let (mut client, replica) = next(&mut connections).await;
    drop(replica);
    let head = client.head().await;
    assert_eq!(head[0], "http/1.1 502 bad gateway");
    rig.idle().await;

    // The replica leaves within the answer: the client must not take it for whole.
    let (mut client, mut replica) = next(&mut connections).await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab")
        .await;
    client.head().await;
    drop(replica);
    assert_eq!(client.rest().await, "ab");
    rig.idle().await;

    // The replica answers garbage.
    let (mut client, mut replica) = next(&mut connections).await;
    replica.send("SMTP ready\r\n\r\n").await;
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    rig.idle().await;

    // The client leaves within its own request.
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    drop(client);
    rig.idle().await;
    assert_eq!(replica.rest().await, "half");

    // The replica says nothing.
    svc.stream_timeout = Duration::from_secs(1);
    rig.routes.publish(table([svc]));
    let (mut client, _silent) = next(&mut connections).await;
    assert_eq!(client.head().await[0], "http/1.1 504 gateway timeout");
    rig.idle().await;

    // The replica falls silent within the answer.
    let (mut client, mut silent) = next(&mut connections).await;
    silent
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    client.head().await;
    let rest = client.rest().await;
    assert_eq!(rest, "1\r\nx\r\n", "there is no last chunk");
    rig.idle().await;

    assert_eq!(rig.metric("requests_total"), 8);
    until("no request running", || {
        rig.metric("requests_in_flight") == 0
    })
    .await;
}

/// It cannot be told from one that has left, whose replica would work for nobody until it writes.
#[tokio::test]
async fn a_client_that_ends_its_side_after_its_request_has_left() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    for request in [GET, POST] {
        for begun in [false, true] {
            let mut client = Hand::connect(rig.address).await;
            client.send(request).await;
            let mut replica = support::accept(&mut connections).await;
            replica.head().await;
            if begun {
                replica
                    .send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
                    .await;
                assert_eq!(client.head().await[0], "http/1.1 200 ok");
                assert_eq!(client.exactly(4).await, "half");
            }
            let ended = client.0.get_mut().shutdown().await;
            ended.expect("open");
            assert_eq!(client.rest().await, "", "it gets no more");
            replica.rest().await;
            rig.idle().await;
        }
    }
}

/// Its end would look like a whole answer's, were it told as one.
#[tokio::test]
async fn an_answer_without_a_length_whose_connection_is_reset_is_not_told_as_whole() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.ejection.consecutive_errors = 1;
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client.send(GET).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica.send("HTTP/1.1 200 OK\r\n\r\nbo").await;
    let head = client.head().await;
    assert!(
        head.contains(&"transfer-encoding: chunked".to_owned()),
        "{head:?}"
    );
    assert_eq!(client.exactly(7).await, "2\r\nbo\r\n");
    replica.reset();
    assert_eq!(client.rest().await, "", "there is no last chunk");
    rig.idle().await;
    until("a failure of the replica", || {
        rig.metric("ejections_total") == 1
    })
    .await;
}

#[tokio::test]
async fn least_load_looks_at_the_whole_cluster() {
    let (held, mut connections) = by_hand().await;
    let log = log();
    let (b, c) = (recorder("b", &log).await, recorder("c", &log).await);
    let mut svc = service(1, "svc", &[held, b, c]);
    svc.policy = LoadBalancingPolicy::LeastLoad;
    let rig = Rig::new([svc]);
    let peers = rig.proxy.peer_loads();
    let report = |loads: [u32; 3]| {
        let loads = (1..)
            .zip(loads)
            .map(|(number, load)| (replica(1, number), load));
        peers.set(NodeId(2), Incarnation(1), loads, std::time::Instant::now());
    };
    report([0, 1, 1]);
    let mut client = Hand::connect(rig.address).await;
    client.send(GET).await;
    let mut held = support::accept(&mut connections).await;
    held.head().await;
    for _ in 0..5 {
        report([0, 0, 1]);
        assert_eq!(
            get(rig.address, "h", "/").await.1,
            "b",
            "own requests count at once"
        );
    }
    for _ in 0..5 {
        report([0, 9, 0]);
        assert_eq!(
            get(rig.address, "h", "/").await.1,
            "c",
            "others' requests count too"
        );
    }
    held.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.head().await;
    rig.idle().await;
}

/// Nobody but the client is to blame, whether the answer has begun or not: else a few clients could have every replica
/// left out.
#[tokio::test]
async fn a_client_that_stops_sending_is_told_so_and_its_replica_is_not_blamed() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.stream_timeout = Duration::from_millis(300);
    svc.traffic.ejection.consecutive_errors = 1;
    let rig = Rig::new([svc]);
    for begun in [false, true] {
        let mut client = Hand::connect(rig.address).await;
        client
            .send("PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf")
            .await;
        let mut replica = soon("a request", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        replica.exactly(4).await;
        if begun {
            replica
                .send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
                .await;
            assert_eq!(client.head().await[0], "http/1.1 200 ok");
            assert_eq!(client.rest().await, "half");
        } else {
            assert_eq!(client.head().await[0], "http/1.1 408 request timeout");
            let rest = client.rest().await;
            assert!(rest.contains("request_body_timeout"), "{rest}");
        }
        assert_eq!(replica.rest().await, "", "the replica is told");
    }
    // One that breaks its own request off while it is answered.
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        .await;
    client.head().await;
    client.send("no chunk\r\n").await;
    client.rest().await;
    rig.idle().await;
    assert_eq!(rig.metric("ejections_total"), 0);
}

/// It could not all be sent at once, and then was: what is waited for since is no more than an answer.
#[tokio::test]
async fn a_host_that_is_gone_is_found_so_after_a_long_upload_as_well() {
    const BODY_BYTES: usize = 1 << 20;
    let config = raftserve_proxy::ProxyConfig {
        host_silence: Duration::from_secs(1),
        tcp_user_timeout: LIMIT * 10,
        ..support::config()
    };
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.stream_timeout = LIMIT * 10;
    let sessions = std::sync::Arc::new(raftserve_proxy::NoSessions);
    let rig = Rig::with(config, [svc], sessions);
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    for begun in [false, true] {
        let mut client = Hand::connect(rig.address).await;
        client.send(&head).await;
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        let body = vec![b'x'; BODY_BYTES];
        let (_, taken) = tokio::join!(client.send(body), replica.exactly(BODY_BYTES));
        assert_eq!(taken.len(), BODY_BYTES);
        if begun {
            let part = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
            replica.send(part).await;
            assert_eq!(client.head().await[0], "http/1.1 200 ok");
            assert_eq!(client.exactly(4).await, "half");
        }
        replica.vanish();
        match begun {
            true => assert_eq!(client.rest().await, ""),
            false => assert_eq!(client.head().await[0], "http/1.1 502 bad gateway"),
        }
    }
    rig.idle().await;
}

#[tokio::test]
async fn a_host_that_is_gone_holds_a_request_no_longer_than_a_host_may_be_silent() {
    let mut config = support::config();
    config.host_silence = Duration::from_secs(1);
    let (address, mut connections) = by_hand().await;
    let rig = Rig::with(
        config,
        [service(1, "svc", &[address])],
        std::sync::Arc::new(raftserve_proxy::NoSessions),
    );
    for acknowledged in [true, false] {
        let mut client = Hand::connect(rig.address).await;
        client.send(GET).await;
        let mut replica = soon("a request", connections.recv())
            .await
            .expect("it listens");
        replica.head().await;
        if !acknowledged {
            // Over a connection that was good when it was kept.
            replica
                .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
            client.head().await;
            replica.vanish();
            // What may not be sent again.
            client
                .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
        replica.vanish();
        let head = client.head().await;
        assert_eq!(head[0], "http/1.1 502 bad gateway", "{acknowledged}");
    }
    rig.idle().await;
}

#[tokio::test]
async fn interim_answers_without_an_end_are_none() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let flood = tokio::spawn(async move {
        let interims = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
        let stream = replica.0.get_mut();
        while stream.write_all(interims.as_bytes()).await.is_ok() {}
    });
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    soon("the end of the flood", flood).await.expect("no panic");
    rig.idle().await;
}
