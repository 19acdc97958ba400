//! Who takes nothing over HTTP/2 stops nobody else, however many such streams share a connection, as long as there is room
//! for what is held of them; and there is only so much over all connections.

mod support;

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{Request, Response};
use raftserve_model::spec::UpstreamProtocol;
use raftserve_proxy::{NoSessions, ProxyConfig, ServiceRoute};
use support::replica::{Replica, take_all};
use support::{LIMIT, Rig, log, nowhere, recorder, service, soon, until};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// What a connection takes at most, of clients and to replicas.
const STREAMS: usize = 256;

/// What is held of an answer, and of an upload, that nobody takes.
const ANSWER_HELD: usize = 512 << 10;
const UPLOAD_HELD: usize = 256 << 10;

/// Many times what a stream has room for.
const LIVE: usize = 8 << 20;

const BLOCK: usize = 16 << 10;

/// How often the proxy pings a silent connection.
const PING: Duration = Duration::from_secs(20);

static BYTES: [u8; BLOCK] = [b'x'; BLOCK];

/// Sends so much, as there is room for it.
async fn send(out: &mut SendStream<Bytes>, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        out.reserve_capacity(left.min(BLOCK));
        let room = poll_fn(|cx| out.poll_capacity(cx)).await;
        let room = room.expect("it is open").expect("it is open");
        let data = Bytes::from_static(&BYTES).slice(..room.min(left).min(BLOCK));
        left -= data.len();
        out.send_data(data, false).expect("it is open");
    }
}

async fn send_all(out: &mut SendStream<Bytes>) {
    send(out, LIVE).await;
    out.send_data(Bytes::new(), true).expect("it is open");
}

/// Sends what nobody takes, until it is aborted. It counts once so much is held of it.
fn stalls(mut out: SendStream<Bytes>, held: usize, stalled: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let stalled = Arc::clone(stalled);
    tokio::spawn(async move {
        send(&mut out, held).await;
        stalled.fetch_add(1, Ordering::Relaxed);
        send(&mut out, usize::MAX).await;
    })
}

/// A proxy of one worker, and a client that has room for many answers at once.
async fn rig<const N: usize>(services: [ServiceRoute; N]) -> (Rig, SendRequest<Bytes>) {
    let rig = Rig::with(one_worker(), services, Arc::new(NoSessions));
    let sender = connect(&rig).await;
    (rig, sender)
}

fn one_worker() -> ProxyConfig {
    ProxyConfig {
        workers: NonZeroUsize::new(1),
        ..support::config()
    }
}

async fn connect(rig: &Rig) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let mut builder = client::Builder::new();
    builder.initial_connection_window_size(1 << 30);
    let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn over_http2(id: u64, name: &str, replica: &Replica) -> ServiceRoute {
    let mut svc = service(id, name, &[replica.address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc
}

async fn ask(sender: &mut SendRequest<Bytes>, host: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let ready = poll_fn(|cx| sender.poll_ready(cx));
    soon("room for a stream", ready).await.expect("it is open");
    let request = Request::post(format!("http://{host}/")).body(());
    let asked = sender.send_request(request.expect("a good request"), false);
    asked.expect("it is open")
}

#[tokio::test]
async fn answers_that_nobody_takes_leave_room_for_another_of_their_connection() {
    let mut replica = Replica::start(1000).await;
    let (rig, mut sender) = rig([over_http2(1, "svc", &replica)]).await;
    let stalled = Arc::<AtomicUsize>::default();
    let (mut answers, mut sends) = (Vec::new(), Vec::new());
    for _ in 1..STREAMS {
        let (answer, out) = ask(&mut sender, "svc").await;
        let (request, mut respond) = replica.call().await;
        let body = respond.send_response(Response::new(()), false);
        let body = body.expect("it is open");
        sends.push(stalls(body, ANSWER_HELD, &stalled));
        let answer = soon("an answer", answer).await.expect("an answer");
        answers.push((answer, out, request));
    }
    until("all to have no room", || {
        stalled.load(Ordering::Relaxed) == STREAMS - 1
    })
    .await;

    let (answer, out) = ask(&mut sender, "svc").await;
    let (_request, mut respond) = replica.call().await;
    let body = respond.send_response(Response::new(()), false);
    let mut body = body.expect("it is open");
    let sends_live = tokio::spawn(async move { send_all(&mut body).await });
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(take_all(&mut answer.into_body()).await, LIVE);
    soon("its end", sends_live).await.expect("no panic");
    assert_eq!(replica.connections.load(Ordering::Relaxed), 1);
    sends.iter().for_each(JoinHandle::abort);
    drop((answers, out));
    rig.idle().await;
}

/// Beside so many uploads to a service that takes none of them, on the same connection, another's finishes.
async fn another_upload_finishes(stuck: ServiceRoute, uploads: usize) {
    let log = log();
    let live = service(2, "live", &[recorder("live", &log).await]);
    let (rig, mut sender) = rig([stuck, live]).await;
    let stalled = Arc::<AtomicUsize>::default();
    let (mut answers, mut sends) = (Vec::new(), Vec::new());
    for _ in 0..uploads {
        let (answer, out) = ask(&mut sender, "svc").await;
        answers.push(answer);
        sends.push(stalls(out, UPLOAD_HELD, &stalled));
    }
    until("all to have no room", || {
        stalled.load(Ordering::Relaxed) == uploads
    })
    .await;

    let (answer, mut out) = ask(&mut sender, "live").await;
    soon("room for all of it", send_all(&mut out)).await;
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(log.lock().expect("no panic")[0].body.len(), LIVE);
    sends.iter().for_each(JoinHandle::abort);
    drop(answers);
    rig.idle().await;
}

#[tokio::test]
async fn uploads_that_a_replica_does_not_take_leave_room_for_another_of_their_connection() {
    let replica = Replica::start(1000).await;
    another_upload_finishes(over_http2(1, "svc", &replica), STREAMS - 1).await;
}

#[tokio::test]
async fn uploads_that_wait_for_a_replica_leave_room_for_another_of_their_connection() {
    let mut asleep = service(1, "svc", &[nowhere()]);
    asleep.endpoints[0].ready = false;
    asleep.traffic.queue.wait = LIMIT * 2;
    // So many have room in the queue.
    another_upload_finishes(asleep, 150).await;
}

/// An upload that nobody takes, and how much of it was sent.
struct Stuck {
    answer: ResponseFuture,
    sends: JoinHandle<()>,
    sent: Arc<AtomicUsize>,
}

impl Stuck {
    async fn begin(sender: &mut SendRequest<Bytes>) -> Self {
        let (answer, mut out) = ask(sender, "svc").await;
        let sent = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&sent);
        let sends = tokio::spawn(async move {
            loop {
                out.reserve_capacity(BLOCK);
                let room = poll_fn(|cx| out.poll_capacity(cx)).await;
                let room = room.expect("it is open").expect("it is open");
                let data = Bytes::from_static(&BYTES).slice(..room.min(BLOCK));
                count.fetch_add(data.len(), Ordering::Relaxed);
                out.send_data(data, false).expect("it is open");
            }
        });
        Self {
            answer,
            sends,
            sent,
        }
    }

    /// Takes it back.
    async fn give_up(self) {
        self.sends.abort();
        let _ = self.sends.await;
        drop(self.answer);
    }
}

/// A request without a body, which needs no room.
async fn get_live(sender: &mut SendRequest<Bytes>) {
    get_live_with(sender, "").await;
}

async fn get_live_with(sender: &mut SendRequest<Bytes>, cookie: &str) {
    let ready = poll_fn(|cx| sender.poll_ready(cx));
    soon("room for a stream", ready).await.expect("it is open");
    let request = Request::get("http://live/").header("cookie", cookie);
    let request = request.body(());
    let asked = sender.send_request(request.expect("a good request"), true);
    let (answer, _) = asked.expect("it is open");
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

async fn post_live(sender: &mut SendRequest<Bytes>) {
    let (answer, mut out) = ask(sender, "live").await;
    soon("room for all of it", send_all(&mut out)).await;
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn what_is_held_of_uploads_over_all_connections_is_bounded() {
    const CLIENTS: usize = 8;
    const UPLOADS: usize = 16;
    const BUDGET: usize = 4 << 20;
    /// What a connection has by the protocol.
    const LEAST: usize = 65_535;
    /// Of each upload one part waits for room, and the replica's connection has room for some.
    const ON_THEIR_WAY: usize = CLIENTS * UPLOADS * BLOCK + LEAST;
    let replica = Replica::start(1000).await;
    let live = service(2, "live", &[recorder("live", &log()).await]);
    let config = ProxyConfig {
        http2_windows_bytes: BUDGET as u64,
        ..one_worker()
    };
    let rig = Rig::with(
        config,
        [over_http2(1, "svc", &replica), live],
        Arc::new(NoSessions),
    );
    let (mut senders, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        let mut sender = connect(&rig).await;
        for _ in 0..UPLOADS {
            uploads.push(Stuck::begin(&mut sender).await);
        }
        senders.push(sender);
    }
    let sent = || {
        let each = uploads.iter().map(|it| it.sent.load(Ordering::Relaxed));
        each.sum::<usize>()
    };
    // Until nothing more is sent in as many turns of all.
    let (mut before, mut quiet) = (0, 0);
    while quiet < 50 {
        for sender in &mut senders {
            get_live(sender).await;
        }
        let now = sent();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    let most = BUDGET + CLIENTS * LEAST + ON_THEIR_WAY;
    assert!(sent() <= most, "{} bytes", sent());
    assert!(sent() > most / 2, "{} bytes", sent());
    let taken = || rig.peer_metric("http2_windows_bytes");
    assert_eq!(rig.peer_metric("http2_windows_max_bytes"), BUDGET as u64);
    assert!(
        (BUDGET as u64 / 2..=BUDGET as u64).contains(&taken()),
        "{} bytes",
        taken()
    );
    // Whoever comes has what the protocol gives, and room for a large head.
    let mut another = connect(&rig).await;
    post_live(&mut another).await;
    get_live_with(&mut another, &"x".repeat(8 << 10)).await;
    // Whoever was stuck goes on once others were given up.
    let last = uploads.pop().expect("many");
    for upload in uploads {
        upload.give_up().await;
    }
    post_live(senders.last_mut().expect("one")).await;
    last.give_up().await;
    rig.idle().await;
    drop((senders, another));
    until("all of it is given back", || taken() == 0).await;
}

/// Whose connection is short sees by itself that others have given some back.
#[tokio::test]
async fn an_upload_that_is_short_of_room_gets_more_once_others_were_given_up() {
    let replica = Replica::start(1000).await;
    let config = ProxyConfig {
        http2_windows_bytes: 1 << 20,
        ..one_worker()
    };
    let live = service(2, "live", &[recorder("live", &log()).await]);
    let rig = Rig::with(
        config,
        [over_http2(1, "svc", &replica), live],
        Arc::new(NoSessions),
    );
    let taken = || rig.peer_metric("http2_windows_bytes");
    let (mut others, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut sender = connect(&rig).await;
        let before = taken();
        uploads.push(Stuck::begin(&mut sender).await);
        until("it has more than the least", || taken() > before).await;
        others.push(sender);
    }
    let mut sender = connect(&rig).await;
    let upload = Stuck::begin(&mut sender).await;
    let sent = || upload.sent.load(Ordering::Relaxed);
    // Until nothing more is sent in as many turns.
    let (mut before, mut quiet) = (0, 0);
    while quiet < 50 {
        get_live(&mut sender).await;
        let now = sent();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    for upload in uploads {
        upload.give_up().await;
    }
    drop(others);
    let since = Instant::now();
    until("more is sent", || sent() > before + BLOCK).await;
    // Not only because a ping wakes it.
    assert!(since.elapsed() < PING / 2, "{:?}", since.elapsed());
    upload.give_up().await;
    rig.idle().await;
}

#[tokio::test]
async fn large_heads_of_waiting_requests_are_bounded_over_all_connections() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 20;
    const HEAD: usize = 32 << 10;
    const BUDGET: u64 = 1 << 20;
    let mut replica = Replica::start(1000).await;
    let live = service(2, "live", &[recorder("live", &log()).await]);
    let config = ProxyConfig {
        http2_heads_bytes: BUDGET,
        ..one_worker()
    };
    let rig = Rig::with(
        config,
        [over_http2(1, "svc", &replica), live],
        Arc::new(NoSessions),
    );
    let large = "x".repeat(HEAD);
    let (mut senders, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        let mut sender = connect(&rig).await;
        for _ in 0..REQUESTS {
            let ready = poll_fn(|cx| sender.poll_ready(cx));
            soon("room for a stream", ready).await.expect("it is open");
            let request = Request::get("http://svc/").header("x-large", &large);
            let request = request.body(()).expect("a good request");
            let (answer, _) = sender.send_request(request, true).expect("it is open");
            answers.push(tokio::spawn(answer));
        }
        senders.push(sender);
    }
    let most = BUDGET as usize / (HEAD - 2048);
    let refused = || answers.iter().filter(|it| it.is_finished()).count();
    until("all that are too many to be refused", || {
        refused() >= CLIENTS * REQUESTS - most
    })
    .await;
    let mut calls = Vec::new();
    for _ in 0..CLIENTS * REQUESTS - refused() {
        calls.push(replica.call().await);
    }
    assert!(calls.len() >= most / 2, "{} calls", calls.len());
    let told = rig.peer_metric("http2_heads_refused_total");
    assert_eq!(told, refused() as u64);
    assert!(rig.peer_metric("http2_heads_bytes") > BUDGET / 2);
    // Small ones are served.
    get_live(senders.last_mut().expect("one")).await;
    for (_, mut respond) in calls {
        respond
            .send_response(Response::new(()), true)
            .expect("it is open");
    }
    for answer in answers {
        match soon("an answer or a refusal", answer)
            .await
            .expect("no panic")
        {
            Ok(answer) => assert_eq!(answer.status(), 200),
            Err(error) => assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM)),
        }
    }
    until("nothing is held", || {
        rig.peer_metric("http2_heads_bytes") == 0
    })
    .await;
}

/// What was taken of them is not told of at once, which together would be all the room that there is.
#[tokio::test]
async fn many_uploads_that_pause_leave_room_where_there_is_least() {
    const UPLOADS: usize = 200;
    const PART: usize = 1 << 10;
    let mut replica = Replica::start(1000).await;
    let live = service(2, "live", &[recorder("live", &log()).await]);
    let config = ProxyConfig {
        http2_windows_bytes: 0,
        ..one_worker()
    };
    let rig = Rig::with(
        config,
        [over_http2(1, "svc", &replica), live],
        Arc::new(NoSessions),
    );
    let mut sender = connect(&rig).await;
    let mut pauses = Vec::new();
    for _ in 0..UPLOADS {
        let (answer, mut out) = ask(&mut sender, "svc").await;
        soon("room for a part", send(&mut out, PART)).await;
        let (mut request, respond) = replica.call().await;
        let part = soon("a part", request.body_mut().data()).await;
        let part = part.expect("one").expect("it is open");
        assert_eq!(part.len(), PART);
        let flow = request.body_mut().flow_control();
        flow.release_capacity(PART).expect("it was taken");
        pauses.push((answer, out, request, respond));
    }
    post_live(&mut sender).await;
    drop(pauses);
    rig.idle().await;
}
