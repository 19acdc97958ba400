//! How large a request may be: its body, and its head.

mod support;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use support::{Hand, LINGER, Rig, Seen, http2_client, log, recorder, service, soon};
use tokio::net::TcpListener;

const MOST: u64 = 10;

async fn rig(log: &Arc<Mutex<Vec<Seen>>>) -> Rig {
    let mut limited = service(1, "svc", &[recorder("one", log).await]);
    limited.traffic.request_body_bytes_max = Some(MOST);
    Rig::new([limited])
}

fn bodies(log: &Arc<Mutex<Vec<Seen>>>) -> Vec<Bytes> {
    let seen = log.lock().expect("no panic");
    seen.iter().map(|seen| seen.body.clone()).collect()
}

#[tokio::test]
async fn a_body_of_known_length_is_refused_before_a_replica_sees_it() {
    let log = log();
    let rig = rig(&log).await;
    let mut client = Hand::connect(rig.address).await;
    let fits = "POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 10\r\n\r\n0123456789";
    let (head, body) = client.ask(fits).await;
    assert_eq!((&head[0][..], &body[..]), ("http/1.1 200 ok", "one"));
    // Nothing of this body is sent: its length suffices, and nobody tells the client to go on.
    let too_large =
        "POST / HTTP/1.1\r\nhost: svc\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n";
    let (head, body) = client.ask(too_large).await;
    assert_eq!(head[0], "http/1.1 413 payload too large");
    assert!(head.contains(&"connection: close".to_owned()), "{head:?}");
    assert!(body.contains("request_too_large"), "{body}");
    assert_eq!(client.rest().await, "");
    assert_eq!(bodies(&log), ["0123456789"]);
    rig.idle().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_refused_once_it_is_too_large() {
    let log = log();
    let rig = rig(&log).await;
    let head = "PUT / HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut client = Hand::connect(rig.address).await;
    let fits = format!("{head}5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
    let (answer, _) = client.ask(&fits).await;
    assert_eq!(answer[0], "http/1.1 200 ok");
    // The client goes on sending long after the answer, and gets it all the same.
    let too_large = format!("{head}5\r\n01234\r\n6\r\n56789a\r\n");
    let begun = Instant::now();
    client.send(&too_large).await;
    let more = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..16 {
        client.send(&more).await;
    }
    let answer = client.head().await;
    assert_eq!(answer[0], "http/1.1 413 payload too large");
    client.rest().await;
    client.cut().await;
    assert!(begun.elapsed() >= LINGER, "{:?}", begun.elapsed());
    rig.idle().await;
    let seen = bodies(&log);
    assert_eq!(seen[0], "0123456789");
    assert!(seen[1..].iter().all(|body| body.len() <= 10), "{seen:?}");
    // That it had to be refused does not count against the replica.
    assert_eq!(rig.metric("retries_total"), 0);
}

#[tokio::test]
async fn a_call_that_sends_too_much_is_told_so_even_after_its_answer_has_begun() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let mut limited = service(1, "svc", &[listener.local_addr().expect("bound")]);
    limited.traffic.request_body_bytes_max = Some(MOST);
    let rig = Rig::new([limited]);
    // A replica that answers at once, and then reads.
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("open");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let head = Response::builder().header("content-type", "application/grpc");
            let head = head.body(()).expect("a head");
            let answer = respond.send_response(head, false).expect("a stream");
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.data().await {}
                drop(answer);
            });
        }
    });
    let (mut sender, _) = http2_client(&rig).await;
    let (parts, received) = tokio::sync::mpsc::channel::<Bytes>(4);
    let stream = stream_of(received);
    let request = Request::post("http://svc.example/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(stream).boxed())
        .expect("a good request");
    let answer = soon("a head", sender.send_request(request)).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    for part in ["01234", "56789", "a"] {
        parts.send(Bytes::from(part)).await.expect("it is read");
    }
    let whole = soon("the end", answer.into_body().collect()).await;
    let whole = whole.expect("trailers");
    let trailers = whole.trailers().expect("trailers");
    assert_eq!(trailers["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    rig.idle().await;

    // And one that says how much it sends is refused at once.
    let request = Request::post("http://svc.example/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .body(
            Full::from("0123456789a")
                .map_err(|never| match never {})
                .boxed(),
        )
        .expect("a good request");
    let answer = soon("an answer", sender.send_request(request)).await;
    assert_eq!(answer.expect("an answer").headers()["grpc-status"], "8");
}

#[tokio::test]
async fn a_rule_has_a_limit_of_its_own() {
    let log = log();
    let mut limited = service(1, "svc", &[recorder("one", &log).await]);
    limited.traffic.request_body_bytes_max = Some(MOST);
    let rule = |path: &str, most| raftserve_model::spec::RouteRule {
        path_prefix: Some(path.to_owned()),
        request_body_bytes_max: most,
        ..Default::default()
    };
    limited.traffic.routes = vec![
        rule("/more", Some(20)),
        rule("/less", Some(5)),
        rule("/same", None),
    ];
    let rig = Rig::new([limited]);
    for (path, most) in [("/more", 20), ("/less", 5), ("/same", 10), ("/", 10)] {
        for length in [most, most + 1] {
            for chunked in [false, true] {
                let body = "x".repeat(length);
                let request = match chunked {
                    false => format!("content-length: {length}\r\n\r\n{body}"),
                    true => format!(
                        "transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
                    ),
                };
                let mut client = Hand::connect(rig.address).await;
                let head = format!("POST {path} HTTP/1.1\r\nhost: svc\r\n");
                let (answer, body) = client.ask(&format!("{head}{request}")).await;
                let case = format!("{path} {length} {chunked}: {answer:?} {body}");
                if length == most {
                    assert_eq!(answer[0], "http/1.1 200 ok", "{case}");
                } else {
                    assert_eq!(answer[0], "http/1.1 413 payload too large", "{case}");
                    assert!(body.contains(&format!("the {most} bytes")), "{case}");
                }
            }
        }
    }
    rig.idle().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_until_an_update_allows_it() {
    let log = log();
    let mut svc = service(1, "svc", &[recorder("one", &log).await]);
    svc.traffic.request_head_bytes_max = Some(1024);
    let rig = Rig::new([svc.clone()]);
    let mut client = Hand::connect(rig.address).await;
    let (mut sender, _) = http2_client(&rig).await;
    let head = |length: usize| {
        let head = "GET / HTTP/1.1\r\nhost: svc\r\ncookie: \r\n\r\n";
        head.replace(
            "cookie: ",
            &format!("cookie: {}", "x".repeat(length - head.len())),
        )
    };
    assert_eq!(head(1024).len(), 1024);
    let request = |kind: &str| {
        Request::post("http://svc.example/pkg.Service/Method")
            .header("content-type", kind)
            .header("cookie", "x".repeat(1024))
            .body(Full::<Bytes>::default())
            .expect("a good request")
    };
    for length in [1024, 1025, 9000, 1024] {
        let (answer, body) = client.ask(&head(length)).await;
        if length == 1024 {
            assert_eq!(answer[0], "http/1.1 200 ok");
        } else {
            let refused = "http/1.1 431 request header fields too large";
            assert_eq!(answer[0], refused, "{length}");
            assert!(body.contains("request_head_too_large"), "{body}");
            assert!(body.contains("the 1024 bytes"), "{body}");
        }
    }
    let answer = soon("an answer", sender.send_request(request("text/plain"))).await;
    assert_eq!(answer.expect("an answer").status(), 431);
    let answer = soon(
        "an answer",
        sender.send_request(request("application/grpc")),
    )
    .await;
    assert_eq!(answer.expect("an answer").headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    assert_eq!(bodies(&log).len(), 2, "no replica sees what is refused");

    svc.traffic.request_head_bytes_max = Some(9000);
    rig.routes.publish(support::table([svc]));
    assert_eq!(client.ask(&head(9000)).await.0[0], "http/1.1 200 ok");
    let answer = soon("an answer", sender.send_request(request("text/plain"))).await;
    assert_eq!(answer.expect("an answer").status(), 200);
    rig.idle().await;
}

fn stream_of(
    received: tokio::sync::mpsc::Receiver<Bytes>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> {
    futures_util::stream::unfold(received, |mut received| async move {
        let part = received.recv().await?;
        Some((Ok(Frame::data(part)), received))
    })
}
