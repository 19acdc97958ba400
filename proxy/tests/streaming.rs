//! Bodies flow as they come, both ways, and who is slow slows the other side and nothing else.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use support::{Hand, Rig, by_hand, service, soon, table, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// The library holds its last part long after the proxy has let go of it.
#[tokio::test]
async fn an_answer_is_whole_whose_client_reads_late() {
    const HEAD_WITHIN: Duration = Duration::from_millis(500);
    let config = raftserve_proxy::ProxyConfig {
        header_timeout: HEAD_WITHIN,
        ..support::config()
    };
    let whole = upstream(async |request| {
        let bytes = request.uri().path().trim_matches('/').parse();
        Response::new(Full::from(vec![b'x'; bytes.expect("a number")]))
    });
    let services = [service(1, "svc", &[whole.await])];
    let rig = Rig::with(config, services, Arc::new(raftserve_proxy::NoSessions));
    // The short path carries none that asks for trailers.
    for field in ["", "te: trailers\r\n"] {
        let mut clients = Vec::new();
        // What the kernel has room for is between.
        for bytes in (1..=60).map(|step| step * 100_000) {
            let mut client = Hand::connect(rig.address).await;
            let ask = format!("GET /{bytes} HTTP/1.1\r\nhost: h\r\n{field}\r\n");
            client.send(ask).await;
            clients.push((client, bytes));
        }
        tokio::time::sleep(HEAD_WITHIN * 4).await;
        for (mut client, bytes) in clients {
            assert_eq!(client.head().await[0], "http/1.1 200 ok");
            let mut body = vec![0; bytes];
            let read = soon("the answer", client.0.read_exact(&mut body)).await;
            read.unwrap_or_else(|error| panic!("{bytes} bytes, {field:?}: {error}"));
        }
    }
    rig.idle().await;
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
