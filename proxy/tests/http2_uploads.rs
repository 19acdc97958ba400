//! Requests over HTTP/2 whose replica takes no more of their body: each ends, and gives its stream back.

mod support;

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body_util::Full;
use raftserve_model::spec::{Timeouts, UpstreamProtocol};
use raftserve_proxy::{NoSessions, ProxyConfig};
use support::replica::Replica;
use support::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Hand, LINGER, Rig, SETTINGS, WINDOW_UPDATE, by_hand,
    frame, get, http2_client, service, soon,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a replica may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Some times what a stream has room for at first.
const BODY_BYTES: usize = 256 << 10;

/// A replica that takes one request at a time, and a client that has sent it one.
struct Stuck {
    rig: Rig,
    replica: Replica,
    client: Hand,
    respond: SendResponse<Bytes>,
    /// Nobody reads it.
    body: RecvStream,
}

/// A proxy whose requests share a connection, and the replica.
async fn rig(timeouts: Timeouts) -> (Rig, Replica) {
    let replica = Replica::start(1).await;
    let mut svc = service(1, "svc", &[replica.address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc.traffic.timeouts = timeouts;
    let config = ProxyConfig {
        workers: NonZeroUsize::new(1),
        ..support::config()
    };
    (Rig::with(config, [svc], Arc::new(NoSessions)), replica)
}

async fn stuck(timeouts: Timeouts) -> Stuck {
    let (rig, mut replica) = rig(timeouts).await;
    let mut client = Hand::connect(rig.address).await;
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    client.send(head).await;
    client.send(vec![b'x'; BODY_BYTES]).await;
    let (request, respond) = replica.call().await;
    Stuck {
        rig,
        replica,
        client,
        respond,
        body: request.into_body(),
    }
}

impl Stuck {
    fn answer(&mut self, ends: bool) -> SendStream<Bytes> {
        let answered = self.respond.send_response(Response::new(()), ends);
        answered.expect("the stream is open")
    }

    /// Its one stream is free for another request, on the same connection.
    async fn serves_another(mut self) {
        drop((self.client, self.body));
        let address = self.rig.address;
        let ask = tokio::spawn(async move { get(address, "h", "/").await });
        let (_request, mut respond): (Request<RecvStream>, _) = self.replica.call().await;
        let answered = respond.send_response(Response::new(()), true);
        answered.expect("the stream is open");
        assert_eq!(soon("an answer", ask).await.expect("no panic").0, 200);
        assert_eq!(self.replica.connections.load(Ordering::Relaxed), 1);
        self.rig.idle().await;
    }
}

async fn reset(out: &mut SendStream<Bytes>) -> Reason {
    let reset = poll_fn(|cx| out.poll_reset(cx));
    soon("a reset", reset).await.expect("the connection lasts")
}

#[tokio::test]
async fn without_an_answer_it_ends_with_the_time_for_one() {
    let mut stuck = stuck(Timeouts {
        first_byte: Some(SILENCE_MAX),
        ..Timeouts::default()
    })
    .await;
    let head = stuck.client.head().await;
    assert_eq!(head[0], "http/1.1 504 gateway timeout");
    let reset = poll_fn(|cx| stuck.respond.poll_reset(cx));
    let reason = soon("a reset", reset).await.expect("the connection lasts");
    assert_eq!(reason, Reason::CANCEL);
    stuck.serves_another().await;
}

#[tokio::test]
async fn an_answer_that_falls_silent_ends_with_its_upload() {
    let mut stuck = stuck(Timeouts {
        idle: Some(SILENCE_MAX),
        ..Timeouts::default()
    })
    .await;
    let mut out = stuck.answer(false);
    out.send_data(Bytes::from("part"), false).expect("open");
    assert_eq!(stuck.client.head().await[0], "http/1.1 200 ok");
    let rest = stuck.client.rest().await;
    assert!(
        rest.contains("part") && !rest.ends_with("0\r\n\r\n"),
        "{rest}"
    );
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    stuck.serves_another().await;
}

/// As a call of gRPC in both directions may well do, which says all that it has before it listens.
#[tokio::test]
async fn one_that_goes_on_answering_is_no_silence() {
    let mut stuck = stuck(Timeouts {
        idle: Some(SILENCE_MAX),
        ..Timeouts::default()
    })
    .await;
    let mut out = stuck.answer(false);
    assert_eq!(stuck.client.head().await[0], "http/1.1 200 ok");
    let mut pace = tokio::time::interval(SILENCE_MAX / 5);
    for _ in 0..15 {
        pace.tick().await;
        out.send_data(Bytes::from("x"), false).expect("open");
    }
    out.send_data(Bytes::from("end"), true).expect("open");
    let mut answer = String::new();
    while !answer.ends_with("0\r\n\r\n") {
        answer += &stuck.client.exactly(1).await;
    }
    assert!(answer.contains("end"), "{answer}");
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    stuck.serves_another().await;
}

#[tokio::test]
async fn the_rest_is_given_up_soon_after_the_answer_is_whole() {
    let mut stuck = stuck(Timeouts::default()).await;
    let answered = Instant::now();
    let mut out = stuck.answer(true);
    assert_eq!(stuck.client.head().await[0], "http/1.1 200 ok");
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    assert!(answered.elapsed() >= LINGER, "it had some time");
    stuck.serves_another().await;
}

/// Its last byte has come, as its length has it, and the frame that ends it has not.
#[tokio::test]
async fn an_answer_that_is_whole_by_its_length_has_some_time_to_end() {
    let mut stuck = stuck(Timeouts::default()).await;
    let answered = Instant::now();
    let answer = Response::builder().header("content-length", 2).body(());
    let answer = answer.expect("a good answer");
    let out = stuck.respond.send_response(answer, false);
    let mut out = out.expect("the stream is open");
    out.send_data(Bytes::from("ok"), false).expect("open");
    assert_eq!(stuck.client.head().await[0], "http/1.1 200 ok");
    assert_eq!(stuck.client.exactly(2).await, "ok");
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    assert!(answered.elapsed() >= LINGER, "it had some time");
    stuck.serves_another().await;
}

/// Its request was sent whole, so nothing else keeps its stream.
#[tokio::test]
async fn it_has_the_same_time_once_its_request_is_sent() {
    let (rig, mut replica) = rig(Timeouts::default()).await;
    let mut client = Hand::connect(rig.address).await;
    let asked = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
    client.send(asked).await;
    let (request, mut respond) = replica.call().await;
    let mut body = request.into_body();
    while let Some(part) = soon("the body", body.data()).await {
        part.expect("it is whole");
    }
    let answered = Instant::now();
    let answer = Response::builder().header("content-length", 2).body(());
    let out = respond.send_response(answer.expect("a good answer"), false);
    let mut out = out.expect("the stream is open");
    out.send_data(Bytes::from("ok"), false).expect("open");
    assert_eq!(client.head().await[0], "http/1.1 200 ok");
    assert_eq!(client.exactly(2).await, "ok");
    rig.idle().await;
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    assert!(answered.elapsed() >= LINGER, "it had some time");
}

/// It has all come from its client, and waits in the proxy alone.
#[tokio::test]
async fn a_last_part_without_room_is_given_up_too() {
    /// The fourth of such frames is the last that a stream at first has any room for.
    const FRAME_BYTES: usize = 16 << 10;
    let (rig, mut replica) = rig(Timeouts::default()).await;
    let (mut sender, _connection) = http2_client(&rig).await;
    let request = |bytes| {
        let body = Full::new(Bytes::from(vec![b'x'; bytes]));
        Request::post("http://h/")
            .body(body)
            .expect("a good request")
    };
    // Once it is answered, both sides know each other's windows.
    let first = tokio::spawn(sender.send_request(request(0)));
    let (_, mut respond) = replica.call().await;
    let answered = respond.send_response(Response::new(()), true);
    answered.expect("the stream is open");
    let answer = soon("an answer", first).await.expect("no panic");
    assert_eq!(answer.expect("an answer").status(), 200);

    let second = tokio::spawn(sender.send_request(request(5 * FRAME_BYTES)));
    let (asked, mut respond) = replica.call().await;
    let mut body = asked.into_body();
    let mut came = 0;
    while came < 4 * FRAME_BYTES - 1 {
        let part = soon("what there is room for", body.data()).await;
        came += part.expect("more").expect("it is open").len();
    }
    let out = respond.send_response(Response::new(()), true);
    let mut out = out.expect("the stream is open");
    let answer = soon("an answer", second).await.expect("no panic");
    assert_eq!(answer.expect("an answer").status(), 200);
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    rig.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_amid_its_answer_takes_its_upload_along() {
    let (rig, mut replica) = rig(Timeouts::default()).await;
    let (mut sender, connection) = http2_client(&rig).await;
    let request = Request::post("http://h/").body(Full::new(Bytes::from(vec![b'x'; BODY_BYTES])));
    let ask = sender.send_request(request.expect("a good request"));
    let ask = tokio::spawn(ask);
    let (request, mut respond) = replica.call().await;
    let out = respond.send_response(Response::new(()), false);
    let mut out = out.expect("the stream is open");
    out.send_data(Bytes::from("part"), false).expect("open");
    let answer = soon("an answer", ask).await.expect("no panic");
    assert_eq!(answer.expect("an answer").status(), 200);
    connection.abort();
    assert_eq!(reset(&mut out).await, Reason::CANCEL);
    let stuck = Stuck {
        client: Hand::connect(rig.address).await,
        rig,
        replica,
        respond,
        body: request.into_body(),
    };
    stuck.serves_another().await;
}

/// Over HTTP/2 as over HTTP/1: it reads nothing of its connection, however much room it has told of, and goes on answering.
#[tokio::test]
async fn a_connection_that_is_not_read_is_no_silence_while_it_goes_on_answering() {
    /// The kernel asks for room when nothing comes for some 200 ms, and counts from then.
    const PACE: Duration = Duration::from_millis(500);
    /// Many times what all buffers on its way hold.
    const BYTES: usize = 128 << 20;
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc.stream_timeout = PACE * 4;
    let config = ProxyConfig {
        host_silence: PACE * 4,
        tcp_user_timeout: Duration::ZERO,
        ..support::config()
    };
    let rig = Rig::with(config, [svc], Arc::new(NoSessions));
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let (reads, mut sends) = stream.into_split();
    let mut reads = BufReader::new(reads);
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BYTES}\r\n\r\n");
    sends.write_all(head.as_bytes()).await.expect("open");
    tokio::spawn(async move { while sends.write_all(&[b'x'; 64 << 10]).await.is_ok() {} });

    let mut replica = support::accept(&mut connections).await;
    let most = i32::MAX.to_be_bytes();
    let settings = [&[0, 4][..], &most].concat(); // SETTINGS_INITIAL_WINDOW_SIZE.
    replica.send(frame(SETTINGS, 0, 0, &settings)).await;
    let room = (i32::MAX - 65_535).to_be_bytes();
    replica.send(frame(WINDOW_UPDATE, 0, 0, &room)).await;
    // Its head has come once anything beside the preface and the settings has.
    let mut kind = 0;
    replica.exactly(24).await;
    while kind != HEADERS {
        let mut head = [0; 9];
        let read = replica.0.read_exact(&mut head);
        soon("a frame", read).await.expect("open");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        let read = replica.0.read_exact(&mut payload);
        soon("its payload", read).await.expect("open");
        kind = head[3];
    }
    let ok = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    replica.send(ok).await;
    let mut pace = tokio::time::interval(PACE);
    for _ in 0..16 {
        pace.tick().await;
        replica.send(frame(DATA, 0, 1, b"x")).await;
    }
    replica.send(frame(DATA, END_STREAM, 1, b"end")).await;
    let mut answer = String::new();
    while !answer.ends_with("0\r\n\r\n") {
        let read = reads.read_line(&mut answer);
        let count = soon("the answer", read).await.expect("text");
        assert!(count > 0, "it breaks off: {answer}");
    }
    assert!(answer.contains("end"), "{answer}");
    rig.idle().await;
}
