//! What counts as ready, asked over real sockets of servers that are not ours.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{ParseOptions, ServiceSpec};
use raftserve_model::{ReplicaId, ServiceId};
use raftserve_proxy::ReachError;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Verdicts;
use super::question::{Manner, Question, Unready};

/// The question that a service with these settings puts to `address`.
fn question(address: SocketAddr, probe: &str, raftserve: &str) -> Question {
    let yaml = format!(
        "service: {{readiness_probe: {probe}}}\nresources: {{ports: 8080}}\nrun: serve 8080\n\
         _metadata: {{raftserve: {raftserve}}}\n"
    );
    let spec = ServiceSpec::parse(&yaml, ParseOptions::default()).expect("a service");
    Question {
        address: address.to_string(),
        manner: Arc::new(Manner::new(&spec.spec)),
    }
}

fn grpc(address: SocketAddr, more: &str) -> Question {
    question(
        address,
        "{timeout_seconds: 10}",
        &format!("{{readiness_probe: {{grpc: {more}}}}}"),
    )
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A gRPC server with health checking, and nothing else.
async fn health_server() -> (SocketAddr, HealthReporter, AbortOnDropHandle<()>) {
    let (listener, address) = listener().await;
    let (reporter, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_service(health)
        .serve_with_incoming(incoming);
    let task = tokio::spawn(async move { server.await.expect("a server") });
    (address, reporter, AbortOnDropHandle::new(task))
}

/// A server of HTTP/1.1, or by ALPN of HTTP/2, that answers 200 to all and tells what it was asked.
async fn http_server(
    tls: Option<TlsAcceptor>,
) -> (
    SocketAddr,
    mpsc::Receiver<Request<()>>,
    AbortOnDropHandle<()>,
) {
    let (listener, address) = listener().await;
    let (told, asked) = mpsc::channel(16);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, tls) = (told.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => answer(stream, false, told).await,
                    Some(tls) => {
                        // A handshake that fails is the client's affair.
                        if let Ok(stream) = tls.accept(stream).await {
                            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            answer(stream, http2, told).await;
                        }
                    }
                }
            });
        }
    });
    (address, asked, AbortOnDropHandle::new(task))
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    http2: bool,
    told: mpsc::Sender<Request<()>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        told.try_send(request.map(|_| ())).expect("room to tell it");
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    let stream = TokioIo::new(stream);
    // How it ends is seen by the client.
    let _ = match http2 {
        true => {
            server::http2::Builder::new(TokioExecutor::new())
                .serve_connection(stream, service)
                .await
        }
        false => {
            server::http1::Builder::new()
                .serve_connection(stream, service)
                .await
        }
    };
}

/// A certificate for 127.0.0.1, and what accepts connections by it.
fn tls() -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn a_replica_that_speaks_only_grpc_is_ready_once_it_says_that_it_serves() {
    let (address, reporter, _server) = health_server().await;
    let as_before = question(address, "/", "{}")
        .ask()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        as_before.contains("readiness_probe: {grpc: {}}"),
        "{as_before}"
    );
    // The server as a whole serves from the beginning.
    grpc(address, "{}").ask().await.unwrap();

    let one = grpc(address, "{service: hello.Hello}");
    let unknown = one.ask().await.unwrap_err().to_string();
    assert!(
        unknown.contains("knows no service \"hello.Hello\"; name one"),
        "{unknown}"
    );
    let report = |status| reporter.set_service_status("hello.Hello", status);
    report(ServingStatus::NotServing).await;
    let refused = one.ask().await.unwrap_err().to_string();
    assert!(
        refused.ends_with("answered NOT_SERVING of hello.Hello"),
        "{refused}"
    );
    report(ServingStatus::Serving).await;
    one.ask().await.unwrap();
    report(ServingStatus::NotServing).await;
    one.ask().await.unwrap_err();
}

#[tokio::test]
async fn a_server_without_health_checking_is_told_from_one_that_is_no_grpc() {
    let (listener, address) = listener().await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::default())
        .serve_with_incoming(incoming);
    let _server = AbortOnDropHandle::new(tokio::spawn(server));
    let said = grpc(address, "{}").ask().await.unwrap_err().to_string();
    assert!(
        said.contains("let it serve grpc.health.v1, or probe it by tcp: {}"),
        "{said}"
    );

    let (address, _, _server) = http_server(None).await;
    let said = grpc(address, "{}").ask().await.unwrap_err().to_string();
    assert!(
        said.contains("no answer to /grpc.health.v1.Health/Check"),
        "{said}"
    );
}

#[tokio::test]
async fn by_tcp_a_connection_is_enough_and_none_is_not() {
    let (listener, address) = listener().await;
    let tcp = question(
        address,
        "{timeout_seconds: 5}",
        "{readiness_probe: {tcp: {}}}",
    );
    tcp.ask().await.unwrap();
    drop(listener);
    let refused = tcp.ask().await.unwrap_err().to_string();
    assert!(
        refused.starts_with("cannot connect to 127.0.0.1:"),
        "{refused}"
    );
}

#[tokio::test]
async fn probes_go_over_tls_and_http2_where_requests_do() {
    let (pem, acceptor) = tls();
    let (address, mut asked, _server) = http_server(Some(acceptor)).await;
    let trust = format!(
        "tls: {{authorities: {}}}",
        serde_json::to_string(&pem).unwrap()
    );
    for (protocol, version) in [
        ("http1", http::Version::HTTP_11),
        ("auto", http::Version::HTTP_11),
        ("http2", http::Version::HTTP_2),
    ] {
        let upstream = format!("{{traffic: {{upstream: {{protocol: {protocol}, {trust}}}}}}}");
        question(address, "{path: '/health?a=1'}", &upstream)
            .ask()
            .await
            .unwrap();
        let request = asked.recv().await.unwrap();
        assert_eq!(request.version(), version);
        assert_eq!(request.uri().path_and_query().unwrap(), "/health?a=1");
        let authority = match version {
            http::Version::HTTP_2 => request.uri().authority().unwrap().as_str(),
            _ => request.headers()["host"].to_str().unwrap(),
        };
        assert_eq!(authority, address.to_string());
    }
    // A handshake is part of a connection, and one that fails is no readiness.
    let tcp = format!("{{readiness_probe: {{tcp: {{}}}}, traffic: {{upstream: {{{trust}}}}}}}");
    question(address, "/", &tcp).ask().await.unwrap();
    let (other, _) = self::tls();
    let other = serde_json::to_string(&other).unwrap();
    for probe in ["", "readiness_probe: {tcp: {}}, "] {
        let settings =
            format!("{{{probe}traffic: {{upstream: {{tls: {{authorities: {other}}}}}}}}}");
        let refused = question(address, "/", &settings)
            .ask()
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("certificate"), "{refused}");
    }
    // In the clear it answers nothing.
    question(address, "{path: /, timeout_seconds: 1}", "{}")
        .ask()
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_host_header_of_the_users_takes_the_place_of_ours() {
    let (address, mut asked, _server) = http_server(None).await;
    let probe = "{path: /, headers: {Host: models.example.com, X-A: b}}";
    question(address, probe, "{}").ask().await.unwrap();
    let request = asked.recv().await.unwrap();
    let hosts: Vec<_> = request.headers().get_all("host").iter().collect();
    assert_eq!(hosts, ["models.example.com"]);
    assert_eq!(request.headers()["x-a"], "b");
}

#[tokio::test]
async fn a_replica_that_accepts_and_never_answers_is_not_ready_in_time() {
    let (_listener, address) = listener().await;
    for raftserve in ["{}", "{readiness_probe: {grpc: {}}}"] {
        let asked = question(address, "{path: /, timeout_seconds: 0.2}", raftserve);
        let asked = tokio::time::timeout(Duration::from_secs(20), asked.ask()).await;
        let said = asked.unwrap().unwrap_err();
        assert!(said.to_string().ends_with("within 200ms"), "{said}");
    }
}

#[test]
fn only_what_this_peer_lacks_leaves_a_replica_unasked() {
    const NO_FILES: i32 = 24; // EMFILE
    const NO_PORTS: i32 = 99; // EADDRNOTAVAIL
    let local = |code| ReachError::Local(Arc::new(std::io::Error::from_raw_os_error(code)));
    let unopened = |address: &str, error| Unready::unopened(address.parse().unwrap(), error);
    for code in [NO_FILES, NO_PORTS] {
        let unready = unopened("192.0.2.1:80", local(code));
        assert!(matches!(unready, Unready::Unasked(_)), "{unready:?}");
    }
    let unready = unopened("[2001:db8::1]:80", local(NO_FILES));
    assert!(matches!(unready, Unready::Unasked(_)), "{unready:?}");
    // A host without IPv6 never reaches it.
    let unready = unopened("[2001:db8::1]:80", local(NO_PORTS));
    let said = unready.to_string();
    assert!(matches!(unready, Unready::Not(_)), "{said}");
    assert!(
        said.starts_with("cannot connect to [2001:db8::1]:80: "),
        "{said}"
    );
    let unready = unopened("192.0.2.1:80", ReachError::Replica("no".to_owned()));
    assert!(matches!(unready, Unready::Not(_)), "{unready:?}");
}

#[tokio::test(start_paused = true)]
async fn what_this_peer_cannot_ask_is_held_against_no_replica() {
    let replica = ReplicaId {
        service: ServiceId(1),
        number: 1,
    };
    let verdicts = Verdicts::default();
    let unasked = || {
        let lack = Arc::new(std::io::Error::from_raw_os_error(24)); // EMFILE
        Err(Unready::Unasked(ReachError::Local(lack)))
    };
    let seen = || {
        let map = verdicts.by_replica.lock().unwrap();
        let verdict = map.get(&replica)?;
        let since = verdict.failing_since;
        Some((verdict.last.clone(), since.map(|since| since.elapsed())))
    };
    let minute = Duration::from_secs(60);
    verdicts.note(replica, unasked());
    assert_eq!(seen(), None, "nothing is known of it");
    verdicts.note(replica, Ok(()));
    verdicts.note(replica, unasked());
    assert_eq!(seen(), Some((Ok(()), None)), "what was known of it stands");

    let refused = || Err(Unready::Not("it refuses".to_owned()));
    verdicts.note(replica, refused());
    tokio::time::advance(minute).await;
    verdicts.note(replica, refused());
    for _ in 0..10 {
        tokio::time::advance(minute).await;
        verdicts.note(replica, unasked());
    }
    let failing = Some((Err("it refuses".to_owned()), Some(minute)));
    assert_eq!(seen(), failing, "it fails no longer for not being asked");
    tokio::time::advance(minute).await;
    verdicts.note(replica, refused());
    let failing = Some((Err("it refuses".to_owned()), Some(minute * 2)));
    assert_eq!(seen(), failing);
}
