//! What a proxy is told once, at its start.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::access_log::AccessLog;
#[cfg(doc)]
use crate::open_files::OpenFiles;
use crate::tls::TlsListen;
use crate::tracer::Tracer;

/// Which code carries HTTP/1.1 requests. What clients and replicas see is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http1Path {
    /// All go through the HTTP library.
    Hyper,
    /// Plain ones take a shorter way, and all others that of [`Self::Hyper`].
    #[default]
    Fast,
}

/// The settings of a proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The port that all services share. The services' own ports open on the same address.
    pub listen: SocketAddr,
    /// How many workers, each a thread; one per core without it.
    pub workers: Option<NonZeroUsize>,
    /// The longest from an idle or new connection to a whole request head, a handshake of TLS before it too. It bounds both
    /// how long a client may keep an unused connection and how slowly it may send a head. Of HTTP/2 it bounds what a
    /// connection begins with, and `http2_idle` how long it may be without a request.
    pub header_timeout: Duration,
    /// The longest that a request may wait for its session's binding, or for its bound replica to
    /// accept a connection. Five seconds outlast a change of leader with a wide margin.
    pub session_wait: Duration,
    /// How long an unused connection to a replica is kept. Below the five seconds after which
    /// uvicorn and Node.js close theirs, so that a request rarely meets a connection being closed.
    pub upstream_idle: Duration,
    /// The most unused connections that one worker keeps to one replica. More only cost memory: it
    /// bounds what stays after a burst, not how many may be in use.
    pub upstream_idle_max: usize,
    /// How long the host of a replica may leave what it was sent unacknowledged, or probes of a silent connection
    /// unanswered, before its connections are given up. Longer than the pause of a machine that moves to another host.
    pub host_silence: Duration,
    /// The same where more was sent than a replica may have room for: one that is busy takes it later
    /// (`TCP_USER_TIMEOUT`). Longer where the service allows its replicas a longer silence.
    pub tcp_user_timeout: Duration,
    /// The same for clients, and for the windows of their streams. Longer: a client may well pause for a while before it
    /// reads on. It counts from the last that came of a client's request, if that is later.
    pub client_user_timeout: Duration,
    /// The most client connections at once, over all workers, those that became tunnels too. Beyond it the kernel's queue
    /// holds new ones back; but a port that closes takes what its queue holds. Keep it below half of the limit of open files, as [`OpenFiles::connections`] does: each may
    /// need an upstream.
    pub connections_max: usize,
    /// How many bytes of requests' bodies all connections of HTTP/2 together may hold while nobody takes them, beside the 64 KiB
    /// of each. Past it nothing is refused: the streams of a connection share what room it has.
    pub http2_windows_bytes: u64,
    /// How many bytes of the heads of requests over HTTP/2 may be held in all until their answers begin, beside the first 2 KiB
    /// of each. Past it a request with a larger head is refused with REFUSED_STREAM, which says that it may be sent again.
    pub http2_heads_bytes: u64,
    /// How many bytes of requests' bodies may be kept in all, to be sent again where a replica did not act on them, beside the
    /// 4 KiB of each. Past it longer ones are not kept: what would be sent again then fails.
    pub kept_bodies_bytes: u64,
    /// How long a proxy that is told to stop still accepts: the time for everyone who sends it
    /// connections to learn that it is going. Not at all if it serves nothing.
    pub linger: Duration,
    /// Which code carries HTTP/1.1 requests.
    pub http1_path: Http1Path,
    /// After how long without a request an HTTP/1.1 connection gives back what the HTTP library needs for one: some
    /// tens of KiB, which are made anew for the next.
    pub http1_rest_after: Duration,
    /// How long after that idle HTTP/1 connections still wait for the request whose answer tells the client to
    /// close. Closing an idle connection fails a request that is on its way, and of those that sent none for so
    /// long hardly any sends one in just that instant.
    pub idle_grace: Duration,
    /// How long a client's connection lasts, give or take a tenth: then HTTP/1 is told with the next answer, and
    /// HTTP/2 by GOAWAY. No request is cut by it. Clients that stay connected for ever would never find a peer
    /// that came back.
    pub connection_age: Option<Duration>,
    /// How long the requests of an HTTP/2 connection that has reached its age may still run; without end if not
    /// given, as streams of tokens may well be long.
    pub connection_age_grace: Option<Duration>,
    /// How long an HTTP/2 connection without requests is kept. For HTTP/1 that is `header_timeout`.
    pub http2_idle: Duration,
    /// Where requests are told, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Where their spans are told, if anywhere.
    pub tracer: Option<Tracer>,
    /// A second port, with TLS.
    pub tls: Option<TlsListen>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            workers: None,
            header_timeout: Duration::from_secs(60),
            session_wait: Duration::from_secs(5),
            upstream_idle: Duration::from_secs(4),
            upstream_idle_max: 256,
            host_silence: Duration::from_secs(15),
            tcp_user_timeout: Duration::from_secs(60),
            client_user_timeout: Duration::from_secs(120),
            connections_max: 20_000,
            http2_windows_bytes: 512 << 20,
            http2_heads_bytes: 64 << 20,
            kept_bodies_bytes: 256 << 20,
            linger: Duration::from_secs(5),
            http1_path: Http1Path::default(),
            http1_rest_after: Duration::from_millis(200),
            idle_grace: Duration::from_secs(10),
            connection_age: Some(Duration::from_secs(3600)),
            connection_age_grace: None,
            http2_idle: Duration::from_secs(300),
            access_log: None,
            tracer: None,
            tls: None,
        }
    }
}

impl ProxyConfig {
    /// The number of workers to start.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get)
    }
}
