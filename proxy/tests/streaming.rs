//! Bodies flow as they come, both ways, and who is slow slows the other side and nothing else.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use raftserve_model::spec::UpstreamProtocol;
use raftserve_proxy::{NoSessions, ProxyConfig};
use support::{Hand, LIMIT, Rig, by_hand, service, soon, table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;
/// Far more than the kernel buffers of both connections together hold.
const LARGE: usize = 64 * MIB;
/// What a body that nobody takes may occupy: the kernel's buffers of both connections.
const BUFFERED_MAX: usize = 40 * MIB;

#[tokio::test]
async fn each_chunk_of_an_answer_arrives_before_the_next_is_sent() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET /events HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(
        head[0], "http/1.1 200 ok",
        "the head comes before any of the body"
    );
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        replica.send(&chunk).await;
        assert_eq!(client.exactly(chunk.len()).await.to_lowercase(), chunk);
    }
    replica.send("0\r\n\r\n").await;
    assert_eq!(client.exactly(5).await, "0\r\n\r\n");
    rig.idle().await;
}

#[tokio::test]
async fn each_chunk_of_a_request_arrives_before_the_next_is_sent() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    // A GET with a body of unknown length, too, goes on in chunks.
    client
        .send("GET / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    let head = replica.head().await;
    assert!(
        head.contains(&"transfer-encoding: chunked".to_owned()),
        "{head:?}"
    );
    for part in ["3\r\none\r\n", "5\r\nthree\r\n", "0\r\n\r\n"] {
        client.send(part).await;
        assert_eq!(replica.exactly(part.len()).await, part);
    }
    // The answer may come in the middle of nothing else.
    replica.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await[0], "http/1.1 204 no content");
}

#[tokio::test]
async fn a_replica_that_leaves_the_routes_keeps_its_running_streams() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.queue.requests = 0;
    let rig = Rig::new([svc.clone()]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\none")
        .await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "one");
    let mut failing = svc.clone();
    failing.endpoints[0].ready = false;
    let mut without = svc;
    without.endpoints.clear();
    // One failed probe, then a drain, then the end of the whole service.
    for services in [vec![failing], vec![without], Vec::new()] {
        rig.routes.publish(table(services));
        // The worker has the new routes once it answers by them.
        let (status, _) = support::get(rig.address, "h", "/").await;
        assert!(status == 503 || status == 404);
        replica.send("two").await;
        assert_eq!(client.exactly(3).await, "two");
        assert_eq!(rig.proxy.loads().len(), 1, "it counts until it ends");
    }
    drop(replica);
    assert_eq!(client.rest().await, "");
    rig.idle().await;
}

#[tokio::test]
async fn a_request_sent_ahead_does_not_hold_the_answer_before_it_back() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    assert_eq!(replica.head().await[0], "get /1 http/1.1");
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
        .await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "one");
    replica.send("two").await;
    assert_eq!(client.exactly(3).await, "two");
    let head = tokio::select! {
        head = replica.head() => head,
        fresh = connections.recv() => fresh.expect("it listens").head().await,
    };
    assert_eq!(head[0], "get /2 http/1.1");
}

/// Writes until the other side has taken nothing for a while, or all is written.
async fn write_until_stalled(hand: &mut Hand, written: &AtomicUsize) {
    let block = vec![b'x'; 64 << 10];
    while written.load(Ordering::Relaxed) < LARGE {
        let write = hand.0.write(&block);
        match tokio::time::timeout(Duration::from_millis(500), write).await {
            Ok(count) => written.fetch_add(count.expect("open"), Ordering::Relaxed),
            Err(_) => return,
        };
    }
}

async fn write_rest(hand: &mut Hand, written: &AtomicUsize) {
    let block = vec![b'x'; 64 << 10];
    while let left @ 1.. = LARGE - written.load(Ordering::Relaxed).min(LARGE) {
        let block = &block[..left.min(block.len())];
        let count = soon("room", hand.0.write(block)).await.expect("open");
        written.fetch_add(count, Ordering::Relaxed);
    }
}

async fn read_all(hand: &mut Hand) {
    let (mut read, mut block) = (0, vec![0; 64 << 10]);
    while read < LARGE {
        let left = block.len().min(LARGE - read);
        let count = soon("bytes", hand.0.read(&mut block[..left]))
            .await
            .expect("open");
        assert!(count > 0, "cut after {read}");
        read += count;
    }
}

/// It may well say all before it listens: what it leaves meanwhile is bounded from its last part on.
#[tokio::test]
async fn a_client_that_sends_for_long_and_takes_nothing_meanwhile_gets_its_answer() {
    const BOUND: Duration = Duration::from_secs(2);
    let config = raftserve_proxy::ProxyConfig {
        client_user_timeout: BOUND,
        ..support::config()
    };
    let (address, mut connections) = by_hand().await;
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(config, services, Arc::new(raftserve_proxy::NoSessions));
    let mut client = Hand::connect(rig.address).await;
    let head = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    client.send(head).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let (mut reads, mut writes) = replica.0.into_inner().into_split();
    let answers = tokio::spawn(async move {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
        writes.write_all(head.as_bytes()).await?;
        let part = vec![b'x'; MIB];
        for _ in 0..LARGE / MIB {
            writes.write_all(&part).await?;
        }
        std::io::Result::Ok(writes)
    });
    let takes = tokio::spawn(async move {
        let mut upload = Vec::new();
        while !upload.ends_with(b"0\r\n\r\n") && reads.read_buf(&mut upload).await? > 0 {}
        std::io::Result::Ok(reads)
    });
    // The kernel asks for room when nothing comes for some 200 ms, and counts from then.
    let mut pace = tokio::time::interval(BOUND * 7 / 10);
    for _ in 0..5 {
        pace.tick().await;
        client.send("1\r\nx\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    let mut taken = 0;
    let mut part = vec![0; MIB];
    while taken < LARGE {
        let read = soon("the answer", client.0.read(&mut part)).await;
        let count = read.expect("it is not cut");
        assert!(count > 0, "it ends after {taken} bytes");
        taken += count;
    }
    let sent = soon("the answer's end", answers).await.expect("no panic");
    let took = soon("the request's end", takes).await.expect("no panic");
    drop((sent.expect("it is taken"), took.expect("it comes")));
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_replica_back() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"
        ))
        .await;
    let written = Arc::new(AtomicUsize::new(0));
    write_until_stalled(&mut replica, &written).await;
    assert!(written.load(Ordering::Relaxed) < BUFFERED_MAX);
    assert_eq!(rig.proxy.loads().len(), 1);
    client.head().await;
    tokio::join!(write_rest(&mut replica, &written), read_all(&mut client));
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_does_not_read_holds_the_client_back() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {LARGE}\r\n\r\n"
        ))
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let written = Arc::new(AtomicUsize::new(0));
    write_until_stalled(&mut client, &written).await;
    assert!(written.load(Ordering::Relaxed) < BUFFERED_MAX);
    tokio::join!(write_rest(&mut client, &written), read_all(&mut replica));
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ok");
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_takes_nothing_for_longer_than_a_host_may_be_silent_is_waited_for() {
    let mut config = support::config();
    config.host_silence = Duration::from_secs(1);
    let (address, mut connections) = by_hand().await;
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(config, services, Arc::new(raftserve_proxy::NoSessions));
    let mut client = Hand::connect(rig.address).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {LARGE}\r\n\r\n"
        ))
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let written = Arc::new(AtomicUsize::new(0));
    write_until_stalled(&mut client, &written).await;
    // Three times as long, in which the connection must not end.
    let ended = tokio::time::timeout(Duration::from_secs(3), client.head());
    assert!(ended.await.is_err(), "it was given up");
    tokio::join!(write_rest(&mut client, &written), read_all(&mut replica));
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ok");
}

#[tokio::test]
async fn a_slow_upload_may_outlast_the_stream_timeout() {
    let (address, mut connections) = by_hand().await;
    let mut slow = service(1, "svc", &[address]);
    slow.stream_timeout = Duration::from_millis(1_500);
    let rig = Rig::new([slow]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..10 {
        pace.tick().await;
        client.send("x").await;
        replica.exactly(1).await;
    }
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
}

/// As a call of gRPC whose replica has sent its head, and answers once it has heard all.
#[tokio::test]
async fn a_slow_upload_may_outlast_the_longest_silence_of_its_answer() {
    let (address, mut connections) = by_hand().await;
    let mut slow = service(1, "svc", &[address]);
    slow.stream_timeout = Duration::from_millis(1_500);
    let rig = Rig::new([slow]);
    let mut client = Hand::connect(rig.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 15\r\n\r\n")
        .await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        .await;
    client.head().await;
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..15 {
        pace.tick().await;
        client.send("x").await;
        replica.exactly(1).await;
    }
    replica.send("k").await;
    assert_eq!(client.exactly(2).await, "ok");
}

/// A replica that answers with as many bytes as it is asked for.
async fn of_any_size(config: ProxyConfig) -> Rig {
    let address = support::upstream(async |request| {
        let bytes = request.uri().path()[1..].parse().expect("a number");
        http::Response::new(http_body_util::Full::from(vec![b'x'; bytes]))
    });
    let services = [service(1, "svc", &[address.await])];
    Rig::with(config, services, Arc::new(NoSessions))
}

/// Asks for answers of many sizes. The library drops a body once it has all of it, and may hold hundreds of kilobytes then:
/// those of some of these, whatever the kernel's buffers hold.
async fn ask_for_many(rig: &Rig, fields: &str) -> Vec<(Hand, usize)> {
    const SIZES: std::ops::Range<usize> = 2 * MIB..7 * MIB;
    const STEP: usize = 320 << 10;
    let mut clients = Vec::new();
    for bytes in SIZES.step_by(STEP) {
        let mut client = Hand::connect(rig.address).await;
        let request = format!("GET /{bytes} HTTP/1.1\r\nhost: h\r\n{fields}\r\n");
        client.send(request).await;
        clients.push((client, bytes));
    }
    clients
}

#[tokio::test]
async fn an_answer_arrives_whole_however_long_its_client_pauses_before_it_takes_the_rest() {
    let rig = of_any_size(ProxyConfig {
        header_timeout: Duration::from_millis(500),
        ..support::config()
    })
    .await;
    for fields in ["", "te: trailers\r\n"] {
        let clients = ask_for_many(&rig, fields).await;
        // Those without a head are let go meanwhile, one after the other.
        for _ in 0..3 {
            Hand::connect(rig.address).await.rest().await;
        }
        let mut takes = JoinSet::new();
        for (mut client, bytes) in clients {
            takes.spawn(async move {
                assert_eq!(client.head().await[0], "http/1.1 200 ok");
                let mut answer = vec![0; bytes];
                let read = soon("the answer", client.0.read_exact(&mut answer)).await;
                read.map(drop).map_err(|error| (bytes, error))
            });
        }
        let taken = soon("all", takes.join_all()).await;
        let cut: Vec<_> = taken.into_iter().filter_map(Result::err).collect();
        assert!(cut.is_empty(), "{fields:?}: {cut:?}");
    }
}

#[tokio::test]
async fn a_client_that_takes_no_more_of_an_answer_is_let_go() {
    let rig = of_any_size(ProxyConfig {
        header_timeout: Duration::from_millis(500),
        client_user_timeout: Duration::from_secs(1),
        ..support::config()
    })
    .await;
    for fields in ["", "te: trailers\r\n"] {
        let _clients = ask_for_many(&rig, fields).await;
        let ended = || rig.peer_metric("open_connections") == 0;
        support::until("the end of all connections", ended).await;
        rig.idle().await;
    }
}

/// Asks for more than all buffers hold, takes nothing of it, and awaits the end of the replica's connection.
async fn overdue(rig: &Rig, connections: &mut tokio::sync::mpsc::Receiver<Hand>, fields: &str) {
    let mut client = Hand::connect(rig.address).await;
    let request = format!("POST / HTTP/1.1\r\nhost: h\r\n{fields}content-length: 0\r\n\r\n");
    client.send(request).await;
    let mut replica = support::accept(connections).await;
    replica.head().await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
    replica.send(head).await;
    let part = vec![b'x'; MIB];
    let sends = async { while replica.0.write_all(&part).await.is_ok() {} };
    soon("the end of the replica's connection", sends).await;
    let rest = client.rest().await;
    assert!(rest.starts_with("HTTP/1.1 200 OK"), "{fields}");
    assert!(rest.len() < LARGE, "{fields}");
}

#[tokio::test]
async fn the_time_of_a_request_runs_out_while_its_client_takes_nothing() {
    const TIME: Duration = Duration::from_secs(1);
    let (address, mut connections) = by_hand().await;
    let (mut timed, mut free) = (
        service(1, "svc", &[address]),
        service(2, "free", &[address]),
    );
    timed.stream_timeout = LIMIT * 2;
    timed.traffic.timeouts.total = Some(TIME);
    free.stream_timeout = LIMIT * 2;
    free.traffic.upstream.protocol = UpstreamProtocol::Http1;
    let grpc = "content-type: application/grpc\r\nte: trailers\r\ngrpc-timeout: 1S\r\n";
    for (svc, fields) in [(timed, ""), (free, grpc)] {
        let rig = Rig::new([svc]);
        let begun = std::time::Instant::now();
        overdue(&rig, &mut connections, fields).await;
        assert!(begun.elapsed() >= TIME, "{fields}");
        rig.idle().await;
        support::until("the end of the client's connection", || {
            rig.peer_metric("open_connections") == 0
        })
        .await;
    }
}

#[tokio::test]
async fn the_time_of_a_request_ends_with_its_answer() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.timeouts.total = Some(Duration::from_millis(500));
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n";
    replica.send(format!("{answer}ok")).await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ok");
    // Another's runs out later.
    overdue(&rig, &mut connections, "").await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica.send(format!("{answer}ok")).await;
    client.head().await;
    assert_eq!(client.exactly(2).await, "ok");
}
