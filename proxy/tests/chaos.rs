//! Replicas that misbehave in every way at once: no request hangs, none is counted for ever, and what is held
//! stays bounded.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig};
use support::{
    Hand, Rig, by_hand, config, log, recorder, resident_bytes, service, soon, try_ask, until,
};
use tokio::io::AsyncWriteExt;

/// What a bad replica does with each request.
#[derive(Clone, Copy, Debug)]
enum Vice {
    /// Closes with what was sent unread, which resets.
    Resets,
    /// Says nothing.
    Stalls,
    /// Begins an answer, and says nothing more.
    StallsWithin,
    Garbage,
    /// Ends its own side before it answers.
    HalfCloses,
    /// Sends an answer without an end, as fast as it is taken.
    SendsForEver,
    /// Sends a head without an end.
    HeadForEver,
    /// Closes within a chunk.
    CutsOff,
}

const VICES: [Vice; 8] = [
    Vice::Resets,
    Vice::Stalls,
    Vice::StallsWithin,
    Vice::Garbage,
    Vice::HalfCloses,
    Vice::SendsForEver,
    Vice::HeadForEver,
    Vice::CutsOff,
];

/// A replica with a vice, until `done`.
async fn bad(vice: Vice, done: &Arc<AtomicBool>) -> SocketAddr {
    let (address, mut connections) = by_hand().await;
    let done = Arc::clone(done);
    tokio::spawn(async move {
        while let Some(replica) = connections.recv().await {
            tokio::spawn(misbehave(vice, replica, Arc::clone(&done)));
        }
    });
    address
}

async fn misbehave(vice: Vice, mut replica: Hand, done: Arc<AtomicBool>) {
    if matches!(vice, Vice::Resets) {
        return;
    }
    let read = tokio::time::timeout(Duration::from_secs(5), replica.head()).await;
    if read.is_err() {
        return;
    }
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let stream = replica.0.get_mut();
    let silent = async || {
        while !done.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match vice {
        Vice::Resets => {}
        Vice::Stalls => silent().await,
        Vice::StallsWithin => {
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(b"1\r\nx\r\n").await;
            silent().await;
        }
        Vice::Garbage => {
            let _ = stream
                .write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3])
                .await;
        }
        Vice::HalfCloses => {
            let _ = stream.shutdown().await;
            silent().await;
        }
        Vice::SendsForEver => {
            let _ = stream.write_all(head.as_bytes()).await;
            let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
            while !done.load(Ordering::Relaxed) && stream.write_all(&chunk).await.is_ok() {}
        }
        Vice::HeadForEver => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while !done.load(Ordering::Relaxed)
                && stream.write_all(b"x-more: yes\r\n").await.is_ok()
            {
                tokio::task::yield_now().await;
            }
        }
        Vice::CutsOff => {
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(b"ff\r\nx").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_replicas_hang_no_request_and_leave_nothing_behind() {
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        meet_bad_replicas(path).await;
    }
}

async fn meet_bad_replicas(path: Http1Path) {
    const ROUNDS: usize = 12;
    const AT_ONCE: usize = 16;
    let done = Arc::<AtomicBool>::default();
    let mut addresses = Vec::new();
    for vice in VICES {
        addresses.push(bad(vice, &done).await);
    }
    addresses.push(recorder("good", &log()).await);
    let mut svc = service(1, "svc", &addresses);
    svc.policy = LoadBalancingPolicy::RoundRobin;
    // Each request meets them all again and again: nothing is learnt.
    svc.traffic.ejection.consecutive_errors = 0;
    svc.traffic.timeouts.first_byte = Some(Duration::from_millis(300));
    svc.traffic.timeouts.idle = Some(Duration::from_millis(300));
    svc.traffic.timeouts.total = Some(Duration::from_secs(1));
    let config = ProxyConfig {
        http1_path: path,
        ..config()
    };
    let rig = Rig::with(config, [svc], Arc::new(NoSessions));
    let before = resident_bytes();
    for round in 0..ROUNDS {
        let asks = (0..AT_ONCE).map(|n| {
            let (address, post) = (rig.address, (round + n) % 2 == 0);
            tokio::spawn(async move {
                let request = if post {
                    Request::post("/")
                } else {
                    Request::get("/")
                };
                let body = if post { "body" } else { "" };
                let request = request
                    .header("host", "h")
                    .body(Full::new(Bytes::from(body)));
                if let Ok(answer) = try_ask(address, request.expect("a good request")).await {
                    let mut body = answer.into_body();
                    // Whole or broken off: it ends.
                    while let Some(Ok(_)) = body.frame().await {}
                }
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            soon("an end of a request", ask).await.expect("no panic");
        }
    }
    rig.idle().await;
    until("no request running", || {
        rig.metric("requests_in_flight") == 0
    })
    .await;
    assert_eq!(rig.metric("requests_total"), (ROUNDS * AT_ONCE) as u64);
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 128 << 20,
        "{path:?}: {grown} bytes more than before"
    );
    done.store(true, Ordering::Relaxed);
}
