//! Who takes nothing over HTTP/2 stops whoever sends over HTTP/2 at the other side of the proxy.

mod support;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{SendStream, client};
use http::{Request, Response};
use raftserve_model::spec::UpstreamProtocol;
use support::replica::{Replica, take_all};
use support::{Rig, service, soon};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;
/// Far more than all windows and buffers on the way hold.
const LARGE: usize = 64 * MIB;
/// What a body that nobody takes may occupy: a window and a buffer of each of the two connections, at both ends.
const BUFFERED_MAX: usize = 4 * MIB;
const BLOCK: usize = 64 << 10;
static BYTES: [u8; BLOCK] = [b'x'; BLOCK];

/// Sends as much as there is room for at once.
async fn send_some(out: &mut SendStream<Bytes>, sent: &mut usize) {
    let wanted = BLOCK.min(LARGE - *sent);
    out.reserve_capacity(wanted);
    let room = poll_fn(|cx| out.poll_capacity(cx)).await;
    let room = room.expect("it is open").expect("it is open").min(wanted);
    let data = Bytes::from_static(&BYTES).slice(..room);
    out.send_data(data, false).expect("it is open");
    *sent += room;
}

/// Sends until nothing was taken for a while, or all is sent.
async fn send_until_stalled(out: &mut SendStream<Bytes>) -> usize {
    const WHILE: Duration = Duration::from_millis(500);
    let mut sent = 0;
    while sent < LARGE {
        let some = send_some(out, &mut sent);
        if tokio::time::timeout(WHILE, some).await.is_err() {
            break;
        }
    }
    sent
}

async fn send_rest(out: &mut SendStream<Bytes>, mut sent: usize) {
    while sent < LARGE {
        soon("room", send_some(out, &mut sent)).await;
    }
    out.send_data(Bytes::new(), true).expect("it is open");
}

async fn rig() -> (Rig, Replica, client::SendRequest<Bytes>) {
    rig_with(None).await
}

/// With so much time for each request.
async fn rig_with(total: Option<Duration>) -> (Rig, Replica, client::SendRequest<Bytes>) {
    let replica = Replica::start(10).await;
    let mut svc = service(1, "svc", &[replica.address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc.traffic.timeouts.total = total;
    let rig = Rig::new([svc]);
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let (sender, connection) = client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let sender = soon("room for a stream", sender.ready()).await;
    (rig, replica, sender.expect("it is open"))
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_the_replica_back() {
    let (rig, mut replica, mut sender) = rig().await;
    let request = Request::get("http://svc/").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("it is open");
    let (_request, mut respond) = replica.call().await;
    let out = respond.send_response(Response::new(()), false);
    let mut out = out.expect("it is open");
    let sent = send_until_stalled(&mut out).await;
    assert!(sent < BUFFERED_MAX, "{sent} bytes were taken");
    assert_eq!(rig.proxy.loads().len(), 1);
    let answer = soon("an answer", answer).await.expect("an answer");
    let mut body = answer.into_body();
    let ((), taken) = tokio::join!(send_rest(&mut out, sent), take_all(&mut body));
    assert_eq!(taken, LARGE);
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_takes_nothing_holds_the_client_back() {
    let (rig, mut replica, mut sender) = rig().await;
    let request = Request::post("http://svc/").body(()).expect("a request");
    let (answer, mut out) = sender.send_request(request, false).expect("it is open");
    let (mut request, mut respond) = replica.call().await;
    let sent = send_until_stalled(&mut out).await;
    assert!(sent < BUFFERED_MAX, "{sent} bytes were taken");
    assert_eq!(rig.proxy.loads().len(), 1);
    let ((), taken) = tokio::join!(send_rest(&mut out, sent), take_all(request.body_mut()));
    assert_eq!(taken, LARGE);
    let end = respond.send_response(Response::new(()), true);
    end.expect("it is open");
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    rig.idle().await;
}

#[tokio::test]
async fn the_time_of_a_request_runs_out_while_its_client_takes_nothing() {
    const TIME: Duration = Duration::from_secs(1);
    for (total, is_call) in [(Some(TIME), false), (Some(TIME), true), (None, true)] {
        let (rig, mut replica, mut sender) = rig_with(total).await;
        let mut request = Request::post("http://svc/");
        if is_call {
            request = request.header("content-type", "application/grpc");
        }
        if total.is_none() {
            request = request.header("grpc-timeout", "1S");
        }
        let request = request.body(()).expect("a request");
        let begun = std::time::Instant::now();
        let (answer, _) = sender.send_request(request, true).expect("it is open");
        let (_request, mut respond) = replica.call().await;
        let out = respond.send_response(Response::new(()), false);
        let mut out = out.expect("it is open");
        send_until_stalled(&mut out).await;
        let reset = poll_fn(|cx| out.poll_reset(cx));
        soon("the end at the replica", reset)
            .await
            .expect("a reset");
        assert!(begun.elapsed() >= TIME, "{total:?}");
        rig.idle().await;
        let mut body = soon("an answer", answer).await.expect("one").into_body();
        let mut taken = 0;
        let ended = loop {
            match soon("data", body.data()).await {
                Some(Ok(data)) => {
                    taken += data.len();
                    let released = body.flow_control().release_capacity(data.len());
                    released.expect("it was taken");
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(body.trailers().await.expect("trailers")),
            }
        };
        assert!(taken < LARGE);
        match ended {
            Ok(trailers) => assert_eq!(trailers.expect("some")["grpc-status"], "4"),
            Err(error) => assert!(error.is_reset() && !is_call, "{error}"),
        }
    }
}
