//! HTTP/2 clients that make a server work or remember without end: each loses its connection, and nobody else
//! notices. Frames are written by hand, as no client library would send them.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use raftserve_model::spec::UpstreamProtocol;
use raftserve_proxy::{NoSessions, ServiceRoute};
use support::replica::Replica;
use support::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Hand, LIMIT, PING, RST_STREAM,
    Rig, SETTINGS, by_hand, frame, get, log, recorder, resident_bytes, service,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

/// What a flood may make this process hold, while its connection is there and after: each sends several times as much, or
/// would be remembered by more.
const HELD_MAX: usize = 6 << 20;

/// Held by each test: some measure what this process holds.
static MEASURED: Mutex<()> = Mutex::const_new(());

/// A field as HPACK has it, without index or Huffman code.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("a short text");
    let mut bytes = vec![0, length(name)];
    bytes.extend(name.bytes());
    bytes.push(length(value));
    bytes.extend(value.bytes());
    bytes
}

fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter()
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

const REQUEST: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "svc"),
    (":path", "/"),
];

async fn connect(rig: &Rig) -> Hand {
    let mut client = Hand::connect(rig.address).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send(frame(SETTINGS, 0, 0, &[])).await;
    client
}

async fn rig() -> (Rig, std::sync::Arc<std::sync::Mutex<Vec<support::Seen>>>) {
    let log = log();
    (
        Rig::new([service(1, "svc", &[recorder("r", &log).await])]),
        log,
    )
}

/// What came of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The connection has ended.
    Ended,
    /// Nothing more is taken of it.
    Stalled,
    /// All was taken, and the connection is still there.
    Taken,
}

/// Sends frames until the connection ends, `most` at the most, without reading.
async fn flood(client: &mut Hand, most: u32, mut next: impl FnMut(u32) -> Vec<u8>) -> Outcome {
    let send = async {
        for n in 0..most {
            if client.0.write_all(&next(n)).await.is_err() {
                return Outcome::Ended;
            }
        }
        // All was taken: it may still be told.
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), client.0.read_to_end(&mut rest));
        match read.await {
            Ok(_) => Outcome::Ended,
            Err(_) => Outcome::Taken,
        }
    };
    let sent = tokio::time::timeout(LIMIT, send).await;
    sent.unwrap_or(Outcome::Stalled)
}

/// Sends a frame again and again, and reads whatever comes, until the connection ends.
async fn flood_and_read(client: &mut Hand, frame: &[u8]) {
    let block = frame.repeat(100);
    let (mut read, mut write) = tokio::io::split(&mut client.0);
    let read = async {
        let mut room = vec![0; 64 << 10];
        while let Ok(1..) = read.read(&mut room).await {}
    };
    let send = async {
        while write.write_all(&block).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let ended = async {
        tokio::select! {
            () = read => {}
            () = send => {}
        }
    };
    support::soon("the flood's end", ended).await;
}

/// The head and the payload of the next frame; `None` at the connection's end.
async fn next_frame(client: &mut Hand) -> Option<([u8; 9], Vec<u8>)> {
    let mut head = [0; 9];
    client.0.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("small")];
    client.0.read_exact(&mut payload).await.ok()?;
    Some((head, payload))
}

/// Reads frames until one of this kind, for this stream; `None` at the connection's end.
async fn await_frame(client: &mut Hand, kind: u8, stream: u32) -> Option<Vec<u8>> {
    let read = async {
        loop {
            let (head, payload) = next_frame(client).await?;
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if (head[3], of) == (kind, stream) {
                return Some(payload);
            }
        }
    };
    support::soon("a frame", read).await
}

#[tokio::test]
async fn whoever_floods_loses_its_connection_and_nobody_else() {
    let _alone = MEASURED.lock().await;
    let (rig, _log) = rig().await;
    let block = fields(&REQUEST);
    let rapid_reset = |n: u32| {
        let stream = 2 * n + 1;
        let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, stream, &block);
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        bytes
    };
    // Whatever was allocated once for all of them is there.
    let mut client = connect(&rig).await;
    flood(&mut client, 20_000, rapid_reset).await;
    let before = resident_bytes();
    let holds_little = |what: &str| {
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < HELD_MAX, "{what}: {grown} bytes more than before");
    };

    let mut client = connect(&rig).await;
    let outcome = flood(&mut client, 20_000, rapid_reset).await;
    assert_eq!(outcome, Outcome::Ended, "rapid reset");
    holds_little("rapid reset");

    let continuation = |n: u32| match n {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(
            CONTINUATION,
            0,
            1,
            &field("x", &"y".repeat(100)).repeat(100),
        ),
    };
    let mut client = connect(&rig).await;
    let outcome = flood(&mut client, 2_000, continuation).await;
    assert_eq!(outcome, Outcome::Ended, "continuation");
    holds_little("continuation");

    let empty = |n: u32| match n {
        0 => frame(HEADERS, 0, 1, &block),
        _ => frame(CONTINUATION, 0, 1, &[]),
    };
    let mut client = connect(&rig).await;
    let outcome = flood(&mut client, 100_000, empty).await;
    assert_eq!(outcome, Outcome::Ended, "empty continuation");
    holds_little("empty continuation");

    for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[7; 8][..])] {
        let again = frame(kind, 0, 0, payload);
        // Answers that are not read are no reason to remember ever more of them.
        let mut client = connect(&rig).await;
        let outcome = flood(&mut client, 200_000, |_| again.clone()).await;
        assert_ne!(outcome, Outcome::Taken, "answers that are not read");
        holds_little("answers that are not read");
        // Nor are those that are read a reason to give ever more of them.
        let mut client = connect(&rig).await;
        flood_and_read(&mut client, &again).await;
        holds_little("answers that are read");
    }
    assert_eq!(get(rig.address, "svc", "/").await.0, 200);
    rig.idle().await;
}

#[tokio::test]
async fn who_takes_back_request_after_request_that_a_replica_has_loses_its_connection() {
    const AT_ONCE: u32 = 200;
    const ROUNDS_MAX: u32 = 2_000;
    let _alone = MEASURED.lock().await;
    // Takes requests, and says nothing.
    let mut replica = Replica::start(1_000).await;
    let mut svc = service(1, "svc", &[replica.address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let taking = tokio::spawn(async move {
        let mut taken = std::collections::VecDeque::new();
        while let Some(call) = replica.calls.recv().await {
            taken.push_back(call);
            // Those before have been taken back.
            if taken.len() > 2 * AT_ONCE as usize {
                taken.pop_front();
            }
        }
    });
    let rig = Rig::new([svc]);
    let block = fields(&REQUEST);
    let mut client = connect(&rig).await;
    let ends = async {
        for round in 0..ROUNDS_MAX {
            let streams = (0..AT_ONCE).map(|n| 2 * (round * AT_ONCE + n) + 1);
            let mut asked = Vec::new();
            let mut taken_back = Vec::new();
            for stream in streams {
                asked.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
                taken_back.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            }
            // Each has been read, and begun, once this is answered.
            asked.extend(frame(PING, 0, 0, &[1; 8]));
            let sent = client.0.write_all(&asked).await;
            let Some(why) = await_either(&mut client, PING, GOAWAY).await else {
                panic!("it ended without a word, {sent:?}");
            };
            if let Some(why) = why {
                return Some(why);
            }
            let _ = client.0.write_all(&taken_back).await;
        }
        None
    };
    let why = ends.await.expect("it may not go on");
    let code: [u8; 4] = why[4..8].try_into().expect("a code");
    assert_eq!(u32::from_be_bytes(code), 11, "ENHANCE_YOUR_CALM");
    assert!(rig.metric("requests_total") >= 10_000, "not before");
    rig.idle().await;
    taking.abort();
}

/// Reads frames until one of these kinds; of the second it is told what it says. `None` at the connection's end.
async fn await_either(client: &mut Hand, first: u8, second: u8) -> Option<Option<Vec<u8>>> {
    let read = async {
        loop {
            let (head, payload) = next_frame(client).await?;
            match head[3] {
                kind if kind == second => return Some(Some(payload)),
                kind if kind == first => return Some(None),
                _ => {}
            }
        }
    };
    support::soon("a frame", read).await
}

/// A client that measures its connection asks again with each answer, for as long as it likes.
#[tokio::test]
async fn pings_that_wait_for_their_answers_are_no_flood() {
    let _alone = MEASURED.lock().await;
    let (rig, _log) = rig().await;
    let mut client = connect(&rig).await;
    // More than may come at once.
    for _ in 0..12_000 {
        client.send(frame(PING, 0, 0, &[1; 8])).await;
        assert!(await_frame(&mut client, PING, 0).await.is_some());
    }
}

/// A body is kept until it is answered, to be sent again if need be. What is kept of each frame costs more than its byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_tiny_frames_costs_no_more_than_any_other() {
    const STREAMS: u32 = 4;
    const FRAMES: usize = 60_000;
    /// So many at once are not taken for a flood.
    const BURST: usize = 500;
    const BYTE: u8 = 0xff;
    let _alone = MEASURED.lock().await;
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let taken = Arc::<AtomicUsize>::default();
    let silent = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Some(mut replica) = connections.recv().await {
            let taken = Arc::clone(&silent);
            tokio::spawn(async move {
                let mut room = [0; 4096];
                while let Ok(count @ 1..) = replica.0.read(&mut room).await {
                    let bytes = room[..count].iter().filter(|&&byte| byte == BYTE);
                    taken.fetch_add(bytes.count(), Ordering::Relaxed);
                }
            });
        }
    });
    let mut client = connect(&rig).await;
    let post = fields(&[&[(":method", "POST")][..], &REQUEST[1..]].concat());
    let before = resident_bytes();
    let mut sent = 0;
    for stream in (0..STREAMS).map(|n| 2 * n + 1) {
        client
            .send(frame(HEADERS, END_HEADERS, stream, &post))
            .await;
        let frames = frame(DATA, 0, stream, &[BYTE]).repeat(BURST);
        for _ in 0..FRAMES / BURST {
            client.send(&frames).await;
            sent += BURST;
            support::until("them at the replica", || {
                taken.load(Ordering::Relaxed) == sent
            })
            .await;
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < HELD_MAX, "{grown} bytes more than before");
}

/// It may answer pings for as long as it likes: it holds a place at the replica meanwhile, or what was read of it.
#[tokio::test]
async fn a_stream_whose_client_never_takes_its_answer_ends() {
    let _alone = MEASURED.lock().await;
    for (window, bytes) in [(0, 64 << 10), (0, 1), (10, 64 << 10), (10, 11), (10, 20)] {
        let body = Bytes::from(vec![0; bytes]);
        let address = support::upstream(move |_| {
            let body = Full::new(body.clone());
            async { Response::new(body) }
        });
        let rig = impatient(service(1, "svc", &[address.await]));
        take_no_more_than(&rig, window).await;
        assert_eq!(rig.metric("requests_total"), 1);
        support::until("no request running", || {
            rig.metric("requests_in_flight") == 0
        })
        .await;
    }
}

/// Its call is over once its status is known, and that waits behind what the client does not take.
#[tokio::test]
async fn a_call_whose_client_never_takes_its_message_ends() {
    let _alone = MEASURED.lock().await;
    let mut replica = Replica::start(10).await;
    let mut svc = service(1, "svc", &[replica.address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let rig = impatient(svc);
    let answer = async {
        let (_request, mut respond) = replica.call().await;
        let out = respond.send_response(Response::new(()), false);
        let mut out = out.expect("the stream is open");
        out.send_data(Bytes::from_static(&[0; 11]), false)
            .expect("open");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        out.send_trailers(trailers).expect("open");
    };
    tokio::join!(take_no_more_than(&rig, 10), answer);
}

/// A proxy whose clients may pause for a second.
fn impatient(svc: ServiceRoute) -> Rig {
    let mut config = support::config();
    config.client_user_timeout = Duration::from_secs(1);
    Rig::with(config, [svc], Arc::new(NoSessions))
}

/// Asks with a window of so many bytes, which stays as it is: the stream is reset, and nothing counts it any more.
async fn take_no_more_than(rig: &Rig, window: u8) {
    let mut client = Hand::connect(rig.address).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let settings = [0, 4, 0, 0, 0, window];
    client.send(frame(SETTINGS, 0, 0, &settings)).await;
    let block = fields(&REQUEST);
    client
        .send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block))
        .await;
    let reset = await_frame(&mut client, RST_STREAM, 1).await;
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    assert_eq!(reset.as_deref(), Some(&CANCEL[..]));
    rig.idle().await;
    // The connection is good for what is taken.
    client.send(frame(PING, 0, 0, &[1; 8])).await;
    assert!(await_frame(&mut client, PING, 0).await.is_some());
}

#[tokio::test]
async fn a_stream_that_was_answered_and_sends_nothing_more_ends() {
    let _alone = MEASURED.lock().await;
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = connect(&rig).await;
    let post = fields(&[&[(":method", "POST")][..], &REQUEST[1..]].concat());
    client.send(frame(HEADERS, END_HEADERS, 1, &post)).await;
    client.send(frame(DATA, 0, 1, b"start")).await;
    let mut replica = support::accept(&mut connections).await;
    replica.head().await;
    let answer = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
    replica.send(answer).await;
    let body = await_frame(&mut client, DATA, 1).await;
    assert_eq!(body.as_deref(), Some(&b"no"[..]));
    assert!(await_frame(&mut client, RST_STREAM, 1).await.is_some());
    replica.rest().await;
    rig.idle().await;
}

#[tokio::test]
async fn connect_is_refused() {
    let _alone = MEASURED.lock().await;
    let (rig, log) = rig().await;
    let mut client = connect(&rig).await;
    let block = fields(&[(":method", "CONNECT"), (":authority", "svc:443")]);
    client.send(frame(HEADERS, END_HEADERS, 1, &block)).await;
    let head = await_frame(&mut client, HEADERS, 1).await;
    let head = head.expect("an answer");
    // 405, as it is or in the code of RFC 7541, appendix B.
    let tells = |text: &[u8]| head.windows(3).any(|part| part == text);
    assert!(tells(b"405") || tells(&[0x68, 0x0d, 0xff]), "{head:?}");
    assert!(log.lock().expect("no panic").is_empty());
    rig.idle().await;
}

#[tokio::test]
async fn a_malformed_request_of_http_2_reaches_no_replica() {
    let _alone = MEASURED.lock().await;
    let (rig, log) = rig().await;
    let with = |extra: &[(&str, &str)]| fields(&[&REQUEST[..], extra].concat());
    let path = |path| fields(&[&REQUEST[..3], &[(":path", path)][..]].concat());
    let host = |host| {
        let host = [(":authority", host), REQUEST[3]];
        fields(&[&REQUEST[..2], &host[..]].concat())
    };
    let table = [
        (
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
        ),
        ("connection", with(&[("connection", "keep-alive")])),
        ("another te", with(&[("te", "gzip")])),
        ("an upper case name", with(&[("X-Y", "1")])),
        ("a line feed in a value", with(&[("x", "a\r\ny: b")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("a line feed in a name", with(&[("x\ny", "1")])),
        ("a pseudo-header twice", with(&[(":path", "/other")])),
        ("an unknown pseudo-header", with(&[(":evil", "1")])),
        (
            "a pseudo-header behind a field",
            fields(&[&[("x", "1")][..], &REQUEST[..]].concat()),
        ),
        ("no method", fields(&REQUEST[1..])),
        ("no path", fields(&REQUEST[..3])),
        (
            "an empty path",
            fields(&[&REQUEST[..3], &[(":path", "")][..]].concat()),
        ),
        (
            "a request line in the path",
            fields(&[&REQUEST[..3], &[(":path", "/ HTTP/1.1\r\nx: y")][..]].concat()),
        ),
        (
            "a host with a line feed",
            fields(
                &[
                    &REQUEST[..2],
                    &[(":authority", "a\r\nb"), (":path", "/")][..],
                ]
                .concat(),
            ),
        ),
        (
            "a length that is not kept",
            with(&[("content-length", "5")]),
        ),
        ("two hosts", with(&[("host", "a"), ("host", "b")])),
        ("a path without a slash", path("x")),
        ("a path that is a whole URL", path("http://other/x")),
        ("a status", with(&[(":status", "200")])),
        (
            "a protocol without CONNECT",
            with(&[(":protocol", "websocket")]),
        ),
        ("a name and a password", host("user:word@svc")),
        ("a host that is a path", host("svc/x")),
        (
            "two lengths",
            with(&[("content-length", "0"), ("content-length", "1")]),
        ),
        (
            "a length that is a list",
            with(&[("content-length", "0, 0")]),
        ),
    ];
    for (name, block) in table {
        let mut client = connect(&rig).await;
        client
            .send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block))
            .await;
        // A reset, the connection's end, or an answer that says so.
        client.send(frame(PING, 0, 0, &[1; 8])).await;
        let end = tokio::select! {
            ended = outcome(&mut client) => ended,
            () = tokio::time::sleep(LIMIT) => panic!("{name}: nothing came of it"),
        };
        assert!(end, "{name}");
    }
    assert!(
        log.lock().expect("no panic").is_empty(),
        "a replica saw one of them"
    );
    // A body that is longer than said, likewise.
    let mut client = connect(&rig).await;
    let block = fields(
        &[
            &[(":method", "POST")][..],
            &REQUEST[1..],
            &[("content-length", "1")][..],
        ]
        .concat(),
    );
    client.send(frame(HEADERS, END_HEADERS, 1, &block)).await;
    client.send(frame(DATA, END_STREAM, 1, b"abc")).await;
    assert!(await_frame(&mut client, RST_STREAM, 1).await.is_some());
    rig.idle().await;
}

/// The replica is told of the host that its service was found by, and of no other.
#[tokio::test]
async fn of_an_authority_and_another_host_only_the_authority_counts() {
    let _alone = MEASURED.lock().await;
    let (rig, log) = rig().await;
    let mut client = connect(&rig).await;
    let block = fields(&[&REQUEST[..], &[("host", "other")]].concat());
    client
        .send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block))
        .await;
    assert!(await_frame(&mut client, DATA, 1).await.is_some());
    let seen = log.lock().expect("no panic").pop().expect("it came");
    assert_eq!(seen.headers["x-forwarded-host"], "svc");
    let hosts: Vec<_> = seen.headers.get_all("host").iter().collect();
    assert_eq!(hosts, ["svc"]);
}

/// Whether a request on stream 1 was refused: by a reset, by the connection's end, or with status 400.
async fn outcome(client: &mut Hand) -> bool {
    loop {
        let Some((head, payload)) = next_frame(client).await else {
            return true;
        };
        match head[3] {
            RST_STREAM | GOAWAY => return true,
            // Status 400 is entry 12 of the static table (RFC 7541, appendix A).
            HEADERS => return payload.contains(&0x8c),
            _ => {}
        }
    }
}
