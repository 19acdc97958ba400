//! How long clients' connections last, and that none of their requests is lost when they end.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use raftserve_proxy::{NoSessions, ProxyConfig};
use support::{
    Hand, LIMIT, Rig, by_hand, config, http2_client, log, recorder, service, soon, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

fn rig(config: ProxyConfig, address: std::net::SocketAddr) -> Rig {
    Rig::with(
        config,
        [service(1, "svc", &[address])],
        Arc::new(NoSessions),
    )
}

fn closes(head: &[String]) -> bool {
    head.iter().any(|line| line == "connection: close")
}

#[tokio::test]
async fn an_old_connection_is_told_with_its_next_answer() {
    let mut config = config();
    config.connection_age = Some(Duration::from_millis(300));
    let rig = rig(config, recorder("a", &log()).await);
    let mut client = Hand::connect(rig.address).await;
    let mut answers = 0;
    let start = std::time::Instant::now();
    loop {
        let (head, body) = client.ask(GET).await;
        assert_eq!(body, "a", "no request is lost");
        answers += 1;
        if closes(&head) {
            break;
        }
    }
    assert!(answers > 1, "not the first");
    assert!(start.elapsed() >= Duration::from_millis(270));
    assert_eq!(client.rest().await, "");
}

fn request() -> Request<Full<Bytes>> {
    let request = Request::get("http://svc/").body(Full::default());
    request.expect("a good request")
}

#[tokio::test]
async fn an_old_http_2_connection_gets_goaway_and_its_streams_finish() {
    let (address, mut connections) = by_hand().await;
    let mut config = config();
    config.connection_age = Some(Duration::from_millis(200));
    let rig = rig(config, address);
    let (mut sender, mut connection) = http2_client(&rig).await;
    let answer = tokio::spawn(sender.send_request(request()));
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    // Longer than the connection's age.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut connection).await;
    assert!(early.is_err(), "a stream still runs");
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    replica.send(head).await;
    let answer = soon("an answer", answer).await.expect("no panic");
    let body = answer.expect("an answer").into_body().collect();
    assert_eq!(soon("a body", body).await.expect("a body").to_bytes(), "ok");
    let ended = soon("the end", connection).await.expect("no panic");
    ended.expect("GOAWAY is a proper end");
}

#[tokio::test]
async fn streams_beyond_the_grace_of_an_old_connection_are_cut() {
    let (address, mut connections) = by_hand().await;
    let mut config = config();
    config.connection_age = Some(Duration::from_millis(100));
    config.connection_age_grace = Some(Duration::from_millis(200));
    let rig = rig(config, address);
    let (mut sender, connection) = http2_client(&rig).await;
    let answer = tokio::spawn(sender.send_request(request()));
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    soon("the cut", answer)
        .await
        .expect("no panic")
        .expect_err("it was cut");
    let _ = soon("the end", connection).await.expect("no panic");
    assert_eq!(replica.rest().await, "", "the replica is told");
    rig.idle().await;
}

#[tokio::test]
async fn an_unused_http_2_connection_ends_and_one_with_a_stream_does_not() {
    let (address, mut connections) = by_hand().await;
    let mut config = config();
    config.http2_idle = Duration::from_millis(200);
    let rig = rig(config, address);
    let (mut busy, busy_connection) = http2_client(&rig).await;
    let answer = tokio::spawn(busy.send_request(request()));
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        .await;
    let answer = soon("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    for _ in 0..2 {
        let (_unused, connection) = http2_client::<Full<Bytes>>(&rig).await;
        let ended = soon("the end", connection).await.expect("no panic");
        ended.expect("GOAWAY is a proper end");
    }
    // Twice its idle time later, its stream is whole.
    assert!(!busy_connection.is_finished());
    replica.send("k").await;
    let body = soon("a body", answer.into_body().collect())
        .await
        .expect("a body");
    assert_eq!(body.to_bytes(), "ok");
}

/// A request that an idle connection sends while its peer stops is answered, however late it comes.
#[tokio::test]
async fn an_idle_connection_may_send_one_more_request_after_the_ports_closed() {
    let config = ProxyConfig {
        idle_grace: LIMIT,
        ..config()
    };
    let rig = rig(config, recorder("a", &log()).await);
    let mut used = Hand::connect(rig.address).await;
    let mut unused = Hand::connect(rig.address).await;
    assert!(!closes(&used.ask(GET).await.0));
    let address = rig.address;
    let stopped = tokio::spawn(rig.proxy.shutdown(LIMIT * 2));
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    soon("a closed port", closed).await;
    // Far longer than a connection that closed at once would take to be gone.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for client in [&mut used, &mut unused] {
        let (head, body) = client.ask(GET).await;
        assert_eq!(body, "a");
        assert!(closes(&head), "{head:?}");
        assert_eq!(client.rest().await, "");
    }
    soon("the stop, without the rest of the grace", stopped)
        .await
        .expect("no panic");
}

#[tokio::test]
async fn idle_connections_end_with_their_grace() {
    let config = ProxyConfig {
        idle_grace: Duration::from_millis(300),
        ..config()
    };
    let rig = rig(config, recorder("a", &log()).await);
    let mut idle = Hand::connect(rig.address).await;
    idle.ask(GET).await;
    let start = std::time::Instant::now();
    soon("the stop", rig.proxy.shutdown(LIMIT * 2)).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(idle.rest().await, "");
}

#[tokio::test]
async fn blank_lines_alone_keep_no_connection() {
    let mut config = config();
    config.header_timeout = Duration::from_millis(300);
    config.http1_rest_after = Duration::ZERO;
    let rig = rig(config, recorder("a", &log()).await);
    for asked in [false, true] {
        let mut client = Hand::connect(rig.address).await;
        if asked {
            assert_eq!(client.ask(GET).await.1, "a");
        }
        let (mut reading, mut writing) = client.0.into_inner().into_split();
        let talking = tokio::spawn(async move {
            // An error is the end, which the reader sees too.
            while writing.write_all(b"\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut bytes = Vec::new();
        // A reset counts as an end.
        let _ = soon("the end", reading.read_to_end(&mut bytes)).await;
        talking.abort();
    }
}

#[tokio::test]
async fn one_client_more_than_may_be_connected_waits_until_another_leaves() {
    let rig = rig(at_most(2), recorder("a", &log()).await);
    let mut first = Hand::connect(rig.address).await;
    let mut second = Hand::connect(rig.address).await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask(GET).await.1, "a");
    }
    // The kernel has connected it, and nobody has accepted it.
    let mut third = Hand::connect(rig.address).await;
    third.send(GET).await;
    // Those who are connected are served meanwhile, turn after turn.
    for _ in 0..20 {
        assert_eq!(first.ask(GET).await.1, "a");
        assert_eq!(second.ask(GET).await.1, "a");
    }
    let mut byte = [0];
    let early = third.0.get_ref().try_read(&mut byte);
    assert!(early.is_err(), "{early:?}");
    drop(first);
    assert_eq!(third.head().await[0], "http/1.1 200 ok");
    assert_eq!(third.exactly(1).await, "a");
    assert_eq!(second.ask(GET).await.1, "a");
}

/// A config of one worker that takes so many clients.
fn at_most(connections_max: usize) -> ProxyConfig {
    ProxyConfig {
        workers: std::num::NonZeroUsize::new(1),
        connections_max,
        ..config()
    }
}

/// The kernel spreads them unevenly over the workers.
#[tokio::test]
async fn the_places_of_clients_are_the_peers_whichever_workers_they_meet() {
    const PLACES: usize = 8;
    let config = ProxyConfig {
        workers: std::num::NonZeroUsize::new(PLACES),
        ..at_most(PLACES)
    };
    let rig = rig(config, recorder("a", &log()).await);
    let mut clients = Vec::new();
    for _ in 0..PLACES {
        let mut client = Hand::connect(rig.address).await;
        assert_eq!(client.ask(GET).await.1, "a");
        clients.push(client);
    }
    let mut last = Hand::connect(rig.address).await;
    last.send(GET).await;
    for _ in 0..10 {
        for client in &mut clients {
            assert_eq!(client.ask(GET).await.1, "a");
        }
    }
    for count in [
        "connections_total",
        "open_connections",
        "open_connections_max",
    ] {
        assert_eq!(rig.peer_metric(count), PLACES as u64, "{count}");
    }
    clients.pop();
    assert_eq!(last.head().await[0], "http/1.1 200 ok");
    drop((clients, last));
    until("no client", || rig.peer_metric("open_connections") == 0).await;
}

/// The HTTP library lets go of its connection, whose socket is open still.
#[tokio::test]
async fn a_tunnel_counts_as_a_client_until_it_ends() {
    const SWITCHED: &str =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (address, mut connections) = by_hand().await;
    let rig = rig(at_most(1), address);
    let mut client = Hand::connect(rig.address).await;
    let upgrade = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.send(upgrade).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica.send(SWITCHED).await;
    assert_eq!(client.head().await[0], "http/1.1 101 switching protocols");
    let mut second = Hand::connect(rig.address).await;
    second.send(GET).await;
    // The one worker passes these on meanwhile, turn after turn.
    for _ in 0..50 {
        client.send("ask").await;
        assert_eq!(replica.exactly(3).await, "ask");
        replica.send("answer").await;
        assert_eq!(client.exactly(6).await, "answer");
    }
    assert_eq!(rig.peer_metric("connections_total"), 1);
    drop(client);
    assert_eq!(replica.rest().await, "");
    assert_eq!(
        rig.peer_metric("connections_total"),
        1,
        "the tunnel's other half is open"
    );
    drop(replica);
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na")
        .await;
    assert_eq!(second.head().await[0], "http/1.1 200 ok");
}

#[tokio::test]
async fn ports_that_nobody_connects_to_take_no_place_of_a_client() {
    const PORTS: u64 = 4;
    let replica = recorder("a", &log()).await;
    let own: Vec<_> = (0..PORTS).map(|_| support::nowhere()).collect();
    let services = own.iter().zip(1..).map(|(own, id)| {
        let mut service = service(id, &format!("svc-{id}"), &[replica]);
        service.port = Some(own.port());
        service
    });
    let rig = Rig::with(at_most(1), services, Arc::new(NoSessions));
    let mut ports = rig.proxy.ports();
    let open = ports.wait_for(|ports| ports.len() as u64 == PORTS);
    soon("open ports", open).await.expect("it runs");
    // Each in turn, and the shared one: the only place goes from port to port.
    for _ in 0..2 {
        for &address in &own {
            let mut client = Hand::connect(address).await;
            assert_eq!(client.ask(GET).await.1, "a");
        }
        let mut client = Hand::connect(rig.address).await;
        assert_eq!(
            client.ask("GET / HTTP/1.1\r\nhost: svc-1\r\n\r\n").await.1,
            "a"
        );
    }
    // With one who stays, the next waits at whatever port.
    let mut stays = Hand::connect(own[0]).await;
    assert_eq!(stays.ask(GET).await.1, "a");
    let before = rig.peer_metric("connections_total");
    let mut waits = Hand::connect(own[1]).await;
    waits.send(GET).await;
    for _ in 0..50 {
        assert_eq!(stays.ask(GET).await.1, "a");
    }
    assert_eq!(rig.peer_metric("connections_total"), before);
    drop(stays);
    assert_eq!(waits.head().await[0], "http/1.1 200 ok");
}

/// A client that sends so many bytes at such a pace, and reads: how long its connection lasted.
async fn dribble(address: std::net::SocketAddr, bytes: &[u8], pace: Duration) -> Duration {
    // Before the connection is there, whose time may begin any moment from then on.
    let begin = std::time::Instant::now();
    let mut client = TcpStream::connect(address).await.expect("it listens");
    let mut pace = tokio::time::interval(pace);
    let (mut read, mut write) = client.split();
    let send = async {
        for byte in bytes {
            pace.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut rest = Vec::new();
    tokio::select! {
        () = send => unreachable!("it waits"),
        // By a reset, if a byte comes when it is closed.
        _ = soon("the end", read.read_to_end(&mut rest)) => {}
    }
    assert_eq!(String::from_utf8_lossy(&rest), "");
    begin.elapsed()
}

/// Every step of a connection's beginning has what is left of one time: whoever hands it on gives it no more.
#[tokio::test]
async fn a_head_that_comes_byte_by_byte_has_one_time_from_the_first_on() {
    const TIME: Duration = Duration::from_secs(6);
    /// Another such time from the second byte on ends by as much later, and from the third by twice as much.
    const PACE: Duration = Duration::from_millis(2_800);
    let mut config = config();
    config.header_timeout = TIME;
    let rig = rig(config, recorder("a", &log()).await);
    let head = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (plain, http2) = tokio::join!(
        dribble(rig.address, head.as_bytes(), PACE),
        dribble(rig.address, preface.as_bytes(), PACE),
    );
    for lasted in [plain, http2] {
        assert!(lasted >= TIME, "{lasted:?}");
        assert!(lasted < TIME + PACE, "{lasted:?}");
    }
    assert_eq!(rig.metric("requests_total"), 0);
}
