//! A small request beside many large bodies: it waits for a part of them, however many they are.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig};
use support::{Hand, LIMIT, Rig, config, service, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How many bodies are under way.
const BODIES: usize = 100;

/// What is written at once by whoever sends one.
const PIECE_BYTES: usize = 256 << 10;

/// A body longer than anybody waits for.
const LENGTH: &str = "content-length: 1000000000000000\r\n";

/// A switch of protocols.
const SWITCH: &str = "connection: upgrade\r\nupgrade: large\r\n";

/// How much of all bodies may pass while one small request is answered. 3 MB do; where bodies take no turns, 120 MB do on the general
/// path and 1.3 GB on the short one.
const MEANWHILE_MAX: u64 = 20 << 20;

/// Where bodies come from, and where they go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Up,
    /// To the client after a switch of protocols.
    Switched,
}

/// What has reached its end of all bodies.
#[derive(Default)]
struct Passed {
    bytes: AtomicU64,
    /// How many have brought more than their connections hold.
    flowing: AtomicUsize,
}

/// Reads for ever.
async fn take(mut stream: TcpStream, passed: &Passed) {
    const FLOWS_BYTES: usize = 1 << 20;
    let mut room = vec![0; PIECE_BYTES];
    let mut taken = 0;
    while let Ok(count @ 1..) = stream.read(&mut room).await {
        passed.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let flowed = taken >= FLOWS_BYTES;
        taken += count;
        if !flowed && taken >= FLOWS_BYTES {
            passed.flowing.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes for ever.
async fn give(mut stream: TcpStream) {
    let piece = vec![b'x'; PIECE_BYTES];
    while stream.write_all(&piece).await.is_ok() {}
}

/// A replica that sends or takes without an end, and answers what is small at once.
async fn replica(way: Way, passed: Arc<Passed>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let passed = Arc::clone(&passed);
            tokio::spawn(async move {
                let mut hand = Hand::new(stream);
                loop {
                    let head = hand.head().await;
                    let Some(line) = head.first() else {
                        return;
                    };
                    if !line.contains("/large") {
                        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        hand.send(answer).await;
                        continue;
                    }
                    hand.send(match way {
                        Way::Down => format!("HTTP/1.1 200 OK\r\n{LENGTH}\r\n"),
                        Way::Switched => {
                            format!("HTTP/1.1 101 Switching Protocols\r\n{SWITCH}\r\n")
                        }
                        Way::Up => String::new(),
                    })
                    .await;
                    let stream = hand.0.into_inner();
                    return match way {
                        Way::Down | Way::Switched => give(stream).await,
                        Way::Up => take(stream, &passed).await,
                    };
                }
            });
        }
    });
    address
}

/// How much of the large bodies passes while one small request is answered.
async fn passed_meanwhile(path: Http1Path, way: Way) -> u64 {
    const ASKED: u64 = 20;
    let passed = Arc::<Passed>::default();
    let address = replica(way, Arc::clone(&passed)).await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.connect_timeout = LIMIT;
    let config = ProxyConfig {
        workers: Some(NonZeroUsize::MIN),
        http1_path: path,
        ..config()
    };
    let rig = Rig::with(config, [svc], Arc::new(NoSessions));
    let mut small = Hand::connect(rig.address).await;
    for _ in 0..BODIES {
        let stream = TcpStream::connect(rig.address).await;
        let mut stream = stream.expect("it listens");
        let passed = Arc::clone(&passed);
        tokio::spawn(async move {
            let (method, fields) = match way {
                Way::Down => ("GET", ""),
                Way::Up => ("POST", LENGTH),
                Way::Switched => ("GET", SWITCH),
            };
            let head = format!("{method} /large HTTP/1.1\r\nhost: svc\r\n{fields}\r\n");
            let sent = stream.write_all(head.as_bytes()).await;
            sent.expect("it takes the head");
            match way {
                Way::Down | Way::Switched => take(stream, &passed).await,
                Way::Up => give(stream).await,
            }
        });
    }
    until("all bodies are under way", || {
        passed.flowing.load(Ordering::Relaxed) == BODIES
    })
    .await;
    let before = passed.bytes.load(Ordering::Relaxed);
    for _ in 0..ASKED {
        let (head, body) = small.ask("GET / HTTP/1.1\r\nhost: svc\r\n\r\n").await;
        assert_eq!((head[0].as_str(), body.as_str()), ("http/1.1 200 ok", "ok"));
    }
    (passed.bytes.load(Ordering::Relaxed) - before) / ASKED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_request_does_not_wait_for_all_large_bodies() {
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        for way in [Way::Down, Way::Up, Way::Switched] {
            let bytes = passed_meanwhile(path, way).await;
            assert!(bytes < MEANWHILE_MAX, "{path:?}, {way:?}: {bytes} bytes");
        }
    }
}
