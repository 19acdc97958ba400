//! What the proxy holds for a client of HTTP/2 that tells of much room and takes nothing. Alone in its process, whose memory
//! it measures.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use raftserve_proxy::NoSessions;
use support::{
    END_HEADERS, END_STREAM, HEADERS, Hand, LIMIT, Rig, SETTINGS, WINDOW_UPDATE, by_hand, config,
    frame, resident_bytes, service, until,
};
use tokio::io::AsyncWriteExt;

const STREAMS: usize = 200;

/// Were each stream's answer buffered as far as the library would, it were some 80 MiB.
const HELD_MAX: usize = 24 << 20;

/// A client that has asked this often, with windows as large as they may be, and reads nothing.
async fn asks(rig: &Rig) -> Hand {
    let most = i32::MAX.to_be_bytes();
    let mut client = Hand::connect(rig.address).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let settings = [&[0, 4][..], &most].concat(); // SETTINGS_INITIAL_WINDOW_SIZE.
    client.send(frame(SETTINGS, 0, 0, &settings)).await;
    let room = (i32::MAX - 65_535).to_be_bytes();
    client.send(frame(WINDOW_UPDATE, 0, 0, &room)).await;
    // GET http://h/, by the static table of HPACK.
    let get = [0x82, 0x86, 0x84, 0x41, 1, b'h'];
    for n in 0..STREAMS {
        let stream = u32::try_from(2 * n + 1).expect("few");
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
        client.send(head).await;
    }
    client
}

#[tokio::test]
async fn many_streams_with_huge_windows_have_little_held_for_them() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    // On a machine with much else to do, the replica would be taken for dead.
    svc.traffic.upstream.connect_timeout = LIMIT;
    let rig = Rig::with(config(), [svc], Arc::new(NoSessions));
    let before = resident_bytes();
    let client = asks(&rig).await;
    // Nobody answers before all are connected: endless answers starve the connections of others.
    let mut replicas = Vec::new();
    for _ in 0..STREAMS {
        let mut replica = support::accept(&mut connections).await;
        replica.head().await;
        replicas.push(replica);
    }
    let sent = Arc::new(AtomicUsize::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let answers = replicas.into_iter().map(|mut replica| {
        let (sent, begun) = (Arc::clone(&sent), Arc::clone(&begun));
        tokio::spawn(async move {
            static PART: [u8; 64 << 10] = [b'x'; 64 << 10];
            // What is held here is the proxy's, not the kernel's for this socket.
            let socket = socket2::SockRef::from(replica.0.get_ref());
            socket.set_send_buffer_size(PART.len()).expect("open");
            let endless = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
            replica.send(endless).await;
            begun.fetch_add(1, Ordering::Relaxed);
            while let Ok(count) = replica.0.write(&PART).await {
                sent.fetch_add(count, Ordering::Relaxed);
            }
        })
    });
    let answers = answers.collect::<Vec<_>>();
    until("all are answered", || {
        begun.load(Ordering::Relaxed) == STREAMS
    })
    .await;
    // Until nothing more is taken.
    let mut last = 0;
    while last != sent.load(Ordering::Relaxed) {
        last = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let held = resident_bytes().saturating_sub(before);
    assert!(held < HELD_MAX, "{held} bytes are held");
    drop(client);
    for answer in answers {
        support::soon("the end of an answer", answer)
            .await
            .expect("no panic");
    }
    rig.idle().await;
}
