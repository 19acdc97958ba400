//! Replicas that misbehave over HTTP/2, as those of chaos do over HTTP/1.1: no call hangs, none is counted for ever, and
//! what is held stays bounded.

mod support;

use std::convert::Infallible;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{LoadBalancingPolicy, UpstreamProtocol};
use support::{
    CONTINUATION, DATA, EARLY_HINTS, END_HEADERS, GOAWAY, HEADERS, Hand, PING, RST_STREAM, Rig,
    SETTINGS, WINDOW_UPDATE, by_hand, frame, meet, service,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Status 200 as HPACK has it (RFC 7541, appendix A).
const OK: [u8; 1] = [0x88];

/// What a bad replica does with each connection, once something came on it.
#[derive(Clone, Copy, Debug)]
enum Vice {
    /// Never sends its settings, nor anything else.
    NoSettings,
    /// Answers in another protocol.
    Garbage,
    /// Says what is no frame, once it has a request.
    GarbageWithin,
    /// Says nothing of a request.
    Stalls,
    /// Ends its own side before it answers.
    HalfCloses,
    /// Resets the connection.
    Resets,
    /// Allows no stream.
    NoStreams,
    /// Goes away at once.
    GoesAway,
    /// Says again and again that it goes away.
    GoesAwayForEver,
    /// Resets the first streams again and again.
    ResetsForEver,
    /// Wants to have its pings answered, without an end, and reads no answer.
    PingsForEver,
    /// The same with its settings.
    SettingsForEver,
    /// Gives more and more room for what was sent long ago.
    RoomForEver,
    /// Sends interim answers without an end.
    InterimsForEver,
    /// Begins a head that has no end.
    HeadForEver,
    /// Answers with more than the window allows.
    SendsForEver,
    /// Answers with parts that hold nothing, without an end.
    EmptyForEver,
    /// Begins an answer, and says nothing more.
    StallsWithin,
    /// Closes within an answer.
    CutsOff,
    /// Resets the connection within an answer.
    ResetsWithin,
}

const VICES: [Vice; 20] = [
    Vice::NoSettings,
    Vice::Garbage,
    Vice::GarbageWithin,
    Vice::Stalls,
    Vice::HalfCloses,
    Vice::Resets,
    Vice::NoStreams,
    Vice::GoesAway,
    Vice::GoesAwayForEver,
    Vice::ResetsForEver,
    Vice::PingsForEver,
    Vice::SettingsForEver,
    Vice::RoomForEver,
    Vice::InterimsForEver,
    Vice::HeadForEver,
    Vice::SendsForEver,
    Vice::EmptyForEver,
    Vice::StallsWithin,
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
    // `None` once the proxy is gone.
    let _ = play(vice, &mut replica).await;
    match vice {
        Vice::Garbage | Vice::GarbageWithin | Vice::CutsOff => return,
        Vice::Resets | Vice::ResetsWithin => return replica.reset(),
        _ => {}
    }
    let mut room = [0; 4096];
    while !done.load(Ordering::Relaxed) {
        let read = tokio::time::timeout(Duration::from_millis(20), replica.0.read(&mut room));
        if let Ok(Ok(0) | Err(_)) = read.await {
            break;
        }
    }
}

async fn play(vice: Vice, replica: &mut Hand) -> Option<()> {
    let mut preface = [0; 24];
    replica.0.read_exact(&mut preface).await.ok()?;
    let settings = match vice {
        Vice::NoSettings => Vec::new(),
        Vice::Garbage => b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        // SETTINGS_MAX_CONCURRENT_STREAMS.
        Vice::NoStreams => frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]),
        _ => frame(SETTINGS, 0, 0, &[]),
    };
    replica.0.write_all(&settings).await.ok()?;
    let go_away = frame(GOAWAY, 0, 0, &[0; 8]);
    if matches!(vice, Vice::GoesAway) {
        return replica.0.write_all(&go_away).await.ok();
    }
    replica.request().await?;
    let begins = frame(HEADERS, END_HEADERS, 1, &OK);
    let (first, again) = match vice {
        Vice::NoSettings | Vice::Garbage | Vice::NoStreams | Vice::GoesAway => return Some(()),
        Vice::Stalls | Vice::Resets => return Some(()),
        Vice::HalfCloses => return replica.0.shutdown().await.ok(),
        Vice::GarbageWithin => (vec![0xff; 64], None),
        Vice::StallsWithin | Vice::CutsOff | Vice::ResetsWithin => (begins, None),
        Vice::GoesAwayForEver => (Vec::new(), Some(go_away)),
        Vice::ResetsForEver => {
            let reset = frame(RST_STREAM, 0, 1, &11_u32.to_be_bytes());
            (Vec::new(), Some(reset))
        }
        Vice::PingsForEver => (Vec::new(), Some(frame(PING, 0, 0, &[7; 8]))),
        Vice::SettingsForEver => (Vec::new(), Some(frame(SETTINGS, 0, 0, &[]))),
        Vice::RoomForEver => {
            let room = frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
            (Vec::new(), Some(room))
        }
        Vice::InterimsForEver => {
            let interim = frame(HEADERS, END_HEADERS, 1, &EARLY_HINTS);
            (Vec::new(), Some(interim))
        }
        Vice::HeadForEver => {
            let more = [0, 1, b'x', 1, b'y'].repeat(1000);
            let first = frame(HEADERS, 0, 1, &OK);
            (first, Some(frame(CONTINUATION, 0, 1, &more)))
        }
        Vice::SendsForEver => (begins, Some(frame(DATA, 0, 1, &[b'x'; 0x4000]))),
        Vice::EmptyForEver => (begins, Some(frame(DATA, 0, 1, &[]))),
    };
    replica.0.write_all(&first).await.ok()?;
    let again = again?;
    loop {
        replica.0.write_all(&again).await.ok()?;
        tokio::task::yield_now().await;
    }
}

/// A part of an answer without an end, of which each is sent as there is room for it.
static PART: [u8; 0x4000] = [b'x'; 0x4000];

/// A replica whose answers have this body.
async fn answering<B>(body: impl Fn() -> B + Clone + Send + 'static) -> SocketAddr
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            let answer = service_fn(move |_: Request<Incoming>| {
                ready(Ok::<_, Infallible>(Response::new(body())))
            });
            let serve = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serve.serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_replicas_of_http_2_hang_no_call_and_leave_nothing_behind() {
    const ROUNDS: usize = 12;
    let done = Arc::<AtomicBool>::default();
    let mut addresses = Vec::new();
    for vice in VICES {
        addresses.push(bad(vice, &done).await);
    }
    addresses.push(answering(|| Full::new(Bytes::from("good"))).await);
    let part = || Ok(Frame::data(Bytes::from_static(&PART)));
    let endless = move || StreamBody::new(stream::repeat_with(part));
    addresses.push(answering(endless).await);
    let mut svc = service(1, "svc", &addresses);
    svc.policy = LoadBalancingPolicy::RoundRobin;
    // Each request meets them all again and again: nothing is learnt.
    svc.traffic.ejection.consecutive_errors = 0;
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc.stream_timeout = Duration::from_millis(300);
    let rig = Rig::new([svc]);
    meet(&rig, ROUNDS, "HTTP/2").await;
    done.store(true, Ordering::Relaxed);
}
