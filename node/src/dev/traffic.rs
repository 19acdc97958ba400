//! Steady traffic through all three peers, as a careful client sends it: a request that one peer
//! could not answer is sent to another peer once, and only then counts as failed.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{ProbeKind, ServiceSpec, SessionKeySource};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::tally::{Requests, Tally};
use crate::grpc_health;

/// How many requests may be under way at once: enough that one slow answer does not stop the rest.
const WORKERS: u32 = 10;

/// The pause between two requests of one worker; together they send 50 a second, which is steady and
/// leaves the machine to the peers.
const WORKER_PAUSE: Duration = Duration::from_millis(200);

/// How many session keys are in use: enough to be on every replica, few enough to watch each one.
pub(super) const SESSION_KEYS: u64 = 60;

/// How long a peer may take to accept: it is on this host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one peer may take to answer a request. Longer than an election, shorter than patience.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent: the request by which the service's readiness is probed, which it is known to answer.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Where the peers take requests to the service, in the order of their numbers.
    peers: Vec<SocketAddr>,
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    affinity: Option<SessionKeySource>,
    /// Whose health is asked for by gRPC, if that is how the service is probed.
    health_of: Option<String>,
}

impl Target {
    /// The service that is specified so, at these addresses of the peers, below this path prefix.
    ///
    /// # Errors
    /// If the probe's headers cannot be sent.
    pub(super) fn new(spec: &ServiceSpec, peers: Vec<SocketAddr>, prefix: &str) -> Result<Self> {
        let probe = &spec.readiness;
        let headers = probe
            .headers
            .iter()
            .map(|(name, value)| Ok((name.parse()?, value.parse()?)))
            .collect::<Result<_>>()
            .context("the probe's headers cannot be sent")?;
        let method = match probe.post_data {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let (path, health_of) = match &probe.kind {
            ProbeKind::Grpc { service } => (grpc_health::PATH, Some(service.clone())),
            // Nothing but requests goes through the peers.
            ProbeKind::Http | ProbeKind::Tcp => (probe.path.as_str(), None),
        };
        Ok(Self {
            peers,
            method,
            path: format!("{prefix}{path}"),
            headers,
            body: Bytes::from(probe.post_data.clone().unwrap_or_default()),
            affinity: spec.affinity.as_ref().map(|affinity| affinity.key.clone()),
            health_of,
        })
    }

    /// Whether its requests may carry session keys.
    pub(super) fn has_sessions(&self) -> bool {
        self.affinity.is_some()
    }

    fn request(&self, peer: usize, session: Option<&str>) -> Result<Request<Full<Bytes>>> {
        let mut request = match &self.health_of {
            None => self.plain(peer)?,
            Some(service) => {
                let uri = format!("http://{}{}", self.peers[peer], self.path);
                grpc_health::request(&uri, service).map_err(|why| anyhow!(why))?
            }
        };
        let headers = request.headers_mut();
        match (&self.affinity, session) {
            (Some(SessionKeySource::Header(name)), Some(key)) => {
                headers.insert(name.parse::<HeaderName>()?, key.parse()?);
            }
            (Some(SessionKeySource::Cookie(name)), Some(key)) => {
                headers.insert(http::header::COOKIE, format!("{name}={key}").parse()?);
            }
            (None, _) | (_, None) => {}
        }
        Ok(request)
    }

    fn plain(&self, peer: usize) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .header(HOST, self.peers[peer].to_string());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !self.body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        Ok(request.body(Full::new(self.body.clone()))?)
    }

    /// Whether an answer is a good one.
    async fn judge(&self, answer: Response<Incoming>) -> Result<()> {
        let (head, body) = answer.into_parts();
        let body = body.collect().await?;
        if let Some(service) = &self.health_of {
            let trailers = body.trailers().cloned().unwrap_or_default();
            let body = body.to_bytes();
            return grpc_health::verdict(service, &head, &body, &trailers)
                .map_err(|why| anyhow!(why));
        }
        if head.status.is_server_error() {
            bail!("answered {}", head.status);
        }
        Ok(())
    }
}

/// The value by which a client would give session key `number`.
pub(super) fn session_value(number: u64) -> String {
    format!("raftserve-dev-{number}")
}

/// One peer as a client knows it: its connection is kept between requests.
#[derive(Debug, Default)]
struct Link {
    sender: Option<Sender>,
}

/// A connection of one protocol or the other.
#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    /// Connects to a peer. A call of gRPC needs HTTP/2.
    async fn open(address: SocketAddr, http2: bool) -> Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| anyhow!("it did not accept in {CONNECT_TIMEOUT:?}"))??;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // A connection ends with its sender, or when the peer closes it, which the sender then tells.
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Ok(Self::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            Ok(Self::Http1(sender))
        }
    }

    async fn is_usable(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}

impl Link {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// If it is not answered in time, or not well.
    async fn ask(&mut self, target: &Target, peer: usize, session: Option<&str>) -> Result<()> {
        let request = target.request(peer, session)?;
        let asked = timeout(ANSWER_TIMEOUT, self.exchange(target, peer, request)).await;
        let outcome = asked.unwrap_or_else(|_| Err(anyhow!("no answer in {ANSWER_TIMEOUT:?}")));
        if outcome.is_err() {
            self.sender = None;
        }
        outcome.with_context(|| format!("peer {}", peer + 1))
    }

    async fn exchange(
        &mut self,
        target: &Target,
        peer: usize,
        request: Request<Full<Bytes>>,
    ) -> Result<()> {
        let http2 = target.health_of.is_some();
        let sender = self.connected(target.peers[peer], http2).await?;
        let answer = sender.send(request).await?;
        target.judge(answer).await
    }

    async fn connected(&mut self, address: SocketAddr, http2: bool) -> Result<&mut Sender> {
        let usable = match &mut self.sender {
            Some(sender) => sender.is_usable().await,
            None => false,
        };
        if !usable {
            self.sender = Some(Sender::open(address, http2).await?);
        }
        Ok(self
            .sender
            .as_mut()
            .expect("it was set if it was not usable"))
    }
}

/// Whether the service answers through a peer.
///
/// # Errors
/// Why it does not.
pub(super) async fn ask_once(target: &Target, peer: usize) -> Result<()> {
    Link::default().ask(target, peer, None).await
}

/// Sends requests for ever, and counts what becomes of them.
pub(super) async fn run(target: Target, tally: watch::Sender<Tally>) {
    let (target, tally) = (Rc::new(target), Rc::new(tally));
    let turns = Rc::new(Cell::new(0));
    let workers = (0..WORKERS).map(|worker| {
        let worker_start = Instant::now() + WORKER_PAUSE / WORKERS * worker;
        work(worker_start, target.clone(), tally.clone(), turns.clone())
    });
    join_all(workers).await;
}

async fn work(
    start: Instant,
    target: Rc<Target>,
    tally: Rc<watch::Sender<Tally>>,
    turns: Rc<Cell<u64>>,
) {
    let mut links: Vec<Link> = target.peers.iter().map(|_| Link::default()).collect();
    let mut ticks = interval_at(start, WORKER_PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let turn = Turn::number(turns.get(), target.peers.len(), target.has_sessions());
        turns.set(turns.get() + 1);
        let count = |change: &dyn Fn(&mut Requests)| {
            tally.send_modify(|tally| {
                change(match turn.session {
                    Some(_) => &mut tally.in_session,
                    None => &mut tally.plain,
                });
            });
        };
        count(&|requests| requests.sent += 1);
        let session = turn.session.map(session_value);
        let session = session.as_deref();
        let Err(first) = links[turn.peer].ask(&target, turn.peer, session).await else {
            count(&|requests| requests.answered += 1);
            continue;
        };
        let another = (turn.peer + 1) % target.peers.len();
        match links[another].ask(&target, another, session).await {
            Ok(()) => count(&|requests| requests.answered_by_another += 1),
            Err(second) => {
                count(&|requests| requests.failed += 1);
                let why = format!("{first:#}; then {second:#}");
                tally.send_modify(|tally| tally.last_failure = Some(why));
            }
        }
    }
}

/// Which peer a request goes to first, and in which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    peer: usize,
    session: Option<u64>,
}

impl Turn {
    /// The request with this number. Every other one is in a session if there are any; each key is
    /// sent through all peers in a row, then comes the next.
    fn number(number: u64, peers: usize, sessions: bool) -> Self {
        let of_kind = if sessions { number / 2 } else { number };
        let peers = peers as u64;
        Self {
            peer: usize::try_from(of_kind % peers).expect("less than the number of peers"),
            session: (sessions && number % 2 == 1).then(|| of_kind / peers % SESSION_KEYS),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use raftserve_model::spec::ParseOptions;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_session_key_goes_through_every_peer_and_plain_requests_too() {
        let mut peers_of: BTreeMap<Option<u64>, BTreeSet<usize>> = BTreeMap::new();
        for number in 0..SESSION_KEYS * 6 {
            let turn = Turn::number(number, 3, true);
            peers_of.entry(turn.session).or_default().insert(turn.peer);
        }
        assert_eq!(peers_of.len() as u64, SESSION_KEYS + 1);
        assert!(peers_of.values().all(|peers| peers.len() == 3));
        assert!((0..9).all(|number| Turn::number(number, 3, false).session.is_none()));
    }

    /// Answers every request on every connection with this status.
    async fn server(status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while matches!(stream.read(&mut request).await, Ok(1..)) {
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        address
    }

    fn target(peers: Vec<SocketAddr>) -> Target {
        Target {
            peers,
            method: Method::GET,
            path: "/".to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            affinity: None,
            health_of: None,
        }
    }

    #[tokio::test]
    async fn dead_peer_costs_a_retry_and_two_dead_peers_a_request() {
        let dead = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let peers = vec![
            dead,
            server("503 Service Unavailable").await,
            server("200 OK").await,
        ];
        let (tally, mut counts) = watch::channel(Tally::default());
        let done = |tally: &Tally| {
            let plain = &tally.plain;
            plain.answered >= 3 && plain.answered_by_another >= 3 && plain.failed >= 3
        };
        tokio::select! {
            () = run(target(peers), tally) => unreachable!("it never ends"),
            counted = counts.wait_for(done) => {
                let counted = counted.unwrap().clone();
                let plain = &counted.plain;
                assert!(plain.sent >= plain.answered + plain.answered_by_another + plain.failed);
                let why = counted.last_failure.unwrap();
                assert!(why.contains("peer 1") && why.contains("peer 2: answered 503"), "{why}");
            }
        }
    }

    #[tokio::test]
    async fn a_service_that_is_probed_by_grpc_is_asked_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serve = tonic::transport::Server::builder().add_service(health);
        let serving = tokio::spawn(serve.serve_with_incoming(incoming));
        let yaml = "service: {readiness_probe: {timeout_seconds: 10}}\nresources: {ports: 8080}\nrun: serve\n\
                    _metadata: {raftserve: {readiness_probe: {grpc: {service: hello.Hello}}}}\n";
        let spec = ServiceSpec::parse(yaml, ParseOptions::default()).unwrap();
        let asked = Target::new(&spec.spec, vec![address], "").unwrap();
        let why = ask_once(&asked, 0).await.unwrap_err();
        assert!(format!("{why:#}").contains("knows no service"), "{why:#}");
        let status = tonic_health::ServingStatus::Serving;
        reporter.set_service_status("hello.Hello", status).await;
        // Several over one connection.
        let mut link = Link::default();
        for _ in 0..3 {
            link.ask(&asked, 0, None).await.unwrap();
        }
        serving.abort();
    }
}
