//! Requests over HTTP/1.1 whose replica takes no more of their body: each ends, and so does its connection.

mod support;

use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::Timeouts;
use raftserve_proxy::{NoSessions, ProxyConfig};
use support::{Hand, LIMIT, Rig, by_hand, service};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, interval};

/// How long a replica may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Many times what all buffers on its way hold.
const BODY_BYTES: usize = 128 << 20;

/// A client that sends as much as it can, and a replica that takes nothing of it.
struct Stuck {
    rig: Rig,
    client: Hand,
    replica: Hand,
}

async fn stuck(total: Option<Duration>) -> Stuck {
    // The kernel's bound would end them as well, if later.
    stuck_within(total, LIMIT * 10).await
}

/// The same, where the kernel has its own bound on what a replica does not take.
async fn stuck_within(total: Option<Duration>, tcp_user_timeout: Duration) -> Stuck {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.stream_timeout = SILENCE_MAX;
    svc.traffic.timeouts = Timeouts {
        total,
        ..Timeouts::default()
    };
    let config = ProxyConfig {
        tcp_user_timeout,
        ..support::config()
    };
    let rig = Rig::with(config, [svc], Arc::new(NoSessions));
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let stream = stream.into_std().expect("open");
    let sends = stream.try_clone().expect("a file");
    let mut sends = TcpStream::from_std(sends).expect("a runtime");
    let mut client = Hand::new(TcpStream::from_std(stream).expect("a runtime"));
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    client.send(head).await;
    tokio::spawn(async move {
        let part = [b'x'; 64 << 10];
        while sends.write_all(&part).await.is_ok() {}
    });
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    Stuck {
        rig,
        client,
        replica,
    }
}

impl Stuck {
    async fn begin_an_answer(&mut self) {
        let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n";
        self.replica.send(begun).await;
        assert_eq!(self.client.head().await[0], "http/1.1 200 ok");
    }

    /// Both sides see the end before that of the answer.
    async fn breaks_off(mut self) {
        let rest = self.client.rest().await;
        assert!(
            rest.contains("part") && !rest.ends_with("0\r\n\r\n"),
            "{rest}"
        );
        self.replica.cut().await;
        self.rig.idle().await;
    }
}

#[tokio::test]
async fn without_an_answer_it_ends_with_the_time_for_one() {
    let mut stuck = stuck(None).await;
    assert_eq!(stuck.client.head().await[0], "http/1.1 504 gateway timeout");
    stuck.replica.cut().await;
    stuck.rig.idle().await;
}

#[tokio::test]
async fn without_an_answer_it_ends_with_the_time_for_all_of_it() {
    const TOTAL: Duration = Duration::from_millis(500);
    let mut stuck = stuck(Some(TOTAL)).await;
    assert_eq!(stuck.client.head().await[0], "http/1.1 504 gateway timeout");
    stuck.replica.cut().await;
    stuck.rig.idle().await;
}

#[tokio::test]
async fn an_answer_that_falls_silent_ends_with_its_upload() {
    let mut stuck = stuck(None).await;
    let begun = Instant::now();
    stuck.begin_an_answer().await;
    stuck.breaks_off().await;
    assert!(begun.elapsed() >= SILENCE_MAX);
}

#[tokio::test]
async fn the_rest_is_given_up_soon_after_the_answer_is_whole() {
    let mut stuck = stuck(None).await;
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    stuck.replica.send(whole).await;
    assert_eq!(stuck.client.head().await[0], "http/1.1 200 ok");
    assert_eq!(stuck.client.exactly(2).await, "ok");
    stuck.replica.cut().await;
    stuck.rig.idle().await;
}

/// Nor for the kernel, which counts only what is taken, once it has asked for room. That it does when nothing comes for
/// some 200 ms.
#[tokio::test]
async fn one_that_goes_on_answering_is_no_silence() {
    let mut stuck = stuck_within(None, Duration::ZERO).await;
    stuck.begin_an_answer().await;
    let mut pace = interval(SILENCE_MAX / 4);
    for _ in 0..16 {
        pace.tick().await;
        stuck.replica.send("1\r\nx\r\n").await;
    }
    stuck.replica.send("3\r\nend\r\n0\r\n\r\n").await;
    let mut answer = String::new();
    while !answer.ends_with("0\r\n\r\n") {
        answer += &stuck.client.exactly(1).await;
    }
    assert!(answer.contains("end"), "{answer}");
    stuck.replica.cut().await;
    stuck.rig.idle().await;
}

#[tokio::test]
async fn one_that_goes_on_answering_ends_with_the_time_for_all_of_it() {
    let mut stuck = stuck(Some(SILENCE_MAX)).await;
    stuck.begin_an_answer().await;
    let Stuck {
        rig,
        mut client,
        mut replica,
    } = stuck;
    let goes_on = async {
        let mut pace = interval(SILENCE_MAX / 10);
        loop {
            pace.tick().await;
            if replica.0.write_all(b"1\r\nx\r\n").await.is_err() {
                return;
            }
        }
    };
    let (rest, ()) =
        support::soon("both ends", async { tokio::join!(client.rest(), goes_on) }).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    rig.idle().await;
}
