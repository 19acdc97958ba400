//! Replicas that misbehave in every way at once: no request hangs, none is counted for ever, and what is held
//! stays bounded.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use raftserve_model::spec::LoadBalancingPolicy;
use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig, ServiceRoute};
use support::{
    BROKEN, Hand, Rig, accept, by_hand, config, log, meet, recorder, resident_bytes, service, soon,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

/// Held by each test, as they measure what this process holds.
static MEASURED: Mutex<()> = Mutex::const_new(());

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
    /// Sends interim answers without an end.
    InterimsForEver,
    /// Closes within a chunk.
    CutsOff,
    /// Resets within an answer that ends with its connection.
    ResetsWithin,
}

const VICES: [Vice; 10] = [
    Vice::Resets,
    Vice::Stalls,
    Vice::StallsWithin,
    Vice::Garbage,
    Vice::HalfCloses,
    Vice::SendsForEver,
    Vice::HeadForEver,
    Vice::InterimsForEver,
    Vice::CutsOff,
    Vice::ResetsWithin,
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
        Vice::InterimsForEver => {
            let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
            while !done.load(Ordering::Relaxed)
                && stream.write_all(interim.as_bytes()).await.is_ok()
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Vice::CutsOff => {
            let head = head.replacen("\r\n", &format!("\r\n{BROKEN}: 1\r\n"), 1);
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(b"ff\r\nx").await;
        }
        Vice::ResetsWithin => {
            let head = format!("HTTP/1.1 200 OK\r\n{BROKEN}: 1\r\n\r\npart");
            let _ = stream.write_all(head.as_bytes()).await;
            // Until the proxy has read it: a reset overtakes what was not.
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read_u8()).await;
            if read.is_err() {
                replica.reset();
            }
        }
    }
}

/// Whether requests to this service take the short path: only that one keeps the spelling of fields.
async fn takes_the_short_path(config: &ProxyConfig, mut svc: ServiceRoute) -> bool {
    let (address, mut connections) = by_hand().await;
    svc.endpoints.truncate(1);
    svc.endpoints[0].address = address;
    let rig = Rig::with(config.clone(), [svc], Arc::new(NoSessions));
    let mut client = Hand::connect(rig.address).await;
    client
        .send("GET / HTTP/1.1\r\nhost: h\r\nX-MiXeD: 1\r\n\r\n")
        .await;
    let mut replica = accept(&mut connections).await;
    let mut line = String::new();
    while !line.to_lowercase().starts_with("x-mixed") {
        line.clear();
        let read = soon("a field", replica.0.read_line(&mut line)).await;
        assert!(read.expect("text") > 0, "there is no such field");
    }
    line.starts_with("X-MiXeD")
}

/// The longest silence that a service has here, and the whole time where it has one.
const SILENCE: Duration = Duration::from_millis(300);
const TOTAL: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_replicas_hang_no_request_and_leave_nothing_behind() {
    let _alone = MEASURED.lock().await;
    for (path, timed) in [
        (Http1Path::Fast, false),
        (Http1Path::Hyper, false),
        (Http1Path::Fast, true),
    ] {
        meet_bad_replicas(path, timed).await;
    }
}

/// `timed` if the service has timeouts of its own, with which the general path has its requests.
async fn meet_bad_replicas(path: Http1Path, timed: bool) {
    const ROUNDS: usize = 12;
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
    svc.stream_timeout = SILENCE;
    if timed {
        let timeouts = &mut svc.traffic.timeouts;
        timeouts.first_byte = Some(SILENCE);
        timeouts.idle = Some(SILENCE);
        timeouts.total = Some(TOTAL);
    }
    let config = ProxyConfig {
        http1_path: path,
        ..config()
    };
    // Settings that the short path does not know leave nothing of it to test.
    let short = path == Http1Path::Fast && !timed;
    assert_eq!(takes_the_short_path(&config, svc.clone()).await, short);
    let rig = Rig::with(config, [svc], Arc::new(NoSessions));
    meet(&rig, ROUNDS, &format!("{path:?}")).await;
    done.store(true, Ordering::Relaxed);
}

/// Sends an answer that has no end until nothing of it was taken for a while: how much was sent.
async fn send_until_nobody_takes(mut replica: Hand) -> (Hand, usize) {
    const WHILE: Duration = Duration::from_millis(500);
    let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
    replica
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let mut sent = 0;
    while tokio::time::timeout(WHILE, replica.0.write_all(&chunk))
        .await
        .is_ok_and(|written| written.is_ok())
    {
        sent += chunk.len();
    }
    (replica, sent)
}

/// What one request may hold that its client does not take, here and at both ends, which are all in this process.
const EACH_MAX: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_hold_little_of_what_is_sent_for_ever() {
    const CLIENTS: usize = 16;
    /// What is sent to one of them until nothing more is taken: the kernel's buffers of both connections have most of it.
    const SENT_MAX: usize = 40 << 20;
    let _alone = MEASURED.lock().await;
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        let (address, mut connections) = by_hand().await;
        let svc = service(1, "svc", &[address]);
        let config = ProxyConfig {
            http1_path: path,
            ..config()
        };
        let rig = Rig::with(config, [svc], Arc::new(NoSessions));
        let before = resident_bytes();
        let (mut clients, mut replicas) = (Vec::new(), Vec::new());
        for _ in 0..CLIENTS {
            let mut client = Hand::connect(rig.address).await;
            client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
            let mut replica = accept(&mut connections).await;
            replica.head().await;
            clients.push(client);
            replicas.push(tokio::spawn(send_until_nobody_takes(replica)));
        }
        let mut held_back = Vec::new();
        for replica in replicas {
            let sent = soon("a replica that is held back", replica).await;
            let (replica, sent) = sent.expect("no panic");
            assert!(sent < SENT_MAX, "{path:?}: {sent} bytes were taken");
            held_back.push(replica);
        }
        assert_eq!(rig.metric("requests_in_flight"), CLIENTS as u64);
        let grown = resident_bytes().saturating_sub(before);
        assert!(
            grown < CLIENTS * EACH_MAX,
            "{path:?}: {grown} bytes more than before"
        );
        drop((clients, held_back));
        rig.idle().await;
    }
}
