//! What every answer over HTTP/2 tells besides what its replica said: when it was made, and how long it is.

mod support;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use support::{Hand, Rig, by_hand, http2_client, service, soon};
use tokio::sync::mpsc;

/// The answer to a request, for which the replica sends exactly this.
async fn answered(
    client: &mut http2::SendRequest<Full<Bytes>>,
    replica: &mut mpsc::Receiver<Hand>,
    method: Method,
    sent: &str,
) -> (Response<()>, Bytes) {
    let request = Request::builder()
        .method(method)
        .uri("http://svc.example/")
        .body(Full::default())
        .expect("a good request");
    let play = async {
        let mut hand = soon("a request", replica.recv()).await.expect("it listens");
        hand.head().await;
        hand.send(sent).await;
    };
    let (response, ()) = tokio::join!(soon("an answer", client.send_request(request)), play);
    whole(response.expect("an answer")).await
}

async fn whole(response: Response<Incoming>) -> (Response<()>, Bytes) {
    let (head, body) = response.into_parts();
    let body = soon("a body", body.collect()).await.expect("a whole body");
    (Response::from_parts(head, ()), body.to_bytes())
}

/// Of each field, all its lines.
fn lines<'a>(response: &'a Response<()>, name: &http::HeaderName) -> Vec<&'a str> {
    let all = response.headers().get_all(name).iter();
    all.map(|value| value.to_str().expect("text")).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "an answer's date is that of the wall clock"
)]
fn is_now(date: &str) -> bool {
    let told = httpdate::parse_http_date(date).expect("a date of HTTP");
    let now = std::time::SystemTime::now();
    let away = now
        .duration_since(told)
        .or_else(|_| told.duration_since(now));
    away.is_ok_and(|away| away.as_secs() < 60)
}

#[tokio::test]
async fn an_answer_has_one_date_which_is_the_replicas_where_it_gives_one() {
    let (address, mut replica) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = http2_client(&rig).await.0;
    let plain = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let (response, body) = answered(&mut client, &mut replica, Method::GET, plain).await;
    let dates = lines(&response, &DATE);
    assert!(dates.len() == 1 && is_now(dates[0]), "{dates:?}");
    assert_eq!(body, "ok");

    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    let dated = format!(
        "HTTP/1.1 200 OK\r\ndate: {old}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    );
    let (response, _) = answered(&mut client, &mut replica, Method::GET, &dated).await;
    assert_eq!(lines(&response, &DATE), [old]);
}

#[tokio::test]
async fn an_answer_tells_its_length_where_it_is_known_and_nothing_where_it_is_not() {
    let (address, mut replica) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut client = http2_client(&rig).await.0;
    let close = "connection: close\r\n";
    for (method, head, body, lengths, read) in [
        (
            Method::GET,
            "200 OK\r\ncontent-length: 5",
            "hello",
            &["5"][..],
            "hello",
        ),
        (Method::GET, "200 OK\r\ncontent-length: 0", "", &["0"], ""),
        // The length of what a GET would have got.
        (Method::HEAD, "200 OK\r\ncontent-length: 5", "", &["5"], ""),
        (Method::HEAD, "200 OK", "", &[], ""),
        (Method::GET, "204 No Content", "", &[], ""),
        (
            Method::GET,
            "304 Not Modified\r\ncontent-length: 5",
            "",
            &["5"],
            "",
        ),
        (
            Method::GET,
            "200 OK\r\ntransfer-encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            &[],
            "hello",
        ),
        // It lasts as long as its connection.
        (Method::GET, "200 OK", "hello", &[], "hello"),
    ] {
        let sent = format!("HTTP/1.1 {head}\r\n{close}\r\n{body}");
        let asked = method.clone();
        let (response, body) = answered(&mut client, &mut replica, asked, &sent).await;
        assert_eq!(
            lines(&response, &CONTENT_LENGTH),
            lengths,
            "{method} {sent}"
        );
        assert_eq!(lines(&response, &DATE).len(), 1, "{method} {sent}");
        assert_eq!(body, read, "{method} {sent}");
    }
}

#[tokio::test]
async fn the_proxys_own_answers_tell_both() {
    let rig = Rig::new([
        service(1, "one", &[support::nowhere()]),
        service(2, "two", &[]),
    ]);
    let mut client = http2_client(&rig).await.0;
    for (host, status) in [("one", 502), ("nobody", 404)] {
        let request =
            Request::get(format!("http://{host}.example/")).body(Full::<Bytes>::default());
        let request = request.expect("a good request");
        let response = soon("an answer", client.send_request(request)).await;
        let (response, body) = whole(response.expect("an answer")).await;
        assert_eq!(response.status(), status);
        assert_eq!(lines(&response, &CONTENT_LENGTH), [body.len().to_string()]);
        let dates = lines(&response, &DATE);
        assert!(dates.len() == 1 && is_now(dates[0]), "{dates:?}");
        assert!(!body.is_empty());
    }
}

/// A client of HTTP/2 that sees interim answers.
async fn bare_client(rig: &Rig) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(rig.address).await;
    let handshake = h2::client::handshake(stream.expect("it listens"));
    let (sender, connection) = soon("a handshake", handshake).await.expect("HTTP/2");
    tokio::spawn(connection);
    soon("room", sender.ready()).await.expect("it is open")
}

fn post(expect: Option<&str>) -> Request<()> {
    let mut request = Request::post("http://svc.example/").body(()).expect("good");
    if let Some(expect) = expect {
        let expect = expect.parse().expect("a value");
        request.headers_mut().insert(http::header::EXPECT, expect);
    }
    request
}

#[tokio::test]
async fn a_client_that_expects_it_is_told_to_go_on_once_a_replica_takes_its_body() {
    let (address, mut replicas) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    for expect in [Some("100-continue"), Some("100-Continue"), None] {
        let mut sender = bare_client(&rig).await;
        let (mut answer, mut body) = sender.send_request(post(expect), false).expect("sent");
        let mut replica = support::accept(&mut replicas).await;
        let head = replica.head().await;
        assert!(
            head.iter().all(|line| !line.starts_with("expect")),
            "{head:?}"
        );
        if expect.is_some() {
            let interim = std::future::poll_fn(|cx| answer.poll_informational(cx));
            let interim = soon("an interim answer", interim).await.expect("one");
            assert_eq!(interim.expect("well formed").status(), 100);
        }
        body.send_data("body".into(), true).expect("open");
        assert_eq!(replica.exactly(14).await, "4\r\nbody\r\n0\r\n\r\n");
        replica
            .send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        let none = std::future::poll_fn(|cx| answer.poll_informational(cx));
        assert!(soon("no more of them", none).await.is_none());
        let answer = soon("an answer", answer).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test]
async fn a_client_whose_request_is_refused_is_not_told_to_go_on() {
    let mut limited = service(1, "svc", &[support::nowhere()]);
    limited.traffic.request_body_bytes_max = Some(3);
    let rig = Rig::new([limited]);
    let mut sender = bare_client(&rig).await;
    let mut request = post(Some("100-continue"));
    request.headers_mut().insert(CONTENT_LENGTH, 4.into());
    let (mut answer, _body) = sender.send_request(request, false).expect("sent");
    let none = std::future::poll_fn(|cx| answer.poll_informational(cx));
    assert!(soon("the answer", none).await.is_none());
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 413);
}

#[tokio::test]
async fn a_head_of_an_answer_may_be_as_large_over_http_2_as_one_of_a_request() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let mut svc = service(1, "svc", &[listener.local_addr().expect("bound")]);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("open");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut answer = Response::new(());
            for number in 0..5 {
                let name = format!("x-large-{number}").parse::<http::HeaderName>();
                let value = "x".repeat(11_000).parse().expect("a value");
                answer.headers_mut().insert(name.expect("a name"), value);
            }
            respond.send_response(answer, true).expect("a stream");
        }
    });
    svc.traffic.upstream.protocol = raftserve_model::spec::UpstreamProtocol::Http2;
    let rig = Rig::new([svc]);
    let request = Request::get("/").header("host", "h").body(Full::default());
    let answer = support::ask(rig.address, request.expect("a good request")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-large-4"].len(), 11_000);
}
