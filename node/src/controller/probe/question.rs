//! One readiness probe: what a replica is asked, and which answer counts.
//!
//! It goes the way of requests, with TLS and HTTP/2 where they use these, so that a replica is not called ready which
//! no request could reach.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, LOCATION, USER_AGENT};
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftserve_model::spec::{
    ProbeKind, ReadinessProbe, ServiceSpec, UpstreamProtocol, UpstreamSettings,
};
use raftserve_proxy::{ReachError, ReplicaDialer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use crate::grpc_health as health;

/// The most redirects followed, within the replica's own address.
const REDIRECTS_MAX: usize = 5;

/// The most that is read of an answer's body: to its end where it can be, so that the replica does not log a broken
/// pipe, but not without end.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How the replicas of one version of a service are asked.
#[derive(Debug)]
pub(super) struct Manner {
    readiness: ReadinessProbe,
    upstream: UpstreamSettings,
    dialer: ReplicaDialer,
}

impl Manner {
    pub(super) fn new(spec: &ServiceSpec) -> Self {
        let (readiness, upstream) = (&spec.readiness, &spec.traffic.upstream);
        Self {
            readiness: readiness.clone(),
            upstream: upstream.clone(),
            dialer: ReplicaDialer::new(upstream, readiness.timeout),
        }
    }

    /// Whether it is that of `spec`.
    pub(super) fn is_of(&self, spec: &ServiceSpec) -> bool {
        self.readiness == spec.readiness && self.upstream == spec.traffic.upstream
    }

    /// The pause between two probes.
    pub(super) fn interval(&self) -> Duration {
        self.readiness.interval
    }
}

/// Why a replica did not say that it is ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unready {
    /// It is not, and why.
    #[error("{0}")]
    Not(String),
    /// It could not be asked: this peer has nothing left to open a connection with.
    #[error(transparent)]
    Unasked(ReachError),
}

impl Unready {
    /// What it means that no connection was had to a replica at `address`.
    pub(super) fn unopened(address: SocketAddr, error: ReachError) -> Self {
        match error {
            ReachError::Replica(why) => cannot_connect(&address, &why).into(),
            // What a host without IPv6 says, too, which is no lack that passes.
            ReachError::Local(error)
                if address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable =>
            {
                cannot_connect(&address, &error).into()
            }
            ReachError::Local(_) => Self::Unasked(error),
        }
    }
}

fn cannot_connect(address: &dyn Display, why: &dyn Display) -> String {
    format!("cannot connect to {address}: {why}")
}

impl From<String> for Unready {
    fn from(why: String) -> Self {
        Self::Not(why)
    }
}

/// What one replica is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) address: String,
    pub(super) manner: Arc<Manner>,
}

impl Question {
    /// Asks once, for as long as a probe may take. Why the replica is not ready, if it is not.
    pub(super) async fn ask(&self) -> Result<(), Unready> {
        let limit = self.manner.readiness.timeout;
        match tokio::time::timeout(limit, self.ask_in_time()).await {
            Ok(result) => result,
            Err(_) => Err(Unready::Not(match &self.manner.readiness.kind {
                ProbeKind::Http => format!(
                    "no answer to {} within {limit:?}",
                    self.manner.readiness.path
                ),
                ProbeKind::Grpc { .. } => format!("no answer to {} within {limit:?}", health::PATH),
                ProbeKind::Tcp => format!("no connection to {} within {limit:?}", self.address),
            })),
        }
    }

    async fn ask_in_time(&self) -> Result<(), Unready> {
        match &self.manner.readiness.kind {
            ProbeKind::Http => self.ask_http().await,
            ProbeKind::Grpc { service } => {
                let request = health::request(&self.uri(health::PATH), service)?;
                let Answer {
                    head,
                    body,
                    trailers,
                } = self.send(request, true).await?;
                Ok(health::verdict(service, &head, &body, &trailers)?)
            }
            ProbeKind::Tcp => self.open(self.speaks_http2()).await.map(drop),
        }
    }

    /// Only 200 counts, after redirects within the replica.
    async fn ask_http(&self) -> Result<(), Unready> {
        let mut path = self.manner.readiness.path.clone();
        for _ in 0..=REDIRECTS_MAX {
            let request = self.request(&path)?;
            let answer = self.send(request, self.speaks_http2()).await?;
            let location = answer.head.headers.get(LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            match (answer.head.status.as_u16(), location) {
                (200, _) => return Ok(()),
                (300..400, Some(location)) => path = self.path_within(location)?,
                (status, _) => return Err(format!("{path} answered {status}, not 200").into()),
            }
        }
        Err(format!("{path} redirected more than {REDIRECTS_MAX} times").into())
    }

    fn path_within(&self, location: &str) -> Result<String, String> {
        let own = self.uri("");
        let path = location.strip_prefix(&own).unwrap_or(location);
        if path.starts_with('/') && !path.starts_with("//") {
            Ok(path.to_owned())
        } else {
            Err(format!("redirected elsewhere, to {location}"))
        }
    }

    /// Whether requests of the usual kind go to it over HTTP/2.
    fn speaks_http2(&self) -> bool {
        match self.manner.upstream.protocol {
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Auto | UpstreamProtocol::Http1 => false,
        }
    }

    fn uri(&self, path: &str) -> String {
        let scheme = match self.manner.upstream.tls {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://{}{path}", self.address)
    }

    fn request(&self, path: &str) -> Result<http::Request<Full<Bytes>>, String> {
        let (method, body) = match &self.manner.readiness.post_data {
            Some(data) => (http::Method::POST, Bytes::from(data.clone())),
            None => (http::Method::GET, Bytes::new()),
        };
        let mut request = http::Request::builder()
            .method(&method)
            .uri(self.uri(path))
            .header(USER_AGENT, "raftserve-probe");
        if method == http::Method::POST {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in &self.manner.readiness.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(body))
            .map_err(|error| format!("cannot ask for {path}: {error}"))
    }

    async fn open(
        &self,
        http2: bool,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Unready> {
        // Providers give literal addresses.
        let address = self.address.parse::<SocketAddr>();
        let address = address.map_err(|error| cannot_connect(&self.address, &error))?;
        let opened = self.manner.dialer.open(address, http2).await;
        opened.map_err(|error| Unready::unopened(address, error))
    }

    /// Sends a request, whose URI is whole, over a connection of its own.
    async fn send(
        &self,
        request: http::Request<Full<Bytes>>,
        http2: bool,
    ) -> Result<Answer, Unready> {
        let path = request.uri().path().to_owned();
        let stream = TokioIo::new(self.open(http2).await?);
        let no_http = |error: hyper::Error| format!("no HTTP: {error}");
        let no_answer = |error: hyper::Error| format!("no answer to {path}: {error}");
        // The end of a connection, good or bad, reaches us as the answer or its absence.
        if http2 {
            let request = authority_from_host(request)?;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(no_http)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = connection.await;
            }));
            let response = sender.send_request(request).await.map_err(no_answer)?;
            Ok(Answer::read(response).await)
        } else {
            let request = origin_form(request, &self.address)?;
            let (mut sender, connection) = http1::handshake(stream).await.map_err(no_http)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = connection.await;
            }));
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| unanswered(&path, &error))?;
            Ok(Answer::read(response).await)
        }
    }
}

/// Why there is no answer over HTTP/1.1, and what to do if the replica seems to speak something else.
fn unanswered(path: &str, error: &hyper::Error) -> String {
    let said = format!("no answer to {path}: {error}");
    // What it sent is no HTTP/1.1, or came before it was asked, as the settings of HTTP/2 do.
    match error.is_parse() || error.is_canceled() || error.is_closed() {
        true => format!(
            "{said}; if it speaks gRPC only, write _metadata.raftserve.readiness_probe: {{grpc: {{}}}}, if HTTP/2 only, \
             traffic.upstream.protocol: http2"
        ),
        false => said,
    }
}

/// As HTTP/1.1 has it: the path alone, and the authority as `host`, unless the user wrote one.
fn origin_form(
    mut request: http::Request<Full<Bytes>>,
    address: &str,
) -> Result<http::Request<Full<Bytes>>, String> {
    let cannot = |error: &dyn std::fmt::Display| format!("cannot ask {address}: {error}");
    let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
    let uri = path.parse::<Uri>().map_err(|error| cannot(&error))?;
    *request.uri_mut() = uri;
    if !request.headers().contains_key(HOST) {
        let host = address.parse::<HeaderValue>();
        let host = host.map_err(|error| cannot(&error))?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(request)
}

/// As HTTP/2 has it: what the user wrote as `host` is the authority.
fn authority_from_host(
    mut request: http::Request<Full<Bytes>>,
) -> Result<http::Request<Full<Bytes>>, String> {
    let Some(host) = request.headers_mut().remove(HOST) else {
        return Ok(request);
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let authority = http::uri::Authority::try_from(host.as_bytes());
    parts.authority = Some(authority.map_err(|error| format!("the header host: {error}"))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| format!("cannot ask: {error}"))?;
    Ok(request)
}

/// A replica's answer.
pub(super) struct Answer {
    pub(super) head: http::response::Parts,
    /// Without its end if that is far.
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

impl Answer {
    async fn read(response: http::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let whole = Limited::new(body, BODY_BYTES_MAX).collect().await.ok();
        let trailers = whole.as_ref().and_then(|it| it.trailers().cloned());
        Self {
            head,
            body: whole.map(|it| it.to_bytes()).unwrap_or_default(),
            trailers: trailers.unwrap_or_default(),
        }
    }
}
