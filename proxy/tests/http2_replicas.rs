//! HTTP/2 to replicas: which requests go that way, how few connections they need, and what becomes of a
//! request that a replica did not act on.

mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use raftserve_model::spec::UpstreamProtocol;
use support::replica::{Call, Replica};
use support::{
    EARLY_HINTS, END_HEADERS, HEADERS, Hand, Rig, by_hand, frame, http2_client, log, recorder,
    service, soon, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn call(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://svc.example/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::from(body))
        .expect("a good request")
}

fn ok_trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        "grpc-status".parse().expect("a name"),
        "0".parse().expect("a value"),
    )])
}

/// Reads the whole body of a call, as long as its flow control lets it.
async fn read(body: &mut RecvStream) -> Bytes {
    let mut all = Vec::new();
    while let Some(data) = soon("data", body.data()).await {
        let data = data.expect("a whole body");
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Bytes::from(all)
}

/// Answers a call with what it sent, and trailers.
async fn echo((request, mut respond): Call) {
    let mut body = request.into_body();
    let data = read(&mut body).await;
    let head = Response::builder().header("content-type", "application/grpc");
    let mut answer = respond
        .send_response(head.body(()).expect("a head"), false)
        .expect("a stream");
    answer.send_data(data, false).expect("a stream");
    answer.send_trailers(ok_trailers()).expect("a stream");
}

#[tokio::test]
async fn calls_go_over_http_2_and_all_else_over_http_1() {
    let mut replica = Replica::start(100).await;
    let log = log();
    let mut mixed = service(1, "svc", &[replica.address]);
    let rig = Rig::new([mixed.clone()]);
    let mut sender = http2_client(&rig).await.0;
    let answer = tokio::spawn(sender.send_request(call("hello")));
    let (request, respond) = replica.call().await;
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.uri(), "http://svc.example/pkg.Service/Method");
    assert_eq!(request.headers()["te"], "trailers");
    for absent in ["host", "connection", "transfer-encoding"] {
        assert!(!request.headers().contains_key(absent), "{absent}");
    }
    assert_eq!(request.headers()["x-forwarded-host"], "svc.example");
    echo((request, respond)).await;
    let response = soon("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let whole = soon("a body", response.into_body().collect())
        .await
        .expect("a body");
    assert_eq!(whole.trailers(), Some(&ok_trailers()));
    assert_eq!(whole.to_bytes(), "hello");
    rig.idle().await;

    // The same service's other requests: this replica of it speaks HTTP/1 only.
    mixed.endpoints[0].address = recorder("one", &log).await;
    rig.routes.publish(support::table([mixed]));
    assert_eq!(
        support::get(rig.address, "svc", "/").await,
        (200, "one".to_owned())
    );
    let mut grpc_web = call("x");
    let kind = "application/grpc-web".parse().expect("a value");
    grpc_web.headers_mut().insert("content-type", kind);
    let answer = soon("an answer", sender.send_request(grpc_web))
        .await
        .expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_service_may_have_all_its_requests_sent_over_http_2() {
    let mut replica = Replica::start(100).await;
    let mut service = service(1, "svc", &[replica.address]);
    service.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let rig = Rig::new([service]);
    let mut hand = Hand::connect(rig.address).await;
    hand.send(
        "POST /p?q=1 HTTP/1.1\r\nhost: svc.example:81\r\nconnection: upgrade, x-hop\r\nupgrade: websocket\r\n\
         x-hop: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-up: 1\r\nX-Forwarded-Client-Cert: Subject=admin\r\n\r\n",
    )
    .await;
    let (request, mut respond) = replica.call().await;
    assert_eq!(request.uri(), "http://svc.example:81/p?q=1");
    for absent in [
        "host",
        "connection",
        "x-hop",
        "upgrade",
        "transfer-encoding",
    ] {
        assert!(!request.headers().contains_key(absent), "{absent}");
    }
    let mut body = request.into_body();
    assert_eq!(read(&mut body).await, "abc");
    let trailers = soon("trailers", body.trailers())
        .await
        .expect("a whole body");
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["x-up"], "1");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    let head = Response::builder().status(201).body(()).expect("a head");
    let mut answer = respond.send_response(head, false).expect("a stream");
    answer
        .send_data(Bytes::from("made"), true)
        .expect("a stream");
    let head = hand.head().await;
    assert_eq!(head[0], "http/1.1 201 created");
    assert_eq!(hand.exactly(14).await, "4\r\nmade\r\n0\r\n\r\n");
    rig.idle().await;
}

#[tokio::test]
async fn each_call_of_one_connection_is_balanced_by_itself() {
    let mut replicas = [Replica::start(100).await, Replica::start(100).await];
    let rig = Rig::new([service(
        1,
        "svc",
        &replicas.each_ref().map(|each| each.address),
    )]);
    let mut sender = http2_client(&rig).await.0;
    for _ in 0..10 {
        let answers = [(); 2].map(|()| tokio::spawn(sender.send_request(call("x"))));
        for replica in &mut replicas {
            echo(replica.call().await).await;
        }
        for answer in answers {
            let answer = soon("an answer", answer).await.expect("no panic");
            assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        }
    }
    for replica in replicas {
        assert_eq!(replica.connections.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn connections_are_opened_only_when_all_their_streams_are_taken() {
    let mut replica = Replica::start(10).await;
    let rig = Rig::new([service(1, "svc", &[replica.address])]);
    let mut sender = http2_client(&rig).await.0; // One connection, so one worker.
    let answers: Vec<_> = (0..35)
        .map(|_| tokio::spawn(sender.send_request(call("x"))))
        .collect();
    let mut calls = Vec::new();
    for _ in 0..35 {
        // All run at once: none waits for another one to end.
        calls.push(replica.call().await);
    }
    assert_eq!(replica.connections.load(Ordering::Relaxed), 4);
    for call in calls {
        echo(call).await;
    }
    for answer in answers {
        let answer = soon("an answer", answer).await.expect("no panic");
        answer.expect("an answer");
    }
    rig.idle().await;
}

#[tokio::test]
async fn a_call_streams_both_ways_at_once() {
    let mut replica = Replica::start(100).await;
    let rig = Rig::new([service(1, "svc", &[replica.address])]);
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = call("").map(|_| ());
    let (answer, mut up) = client.send_request(request, false).expect("a stream");
    let (request, mut respond) = replica.call().await;
    let mut received = request.into_body();
    // The answer begins before the request has sent anything.
    let head = Response::builder().header("content-type", "application/grpc");
    let head = head.body(()).expect("a head");
    let mut down = respond.send_response(head, false).expect("a stream");
    let mut answer = soon("a head", answer).await.expect("an answer").into_body();
    for n in 0..5 {
        let word = Bytes::from(format!("message {n}"));
        up.send_data(word.clone(), false).expect("a stream");
        let got = soon("a message", received.data())
            .await
            .expect("data")
            .expect("data");
        assert_eq!(got, word);
        down.send_data(got, false).expect("a stream");
        let got = soon("its echo", answer.data())
            .await
            .expect("data")
            .expect("data");
        assert_eq!(got, word);
    }
    assert_eq!(rig.proxy.loads().len(), 1);
    down.send_trailers(ok_trailers()).expect("a stream");
    assert!(soon("the end", answer.data()).await.is_none());
    let trailers = soon("trailers", answer.trailers())
        .await
        .expect("a whole answer");
    assert_eq!(trailers, Some(ok_trailers()));
    drop(up);
    rig.idle().await;
}

#[tokio::test]
async fn a_call_that_a_replica_refuses_is_sent_to_another_one_whole() {
    let mut replicas = [Replica::start(100).await, Replica::start(100).await];
    let rig = Rig::new([service(
        1,
        "svc",
        &replicas.each_ref().map(|each| each.address),
    )]);
    let mut sender = http2_client(&rig).await.0;
    let answer = tokio::spawn(sender.send_request(call("the whole of it")));
    let [one, two] = &mut replicas;
    let (first, other) = tokio::select! {
        call = one.call() => (call, two),
        call = two.call() => (call, one),
    };
    // It has read all of it, and yet says that it did nothing.
    let (request, mut respond) = first;
    let mut body = request.into_body();
    assert_eq!(read(&mut body).await, "the whole of it");
    respond.send_reset(Reason::REFUSED_STREAM);
    let second = other.call().await;
    assert_eq!(second.0.headers()["content-type"], "application/grpc");
    echo(second).await;
    let answer = soon("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let whole = soon("a body", answer.into_body().collect())
        .await
        .expect("a body");
    assert_eq!(whole.to_bytes(), "the whole of it");
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_goes_away_gets_what_it_did_not_act_on_again_on_a_new_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    let rig = Rig::new([service(1, "svc", &[address])]);
    let mut sender = http2_client(&rig).await.0;
    let first = tokio::spawn(sender.send_request(call("first")));
    let (stream, _) = soon("a connection", listener.accept())
        .await
        .expect("it listens");
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    let running = soon("a call", connection.accept())
        .await
        .expect("a call")
        .expect("a call");
    // What comes from now on is refused, if the proxy has not heard yet; and the running call finishes.
    connection.graceful_shutdown();
    let driving = tokio::spawn(async move {
        while let Some(Ok((_, mut late))) = connection.accept().await {
            late.send_reset(Reason::REFUSED_STREAM);
        }
    });
    let second = tokio::spawn(sender.send_request(call("second")));
    let (stream, _) = soon("a new connection", listener.accept())
        .await
        .expect("it listens");
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    let again = soon("a call", connection.accept())
        .await
        .expect("a call")
        .expect("a call");
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
    tokio::join!(echo(running), echo(again));
    for (answer, expected) in [(first, "first"), (second, "second")] {
        let answer = soon("an answer", answer)
            .await
            .expect("no panic")
            .expect("an answer");
        let whole = soon("a body", answer.into_body().collect())
            .await
            .expect("a body");
        assert_eq!(whole.to_bytes(), expected);
    }
    soon("the old connection's end", driving)
        .await
        .expect("no panic");
    rig.idle().await;
}

/// A replica that says, at the first call, that it goes away and has acted on none.
async fn goes_away(listener: TcpListener) {
    const HEAD_BYTES: usize = 9;
    const HEADERS: u8 = 1;
    let (mut stream, _) = listener.accept().await.expect("it listens");
    // Who comes later is refused.
    drop(listener);
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&settings).await.expect("the proxy reads");
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.expect("a preface");
    loop {
        let mut head = [0; HEAD_BYTES];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.expect("a frame");
        if head[3] == HEADERS {
            break;
        }
    }
    let goaway = [[0, 0, 8, 7, 0, 0, 0, 0, 0].as_slice(), &[0; 8]].concat();
    stream.write_all(&goaway).await.expect("the proxy reads");
    // Until the proxy closes, too.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_replica_that_goes_away_on_every_connection_is_as_good_as_none() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let rig = Rig::new([svc]);
    let opened = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&opened);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(mut replica) = connections.recv().await {
            count.fetch_add(1, Ordering::Relaxed);
            let settings = frame(SETTINGS, 0, 0, &[]);
            replica
                .send([settings, frame(GOAWAY, 0, 0, &[0; 8])].concat())
                .await;
            held.push(replica);
        }
    });
    let (status, body) = support::get(rig.address, "svc", "/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("replica_refused"), "{body}");
    assert!(opened.load(Ordering::Relaxed) <= 3);
    assert_eq!(rig.metric("connect_failures_total"), 0);
    rig.idle().await;
}

#[tokio::test]
async fn a_call_that_was_sent_to_a_replica_about_to_go_away_is_sent_to_another_one() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let mut other = Replica::start(100).await;
    let addresses = [listener.local_addr().expect("bound"), other.address];
    let rig = Rig::new([service(1, "svc", &addresses)]);
    let mut leaving = tokio::spawn(goes_away(listener));
    let mut sender = http2_client(&rig).await.0;
    // Whichever is chosen first.
    while !leaving.is_finished() {
        let answer = tokio::spawn(sender.send_request(call("hello")));
        echo(other.call().await).await;
        let answer = soon("an answer", answer).await.expect("no panic");
        let whole = answer.expect("an answer").into_body().collect();
        let whole = soon("a body", whole).await.expect("a body");
        assert_eq!(whole.to_bytes(), "hello");
    }
    (&mut leaving).await.expect("it was called");
    rig.idle().await;
}

/// The status and message that a call to `svc` ends with, without an answer of its own.
async fn status(sender: &mut SendRequest<Full<Bytes>>) -> (String, String) {
    let answer = soon("an answer", sender.send_request(call("x"))).await;
    let answer = answer.expect("an answer");
    let [status, message] = ["grpc-status", "grpc-message"].map(|name| {
        let value = answer.headers()[name].to_str();
        value.expect("text").to_owned()
    });
    (status, message)
}

/// It keeps its connections, and is not taken for one that refuses them.
#[tokio::test]
async fn a_replica_that_refuses_streams_is_busy_and_not_out_of_reach() {
    let mut replica = Replica::start(100).await;
    let mut rig = Rig::new([service(1, "svc", &[replica.address])]);
    let mut sender = http2_client(&rig).await.0;
    for _ in 0..2 {
        let refuse = async {
            let (_, mut respond) = replica.call().await;
            respond.send_reset(Reason::REFUSED_STREAM);
        };
        let ((), (status, message)) = tokio::join!(refuse, status(&mut sender));
        assert_eq!(status, "14");
        assert!(message.contains("REFUSED_STREAM"), "{message}");
    }
    let answer = tokio::spawn(sender.send_request(call("x")));
    echo(replica.call().await).await;
    soon("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    assert_eq!(replica.connections.load(Ordering::Relaxed), 1);
    assert_eq!(rig.metric("connect_failures_total"), 0);
    rig.failures.try_recv().expect_err("none to probe");
    rig.idle().await;
}

#[tokio::test]
async fn a_replica_that_leaves_a_new_connection_without_an_error_is_not_out_of_reach() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut rig = Rig::new([service(1, "svc", &[address])]);
    let leaving = tokio::spawn(goes_away(listener));
    let mut sender = http2_client(&rig).await.0;
    let (status, message) = status(&mut sender).await;
    assert_eq!(status, "14");
    assert!(message.contains("GOAWAY"), "{message}");
    assert_eq!(rig.metric("connect_failures_total"), 0);
    rig.failures.try_recv().expect_err("none to probe");
    soon("the connection's end", leaving)
        .await
        .expect("no panic");
}

#[tokio::test]
async fn a_call_to_a_replica_without_http_2_says_so_and_what_sets_it() {
    let (address, mut connections) = by_hand().await;
    let rig = Rig::new([service(1, "svc", &[address])]);
    tokio::spawn(async move {
        while let Some(mut replica) = connections.recv().await {
            let bad = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            replica.send(bad).await;
            replica.rest().await;
        }
    });
    let mut sender = http2_client(&rig).await.0;
    let (status, message) = status(&mut sender).await;
    assert_eq!(status, "14");
    for said in ["speaks no HTTP/2", "traffic.upstream.protocol"] {
        assert!(message.contains(said), "{message}");
    }
}

#[tokio::test]
async fn a_call_that_cannot_be_served_ends_with_a_status_of_grpc() {
    let nowhere = support::nowhere();
    let mut services = [service(1, "svc", &[nowhere]), service(2, "empty", &[])];
    services[1].traffic.queue.requests = 0;
    let rig = Rig::new(services);
    let mut sender = http2_client(&rig).await.0;
    for (host, code) in [("svc", "14"), ("empty", "14"), ("127.0.0.1", "12")] {
        let mut request = call("x");
        *request.uri_mut() = format!("http://{host}/pkg.Service/Method")
            .parse()
            .expect("a URI");
        let answer = soon("an answer", sender.send_request(request))
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{host}");
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        assert_eq!(answer.headers()["grpc-status"], code, "{host}");
        assert!(!answer.headers()["grpc-message"].is_empty());
    }
    until("it is counted as what it is", || {
        rig.proxy
            .render_prometheus()
            .contains("raftserve_proxy_responses_total{service=\"svc\",code=\"5xx\"} 1")
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_replica_breaks_off_ends_with_a_status_of_grpc() {
    let mut replica = Replica::start(100).await;
    let rig = Rig::new([service(1, "svc", &[replica.address])]);
    let mut sender = http2_client(&rig).await.0;
    let answer = tokio::spawn(sender.send_request(call("x")));
    let (_, mut respond) = replica.call().await;
    let head = Response::builder().header("content-type", "application/grpc");
    let head = head.body(()).expect("a head");
    let mut down = respond.send_response(head, false).expect("a stream");
    down.send_data(Bytes::from("part"), false)
        .expect("a stream");
    let answer = soon("a head", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let mut body = answer.into_body();
    let part = soon("a part", body.frame())
        .await
        .expect("a frame")
        .expect("a frame");
    assert_eq!(part.into_data().expect("data"), "part");
    down.send_reset(Reason::INTERNAL_ERROR);
    let end = soon("the end", body.frame())
        .await
        .expect("a frame")
        .expect("a frame");
    assert_eq!(end.into_trailers().expect("trailers")["grpc-status"], "14");
    rig.idle().await;
}

#[tokio::test]
async fn a_call_s_deadline_is_told_on_and_kept() {
    let mut replica = Replica::start(100).await;
    let rig = Rig::new([service(1, "svc", &[replica.address])]);
    let mut sender = http2_client(&rig).await.0;
    let mut with_timeout = |text: &'static str| {
        let mut request = call("x");
        let value = http::HeaderValue::from_static(text);
        request.headers_mut().insert("grpc-timeout", value);
        tokio::spawn(sender.send_request(request))
    };
    // One that gets no answer at all.
    let silent = with_timeout("300m");
    let held = replica.call().await;
    let told = held.0.headers()["grpc-timeout"].to_str().expect("text");
    let left: u64 = told
        .strip_suffix('u')
        .expect("microseconds")
        .parse()
        .expect("a number");
    assert!((1..300_000).contains(&left), "{told}");
    let answer = soon("an answer", silent)
        .await
        .expect("no panic")
        .expect("an answer");
    assert_eq!(answer.headers()["grpc-status"], "4");

    // One whose answer does not end.
    let endless = with_timeout("300m");
    let (_, mut respond) = replica.call().await;
    let head = Response::builder().header("content-type", "application/grpc");
    let head = head.body(()).expect("a head");
    let mut down = respond.send_response(head, false).expect("a stream");
    let answer = soon("a head", endless)
        .await
        .expect("no panic")
        .expect("an answer");
    let end = soon("the end", answer.into_body().collect())
        .await
        .expect("an end");
    assert_eq!(end.trailers().expect("trailers")["grpc-status"], "4");
    let reset = soon("word of it", std::future::poll_fn(|cx| down.poll_reset(cx))).await;
    assert_eq!(reset.expect("a reset"), Reason::CANCEL);
    rig.idle().await;
}

#[tokio::test]
async fn a_service_that_allows_less_time_than_a_call_tells_its_replica_so() {
    let mut replica = Replica::start(100).await;
    let mut svc = service(1, "svc", &[replica.address]);
    svc.traffic.timeouts.total = Some(std::time::Duration::from_secs(15));
    let rig = Rig::new([svc]);
    let mut sender = http2_client(&rig).await.0;
    for (asked, most) in [(None, 15), (Some("60S"), 15), (Some("5S"), 5)] {
        let mut request = call("x");
        if let Some(text) = asked {
            let value = http::HeaderValue::from_static(text);
            request.headers_mut().insert("grpc-timeout", value);
        }
        let answer = tokio::spawn(sender.send_request(request));
        let call = replica.call().await;
        let told = call.0.headers()["grpc-timeout"].to_str().expect("text");
        let left = told.strip_suffix('u').expect("microseconds");
        let left: u64 = left.parse().expect("a number");
        assert!((1..=most * 1_000_000).contains(&left), "{asked:?}: {told}");
        echo(call).await;
        soon("an answer", answer)
            .await
            .expect("no panic")
            .expect("an answer");
    }
}

#[tokio::test]
async fn a_host_that_is_gone_ends_its_calls_and_gets_no_more_over_that_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut config = support::config();
    config.host_silence = std::time::Duration::from_secs(1);
    let services = [service(1, "svc", &[address])];
    let rig = Rig::with(config, services, Arc::new(raftserve_proxy::NoSessions));
    let mut sender = http2_client(&rig).await.0;
    let asked = tokio::spawn(sender.send_request(call("one")));
    let (stream, _) = soon("a connection", listener.accept())
        .await
        .expect("it comes");
    // The same socket twice: one for its library, the other to take its host away.
    let stream = stream.into_std().expect("a socket");
    let socket = stream.try_clone().expect("a socket");
    let stream = TcpStream::from_std(stream).expect("a socket");
    let socket = TcpStream::from_std(socket).expect("a socket");
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    let accepted = soon("a call", connection.accept()).await;
    let _call = accepted.expect("a call").expect("a call");
    let run = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    support::vanish(&socket);
    let answer = soon("an answer", asked).await.expect("no panic");
    let answer = answer.expect("an answer");
    assert_eq!(answer.headers()["grpc-status"], "14");
    run.abort();
    // The next one comes over a new connection.
    let asked = tokio::spawn(sender.send_request(call("two")));
    let (stream, _) = soon("a connection", listener.accept())
        .await
        .expect("it comes");
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    let accepted = soon("a call", connection.accept()).await;
    let call = accepted.expect("a call").expect("a call");
    let run = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    echo(call).await;
    let answer = soon("an answer", asked).await.expect("no panic");
    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
    run.abort();
}

#[tokio::test]
async fn interim_answers_without_an_end_are_none() {
    let (address, mut connections) = by_hand().await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    let rig = Rig::new([svc]);
    let mut client = Hand::connect(rig.address).await;
    client.send("GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let mut replica = support::accept(&mut connections).await;
    let mut preface = [0; 24];
    let read = soon("a preface", replica.0.read_exact(&mut preface)).await;
    read.expect("it is open");
    replica.send(frame(SETTINGS, 0, 0, &[])).await;
    soon("a request", replica.request()).await.expect("one");
    let flood = tokio::spawn(async move {
        let interims = frame(HEADERS, END_HEADERS, 1, &EARLY_HINTS).repeat(100);
        let stream = replica.0.get_mut();
        while stream.write_all(&interims).await.is_ok() {}
    });
    assert_eq!(client.head().await[0], "http/1.1 502 bad gateway");
    rig.idle().await;
    drop(rig);
    soon("the end of the flood", flood).await.expect("no panic");
}
