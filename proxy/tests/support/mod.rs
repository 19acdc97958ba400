//! A proxy with real upstreams and real clients, all in one process and all over sockets.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

pub mod replica;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{
    LoadBalancingPolicy, SessionAffinity, SessionKeySource, Traffic, WithoutQuorum,
};
use raftserve_model::{LogIndex, ReplicaId, ServiceId, ServiceVersion, SessionKey};
use raftserve_proxy::{
    BindError, BindFuture, BoundReplica, Endpoint, Http1Path, Lookup, NoSessions, Proxy,
    ProxyConfig, RouteTable, Routes, ServiceRoute, Sessions, USUAL_WEIGHT,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// The longest that anything in these tests is waited for: far above what it takes, so that only a
/// hang reaches it.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How long the proxy reads on from a client that is still sending when it was answered.
pub const LINGER: Duration = Duration::from_secs(1);

/// Awaits something that must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// A client that speaks HTTP/2 in cleartext, and its connection's end.
pub async fn http2_client<B>(
    rig: &Rig,
) -> (
    http2::SendRequest<B>,
    tokio::task::JoinHandle<Result<(), hyper::Error>>,
)
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(rig.address).await.expect("it listens");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.expect("it speaks HTTP/2");
    (sender, tokio::spawn(connection))
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a small frame")
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Kinds and flags of frames of HTTP/2 (RFC 9113, 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Status 103 as HPACK has it: the name of status 200 in the static table, and another value (RFC 7541, 6.2.2).
pub const EARLY_HINTS: [u8; 5] = *b"\x08\x03103";

/// An answer with this field must not be taken for whole.
pub const BROKEN: &str = "x-broken";

/// Many rounds of requests at once, over HTTP/1.1 and HTTP/2 in turn, to replicas that misbehave: each ends, whole or broken
/// off, none is counted for ever, and what is held stays bounded. `what` is told.
pub async fn meet(rig: &Rig, rounds: usize, what: &str) {
    const AT_ONCE: usize = 16;
    /// What each may hold here, at its client and at its replica, which are all in this process.
    const EACH_MAX: usize = 4 << 20;
    let before = resident_bytes();
    // The most that is held counts from here.
    let is_counted = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    for round in 0..rounds {
        let asks = (0..AT_ONCE).map(|n| {
            let (address, post) = (rig.address, (round + n) % 2 == 0);
            tokio::spawn(take_some(address, post, round % 2 == 1))
        });
        for ask in asks.collect::<Vec<_>>() {
            soon("an end of a request", ask).await.expect("no panic");
        }
    }
    rig.idle().await;
    until("no request running", || {
        rig.metric("requests_in_flight") == 0
    })
    .await;
    assert_eq!(rig.metric("requests_total"), (rounds * AT_ONCE) as u64);
    // Not every kernel can count anew: then it is what is held at last.
    let most = if is_counted {
        most_resident_bytes()
    } else {
        resident_bytes()
    };
    let grown = most.saturating_sub(before);
    assert!(
        grown < AT_ONCE * EACH_MAX,
        "{what}: {grown} bytes more than before"
    );
}

/// A request, and its answer as far as it is wanted: whole or broken off, it ends.
async fn take_some(address: SocketAddr, post: bool, over_http2: bool) {
    /// So much of an answer without an end is enough.
    const ENOUGH: usize = 1 << 20;
    let (method, body) = match post {
        true => (Method::POST, "body"),
        false => (Method::GET, ""),
    };
    let request = Request::builder().method(method);
    let request = match over_http2 {
        true => request.uri("http://h/"),
        false => request.uri("/").header("host", "h"),
    };
    let request = request.body(Full::from(body)).expect("a good request");
    let answer = match over_http2 {
        true => try_ask_over_http2(address, request).await,
        false => try_ask(address, request).await,
    };
    let Ok(answer) = answer else {
        return;
    };
    let is_broken = answer.headers().contains_key(BROKEN);
    let mut body = answer.into_body();
    let mut taken = 0;
    while taken < ENOUGH {
        match body.frame().await {
            Some(Ok(frame)) => taken += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) => return,
            None => {
                assert!(!is_broken, "it was told as whole");
                return;
            }
        }
    }
}

/// Whether a test that lacks something of its machine fails instead of being skipped.
#[expect(clippy::disallowed_methods, reason = "it is the tests' own setting")]
pub fn is_required() -> bool {
    std::env::var_os("RAFTSERVE_REQUIRE_TOOLS").is_some_and(|value| value == "1")
}

/// Awaits a condition that must come to hold.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, poll).await;
}

/// Resident memory of this process, replicas and clients too.
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("it is there");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|it| it.parse().ok())
        .expect("a number");
    pages * 4096
}

/// The most that it was, so far.
fn most_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.expect("a number") << 10
}

pub fn replica(service: u64, number: u32) -> ReplicaId {
    ReplicaId {
        service: ServiceId(service),
        number,
    }
}

/// A service whose replicas, numbered from 1, listen at these addresses.
pub fn service(id: u64, name: &str, addresses: &[SocketAddr]) -> ServiceRoute {
    let endpoints = addresses
        .iter()
        .zip(1..)
        .map(|(&address, number)| Endpoint {
            replica: replica(id, number),
            address,
            version: ServiceVersion(1),
            weight: USUAL_WEIGHT,
            ready: true,
        });
    ServiceRoute {
        id: ServiceId(id),
        name: name.parse().expect("a good name"),
        port: None,
        policy: LoadBalancingPolicy::RoundRobin,
        stream_timeout: LIMIT,
        affinity: None,
        traffic: Traffic::default(),
        endpoints: endpoints.collect(),
    }
}

pub fn by_header(name: &str) -> Option<SessionAffinity> {
    Some(SessionAffinity {
        key: SessionKeySource::Header(name.to_owned()),
        ttl: Duration::from_secs(600),
        max_sessions: 100_000,
        without_quorum: WithoutQuorum::Refuse,
    })
}

pub fn table(services: impl IntoIterator<Item = ServiceRoute>) -> RouteTable {
    RouteTable::new(services.into_iter().map(Arc::new))
}

pub fn config() -> ProxyConfig {
    ProxyConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        workers: NonZeroUsize::new(2),
        linger: Duration::ZERO,
        http1_path: http1_path(),
        http1_rest_after: match module_path!().starts_with("rest_path") {
            true => Duration::ZERO,
            false => ProxyConfig::default().http1_rest_after,
        },
        idle_grace: Duration::ZERO,
        ..ProxyConfig::default()
    }
}

/// The path under test: the short one, unless `hyper_path` or `rest_path` runs the same tests once more.
fn http1_path() -> Http1Path {
    if ["hyper_path", "rest_path"]
        .iter()
        .any(|path| module_path!().starts_with(path))
    {
        Http1Path::Hyper
    } else {
        Http1Path::Fast
    }
}

/// A proxy under test.
pub struct Rig {
    pub proxy: Proxy,
    pub routes: Arc<Routes>,
    pub address: SocketAddr,
    pub failures: mpsc::Receiver<ReplicaId>,
}

impl Rig {
    pub fn new(services: impl IntoIterator<Item = ServiceRoute>) -> Self {
        Self::with(config(), services, Arc::new(NoSessions))
    }

    pub fn with(
        config: ProxyConfig,
        services: impl IntoIterator<Item = ServiceRoute>,
        sessions: Arc<dyn Sessions>,
    ) -> Self {
        let routes = Arc::new(Routes::new(table(services)));
        let (sender, failures) = mpsc::channel(16);
        let proxy = Proxy::start(config, Arc::clone(&routes), sessions, Some(sender));
        let proxy = proxy.expect("the proxy starts");
        let address = proxy.local_addr();
        Self {
            proxy,
            routes,
            address,
            failures,
        }
    }

    pub async fn idle(&self) {
        until("no request in flight", || self.proxy.loads().is_empty()).await;
    }

    /// The value of a metric for the service `svc`.
    pub fn metric(&self, name: &str) -> u64 {
        self.sample(&format!("{name}{{service=\"svc\"}}"))
            .unwrap_or(0)
    }

    /// The value of a metric of the whole peer.
    pub fn peer_metric(&self, name: &str) -> u64 {
        self.sample(name).expect("it is told")
    }

    fn sample(&self, sample: &str) -> Option<u64> {
        let text = self.proxy.render_prometheus();
        let prefix = format!("raftserve_proxy_{sample} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
        Some(found.parse().expect("a number"))
    }
}

/// What an upstream saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub replica: String,
    pub method: String,
    pub target: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

/// An upstream that answers with what `answer` makes of each request; `label` names it.
pub async fn upstream<F, A>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

/// An upstream that answers with its label and notes what it saw.
pub async fn recorder(label: &str, log: &Arc<Mutex<Vec<Seen>>>) -> SocketAddr {
    let (label, log) = (label.to_owned(), Arc::clone(log));
    upstream(move |request| {
        let (label, log) = (label.clone(), Arc::clone(&log));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes());
            log.lock().expect("no panic").push(Seen {
                replica: label.clone(),
                method: parts.method.to_string(),
                target: parts.uri.to_string(),
                headers: parts.headers,
                body: body.unwrap_or_default(),
            });
            Response::new(Full::new(Bytes::from(label)))
        }
    })
    .await
}

pub fn log() -> Arc<Mutex<Vec<Seen>>> {
    Arc::default()
}

/// An upstream spoken to by hand: each connection comes out of the receiver.
pub async fn by_hand() -> (SocketAddr, mpsc::Receiver<Hand>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if sender.send(Hand::new(stream)).await.is_err() {
                break;
            }
        }
    });
    (address, receiver)
}

/// The next connection to an upstream that is spoken to by hand.
pub async fn accept(connections: &mut mpsc::Receiver<Hand>) -> Hand {
    let accepted = soon("a connection", connections.recv()).await;
    accepted.expect("it listens")
}

/// A request for `host` whose replica breaks its answer off after two bytes.
pub async fn broken_off(rig: &Rig, host: &str, connections: &mut mpsc::Receiver<Hand>) {
    let mut client = Hand::connect(rig.address).await;
    client
        .send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"))
        .await;
    let mut replica = accept(connections).await;
    replica.head().await;
    replica
        .send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab")
        .await;
    drop(replica);
    client.rest().await;
}

/// An address at which nobody listens, and nobody else in this process or beside it will by chance:
/// its port stays taken, by a socket that does not listen and lets another one do so.
pub fn nowhere() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.set_reuse_address(true).expect("open");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("a free port");
    let address = socket.local_addr().expect("bound");
    std::mem::forget(socket);
    address.as_socket().expect("an address")
}

/// One connection, spoken to by hand.
pub struct Hand(pub BufReader<TcpStream>);

impl Hand {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("open");
        Self(BufReader::new(stream))
    }

    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await;
        Self::new(stream.expect("it is accepted"))
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        let sent = soon("room to send", self.0.write_all(text.as_ref())).await;
        sent.expect("the other side is there");
    }

    /// Reads a head: its lines, in lower case.
    pub async fn head(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = soon("a line", self.0.read_line(&mut line)).await;
            let read = read.expect("text");
            let line = line.trim_end().to_lowercase();
            if read == 0 || line.is_empty() {
                return lines;
            }
            lines.push(line);
        }
    }

    /// Reads frames of HTTP/2 until one begins a request. `None` at the connection's end.
    pub async fn request(&mut self) -> Option<()> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            if head[3] == HEADERS {
                return Some(());
            }
        }
    }

    pub async fn exactly(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        let read = soon("bytes", self.0.read_exact(&mut bytes)).await;
        read.expect("enough bytes");
        String::from_utf8(bytes).expect("text")
    }

    /// Reads to the end of the connection; a reset counts as one.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = soon("the end", self.0.read_to_end(&mut bytes)).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Goes on sending, to whoever may still read, until the connection is closed.
    pub async fn cut(&self) {
        let is_closed = || match self.0.get_ref().try_write(b"x") {
            Ok(_) => false,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        until("the end of a connection", is_closed).await;
    }

    /// From now on nothing that comes from the other side is even acknowledged, as if this host were gone.
    pub fn vanish(&self) {
        vanish(self.0.get_ref());
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        let stream = socket2::SockRef::from(self.0.get_ref());
        let set = stream.set_linger(Some(Duration::ZERO));
        set.expect("open");
    }

    /// One request and the head and body (by its length) of its answer.
    pub async fn ask(&mut self, request: &str) -> (Vec<String>, String) {
        self.send(request).await;
        let head = self.head().await;
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let body = self.exactly(length).await;
        (head, body)
    }
}

/// Has the kernel drop all that comes on a connection.
pub fn vanish(stream: &TcpStream) {
    const RETURN: u16 = 0x06;
    let drop_all = [socket2::SockFilter::new(RETURN, 0, 0, 0)];
    let attached = socket2::SockRef::from(stream).attach_filter(&drop_all);
    attached.expect("the kernel takes the filter");
}

/// A GET on a connection of its own: status and body.
pub async fn get(address: SocketAddr, host: &str, target: &str) -> (u16, String) {
    let request = Request::get(target)
        .header("host", host)
        .body(Full::default())
        .expect("a good request");
    let response = ask(address, request).await;
    let status = response.status().as_u16();
    (status, text(response).await)
}

pub async fn text(response: Response<Incoming>) -> String {
    let body = soon("a body", response.into_body().collect()).await;
    String::from_utf8(body.expect("a whole body").to_bytes().to_vec()).expect("text")
}

/// A request on a connection of its own.
pub async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    try_ask(address, request).await.expect("an answer")
}

pub async fn try_ask(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(soon("an answer", sender.send_request(request)).await?)
}

/// The same over HTTP/2.
async fn try_ask_over_http2(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    tokio::spawn(connection);
    Ok(soon("an answer", sender.send_request(request)).await?)
}

/// A stand-in for the agreed bindings: one map that all proxies of a test may share.
pub struct FakeSessions {
    pub bindings: Mutex<HashMap<SessionKey, Lookup>>,
    pub replicas: Mutex<Vec<ReplicaId>>,
    pub binds: AtomicU64,
    pub delay: Duration,
    changed: watch::Sender<u64>,
    epochs: AtomicU64,
}

impl FakeSessions {
    pub fn new(replicas: &[ReplicaId], delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            bindings: Mutex::default(),
            replicas: Mutex::new(replicas.to_vec()),
            binds: AtomicU64::new(0),
            delay,
            changed: watch::Sender::new(0),
            epochs: AtomicU64::new(0),
        })
    }

    pub fn bound(&self, replica: ReplicaId) -> Lookup {
        let epoch = LogIndex(self.epochs.fetch_add(1, Ordering::Relaxed) + 1);
        Lookup::Bound(BoundReplica { replica, epoch })
    }

    pub fn set(&self, key: SessionKey, lookup: Lookup) {
        self.bindings.lock().expect("no panic").insert(key, lookup);
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Sessions for FakeSessions {
    fn lookup(&self, _: ServiceId, key: SessionKey) -> Lookup {
        let bindings = self.bindings.lock().expect("no panic");
        bindings.get(&key).cloned().unwrap_or(Lookup::Unbound)
    }

    fn bind<'a>(&'a self, _: ServiceId, key: SessionKey) -> BindFuture<'a> {
        Box::pin(async move {
            self.binds.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.delay).await;
            let candidates = self.replicas.lock().expect("no panic").clone();
            if candidates.is_empty() {
                return Err(BindError::Unavailable("no replica is ready".to_owned()));
            }
            let mut bindings = self.bindings.lock().expect("no panic");
            let at = usize::from(key.0[0]) % candidates.len();
            let lookup = bindings
                .entry(key)
                .or_insert_with(|| self.bound(candidates[at]));
            let bound = match lookup {
                Lookup::Bound(bound) => *bound,
                _ => return Err(BindError::Unavailable("it is moving".to_owned())),
            };
            drop(bindings);
            self.changed.send_modify(|version| *version += 1);
            Ok(bound)
        })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
