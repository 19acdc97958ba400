//! TLS towards clients: names, protocols, clients' certificates, and files that change under way.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{UpstreamProtocol, UpstreamTls, UpstreamTrust};
use raftserve_proxy::{NoSessions, ProxyConfig, TlsListen};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use support::{Rig, Seen, log, recorder, service, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn pair(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("parameters");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }

    fn write(&self, directory: &Path, file: &str, names: &[&str]) {
        let (certificate, key) = self.pair(names);
        let path = directory.join(file);
        // The key first, as whoever watches looks for certificates with a key.
        std::fs::write(path.with_extension("key"), key.serialize_pem()).expect("room");
        std::fs::write(path.with_extension("crt"), certificate.pem()).expect("room");
    }

    /// An acceptor of a replica that is called `name`.
    fn acceptor(&self, name: &str, protocol: &str) -> TlsAcceptor {
        let (certificate, key) = self.pair(&[name]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a pair");
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        roots
    }
}

/// A client that believes `authority`, offers these protocols, and may show a certificate.
fn client(
    authority: &Authority,
    protocols: &[&str],
    own: Option<(rcgen::Certificate, KeyPair)>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(authority.roots());
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            let chain = vec![certificate.der().clone()];
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A connection of a new such client.
async fn connect(
    address: SocketAddr,
    authority: &Authority,
    name: &str,
    protocols: &[&str],
    own: Option<(rcgen::Certificate, KeyPair)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_as(client(authority, protocols, own), address, name).await
}

async fn connect_as(
    client: Arc<ClientConfig>,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TcpStream::connect(address).await?;
    soon(
        "a handshake",
        TlsConnector::from(client).connect(name, stream),
    )
    .await
}

/// Asks over HTTP/1.1.
async fn get(stream: TlsStream<TcpStream>, host: &str) -> hyper::Result<u16> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/x")
        .header("host", host)
        .header("x-forwarded-client-cert", "Hash=forged")
        .header("x_forwarded_client_cert", "Hash=forged");
    let request = request
        .body(Full::<Bytes>::default())
        .expect("a good request");
    let response = soon("an answer", sender.send_request(request)).await?;
    Ok(response.status().as_u16())
}

async fn rig(tls: TlsListen, seen: &Arc<std::sync::Mutex<Vec<Seen>>>) -> (Rig, SocketAddr) {
    let config = ProxyConfig {
        tls: Some(tls),
        ..support::config()
    };
    let replica = recorder("r", seen).await;
    let rig = Rig::with(
        config,
        [service(1, "svc", &[replica])],
        Arc::new(NoSessions),
    );
    let address = rig.proxy.tls_addr().expect("it was asked for");
    (rig, address)
}

fn listen(directory: &Path) -> TlsListen {
    TlsListen {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        directory: directory.to_owned(),
        client_authorities: None,
        require_client_certificate: false,
    }
}

#[tokio::test]
async fn the_certificate_and_the_protocol_are_what_the_client_asks_for() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "a", &["svc.example"]);
    std::fs::create_dir(directory.path().join("more")).expect("room");
    authority.write(&directory.path().join("more"), "tls", &["*.wild.example"]);
    let seen = log();
    let (_rig, address) = rig(listen(directory.path()), &seen).await;
    for name in ["svc.example", "x.wild.example"] {
        let stream = connect(address, &authority, name, &["http/1.1"], None).await;
        let stream = stream.expect("a certificate for the name");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(get(stream, name).await.expect("an answer"), 200);
    }
    connect(address, &authority, "a.b.wild.example", &[], None)
        .await
        .expect_err("not for two labels");
    {
        let seen = seen.lock().expect("no panic");
        assert_eq!(seen[0].headers["x-forwarded-proto"], "https");
        assert!(
            !seen[0].headers.contains_key("x-forwarded-client-cert"),
            "it was the client's word"
        );
        assert!(!seen[0].headers.contains_key("x_forwarded_client_cert"));
    }

    let stream = connect(
        address,
        &authority,
        "svc.example",
        &["h2", "http/1.1"],
        None,
    )
    .await;
    let stream = stream.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("https://svc.example/y").body(Full::<Bytes>::default());
    let answer = sender.send_request(request.expect("a good request"));
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.version(), Version::HTTP_2);
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    assert_eq!(body, "r");
}

#[tokio::test]
async fn a_connection_that_agreed_on_http_2_speaks_nothing_else() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "a", &["svc.example"]);
    let seen = log();
    let (_rig, address) = rig(listen(directory.path()), &seen).await;
    let stream = connect(address, &authority, "svc.example", &["h2"], None).await;
    let ended = get(stream.expect("a handshake"), "svc.example").await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(seen.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_as_tls_asks_for() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "default", &["svc.test"]);
    let config = ProxyConfig {
        tls: Some(listen(directory.path())),
        http1_rest_after: std::time::Duration::ZERO,
        ..support::config()
    };
    let seen = log();
    let replica = recorder("r", &seen).await;
    let rig = Rig::with(
        config,
        [service(1, "svc", &[replica])],
        Arc::new(NoSessions),
    );
    let address = rig.proxy.tls_addr().expect("it was asked for");
    let stream = connect(address, &authority, "svc.test", &["http/1.1"], None).await;
    let mut stream = stream.expect("a connection");
    let request = b"GET / HTTP/1.1\r\nhost: svc.test\r\n\r\n";
    stream.write_all(request).await.expect("it is sent");
    let mut first = [0; 1];
    soon("an answer", stream.read_exact(&mut first))
        .await
        .expect("an answer");
    let ending = tokio::spawn(async move { rig.proxy.shutdown(support::LIMIT).await });
    let mut rest = Vec::new();
    // Without the alert this is an error: somebody might have cut the connection.
    soon("the end", stream.read_to_end(&mut rest))
        .await
        .expect("TLS says that it is the end");
    soon("a stop", ending).await.expect("it stops");
}

/// Once it has begun it has its own time, and not the second that the proxy gives to who has said nothing when it closes.
#[tokio::test]
async fn a_handshake_that_is_under_way_when_the_ports_close_goes_on() {
    const LONGER: Duration = Duration::from_millis(1_500);
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "default", &["svc.test"]);
    let (rig, address) = rig(listen(directory.path()), &log()).await;

    let (near, mut far) = tokio::io::duplex(64 << 10);
    let shakes = tokio::spawn({
        let client = client(&authority, &["http/1.1"], None);
        let name = ServerName::try_from("svc.test").expect("a name");
        async move {
            let handshake = TlsConnector::from(client).connect(name, near);
            let mut stream = handshake.await.expect("a handshake");
            let request = b"GET / HTTP/1.1\r\nhost: svc.test\r\n\r\n";
            stream.write_all(request).await.expect("it is sent");
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer).await;
            read.expect("TLS says that it is the end");
            String::from_utf8(answer).expect("text")
        }
    });
    let mut proxy = TcpStream::connect(address).await.expect("it listens");
    let mut hello = [0; 100];
    let read = soon("the first words", far.read_exact(&mut hello)).await;
    read.expect("a longer hello");
    proxy.write_all(&hello).await.expect("it is sent");

    let stopped = tokio::spawn(async move { rig.proxy.shutdown(support::LIMIT).await });
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    soon("a closed port", closed).await;
    tokio::time::sleep(LONGER).await;
    let rest = tokio::io::copy_bidirectional(&mut far, &mut proxy);
    let (rest, answer) = tokio::join!(soon("the rest", rest), shakes);
    rest.expect("it is not reset");
    let answer = answer.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    soon("a stop", stopped).await.expect("no panic");
}

/// A stalled handshake, one that comes slowly, and a head behind it have one time together.
#[tokio::test]
async fn a_handshake_and_the_first_head_have_one_time_together() {
    const TIME: Duration = Duration::from_secs(6);
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "default", &["svc.test"]);
    let config = ProxyConfig {
        tls: Some(listen(directory.path())),
        header_timeout: TIME,
        ..support::config()
    };
    let seen = log();
    let replica = recorder("r", &seen).await;
    let rig = Rig::with(
        config,
        [service(1, "svc", &[replica])],
        Arc::new(NoSessions),
    );
    let address = rig.proxy.tls_addr().expect("it was asked for");

    // The beginning of a record, and no more.
    let stalled = async {
        // Before the connection is there, whose time may begin any moment from then on.
        let begin = Instant::now();
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(&[22, 3, 1]).await.expect("it is sent");
        let mut rest = Vec::new();
        // By a reset, as it may have been read only in part.
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
        assert!(begin.elapsed() >= TIME);
    };
    // A handshake after half of the time, and a byte of a head every now and then.
    let slow = async |protocol: &str, head: &[u8]| {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let mut pace = tokio::time::interval(TIME / 2);
        pace.tick().await;
        pace.tick().await;
        let name = ServerName::try_from("svc.test").expect("a name");
        let client = client(&authority, &[protocol], None);
        let handshake = TlsConnector::from(client).connect(name, &mut stream);
        let mut stream = soon("a handshake", handshake).await.expect("a handshake");
        let shaken = Instant::now();
        let mut pace = tokio::time::interval(TIME / 10);
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let send = async {
            for byte in head {
                pace.tick().await;
                let sent = write.write_all(&[*byte]).await.and(write.flush().await);
                if sent.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let mut rest = Vec::new();
        tokio::select! {
            () = send => unreachable!("it waits"),
            _ = soon("the end", read.read_to_end(&mut rest)) => {}
        }
        // Else the head had a time of its own.
        let lasted = shaken.elapsed();
        assert!(lasted < TIME, "{lasted:?}");
    };
    tokio::join!(
        stalled,
        slow("http/1.1", b"GET / HTTP/1.1\r\nhost: svc"),
        slow("h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"),
    );
    assert!(seen.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn new_files_are_used_and_bad_ones_change_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().expect("a directory");
    old.write(directory.path(), "a", &["svc.example"]);
    let seen = log();
    let (rig, address) = rig(listen(directory.path()), &seen).await;
    let kept = connect(address, &old, "svc.example", &["http/1.1"], None)
        .await
        .expect("a handshake");

    std::fs::write(directory.path().join("a.crt"), "no PEM").expect("room");
    let refused = "raftserve_proxy_tls_reloads_total{outcome=\"refused\"} 1";
    until("it is refused", || {
        rig.proxy.render_prometheus().contains(refused)
    })
    .await;
    connect(address, &old, "svc.example", &[], None)
        .await
        .expect("as before");

    new.write(directory.path(), "a", &["svc.example"]);
    let used = "raftserve_proxy_tls_reloads_total{outcome=\"used\"} 1";
    until("it is used", || {
        rig.proxy.render_prometheus().contains(used)
    })
    .await;
    connect(address, &new, "svc.example", &[], None)
        .await
        .expect("the new one");
    connect(address, &old, "svc.example", &[], None)
        .await
        .expect_err("the old one is gone");
    assert_eq!(
        get(kept, "svc.example").await.expect("an answer"),
        200,
        "what runs goes on"
    );
}

#[tokio::test]
async fn a_client_s_certificate_is_told_to_replicas() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "a", &["svc.example"]);
    let clients = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(clients.path(), authority.0.pem()).expect("room");
    let mut listen = listen(directory.path());
    listen.client_authorities = Some(clients.path().to_owned());
    let seen = log();
    let (_rig, address) = rig(listen.clone(), &seen).await;
    let own = || Some(authority.pair(&["alice.example"]));
    let stream = connect(address, &authority, "svc.example", &["http/1.1"], own()).await;
    assert_eq!(
        get(stream.expect("a handshake"), "svc.example")
            .await
            .expect("an answer"),
        200
    );
    let told = seen.lock().expect("no panic")[0].headers["x-forwarded-client-cert"].clone();
    let told = told.to_str().expect("text");
    assert!(
        told.starts_with("Hash=") && told.ends_with(";DNS=alice.example"),
        "{told}"
    );

    listen.require_client_certificate = true;
    let (_strict, address) = rig(listen, &seen).await;
    let strangers = Authority::new();
    for own in [None, Some(strangers.pair(&["alice.example"]))] {
        let answer = match connect(address, &authority, "svc.example", &["http/1.1"], own).await {
            Ok(stream) => get(stream, "svc.example").await.ok(), // TLS 1.3 tells it after the handshake.
            Err(_) => None,
        };
        assert_eq!(answer, None);
    }
    let stream = connect(address, &authority, "svc.example", &["http/1.1"], own()).await;
    assert_eq!(
        get(stream.expect("a handshake"), "svc.example")
            .await
            .expect("an answer"),
        200
    );
}

#[tokio::test]
async fn who_is_not_vouched_for_any_more_resumes_no_session() {
    let (authority, others) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), "a", &["svc.example"]);
    let clients = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(clients.path(), authority.0.pem()).expect("room");
    let mut listen = listen(directory.path());
    listen.client_authorities = Some(clients.path().to_owned());
    listen.require_client_certificate = true;
    let (rig, address) = rig(listen, &log()).await;
    let own = Some(authority.pair(&["alice.example"]));
    let alice = client(&authority, &["http/1.1"], own);
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let stream = connect_as(Arc::clone(&alice), address, "svc.example").await;
        let stream = stream.expect("a handshake");
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        assert_eq!(get(stream, "svc.example").await.expect("an answer"), 200);
    }

    std::fs::write(clients.path(), others.0.pem()).expect("room");
    let used = "raftserve_proxy_tls_reloads_total{outcome=\"used\"} 1";
    until("it is used", || {
        rig.proxy.render_prometheus().contains(used)
    })
    .await;
    let answer = match connect_as(alice, address, "svc.example").await {
        Ok(stream) => get(stream, "svc.example").await.ok(),
        Err(_) => None,
    };
    assert_eq!(answer, None);
}

/// A replica with TLS that answers "ok" to whatever comes.
async fn replica(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = hyper::service::service_fn(|_| async {
                    let body = Full::new(Bytes::from_static(b"ok"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                let stream = TokioIo::new(stream);
                let _ = match h2 {
                    true => {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(stream, service)
                            .await
                    }
                    false => {
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(stream, service)
                            .await
                    }
                };
            });
        }
    });
    address
}

#[tokio::test]
async fn replicas_are_spoken_to_in_tls_and_never_without_if_a_service_says_so() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let name = Some("replica.example".to_owned());
    let believed = UpstreamTrust::Authorities(authority.0.pem());
    let foreign = UpstreamTrust::Authorities(strangers.0.pem());
    let broken = UpstreamTrust::Authorities("no PEM".to_owned());
    for (protocol, alpn) in [
        (UpstreamProtocol::Http1, "http/1.1"),
        (UpstreamProtocol::Http2, "h2"),
    ] {
        let address = replica(authority.acceptor("replica.example", alpn)).await;
        for (server_name, trust, status) in [
            (name.clone(), believed.clone(), 200),
            (None, UpstreamTrust::Anything, 200),
            (None, believed.clone(), 502),
            (Some("other.example".to_owned()), believed.clone(), 502),
            (name.clone(), foreign.clone(), 502),
            (name.clone(), broken.clone(), 502),
        ] {
            let mut svc = service(1, "svc", &[address]);
            svc.traffic.upstream.protocol = protocol;
            let case = format!("{alpn} {server_name:?} {trust:?}");
            svc.traffic.upstream.tls = Some(UpstreamTls { server_name, trust });
            let rig = Rig::new([svc]);
            let answer = support::get(rig.address, "svc", "/").await;
            assert_eq!(answer.0, status, "{case}: {}", answer.1);
        }
    }
    // One that speaks no HTTP/2 is told from one that is not believed.
    let address = replica(authority.acceptor("replica.example", "http/1.1")).await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.protocol = UpstreamProtocol::Http2;
    svc.traffic.upstream.tls = Some(UpstreamTls {
        server_name: name.clone(),
        trust: believed.clone(),
    });
    let rig = Rig::new([svc]);
    let (status, body) = support::get(rig.address, "svc", "/").await;
    assert_eq!(status, 502);
    assert!(body.contains("speaks no HTTP/2"), "{body}");
    // A change of trust holds for what comes next, whatever connections there are.
    let address = replica(authority.acceptor("replica.example", "http/1.1")).await;
    let mut svc = service(1, "svc", &[address]);
    svc.traffic.upstream.tls = Some(UpstreamTls {
        server_name: name.clone(),
        trust: believed,
    });
    let rig = Rig::new([svc.clone()]);
    assert_eq!(support::get(rig.address, "svc", "/").await.0, 200);
    svc.traffic.upstream.tls = Some(UpstreamTls {
        server_name: name,
        trust: foreign,
    });
    rig.routes.publish(support::table([svc]));
    assert_eq!(support::get(rig.address, "svc", "/").await.0, 502);
}
