//! How a service's requests are carried, beyond what SkyServe knows: `_metadata.raftserve.traffic`.
//!
//! Everything here changes live with an update, and none of it makes a replica another one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;

mod read;
mod render;
mod routes;

pub(super) use read::read;

/// How long a connect to a replica may take, unless the file says otherwise: a replica is near, so silence
/// means that its host is gone.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// On how many further replicas a request is tried, unless the file says otherwise: with three, one that just
/// died and one that is dying are both survived.
pub(super) const RETRIES: u32 = 2;
/// The share of live traffic that retries of requests which were sent may add, in percent, unless the file says
/// otherwise. From Linkerd's default.
pub(super) const RETRY_BUDGET_PERCENT: u32 = 20;
/// So many errors in a row eject a replica, unless the file says otherwise. From Envoy's default.
pub(super) const EJECT_AFTER_ERRORS: u32 = 5;
/// For how long a replica is ejected first, unless the file says otherwise; doubled with each ejection in a row.
pub(super) const EJECTION_BASE: Duration = Duration::from_secs(1);
/// The longest ejection, unless the file says otherwise.
pub(super) const EJECTION_MAX: Duration = Duration::from_secs(60);
/// If more percent of the ready replicas than this are ejected, ejections are ignored, unless the file says
/// otherwise. From Envoy's default of half.
pub(super) const PANIC_PERCENT: u32 = 50;
/// How many requests may wait for a first replica at each peer, unless the file says otherwise.
pub(super) const QUEUE_REQUESTS: u32 = 1_000;
/// How long a request may wait for a first replica, unless the file says otherwise.
pub(super) const QUEUE_WAIT: Duration = Duration::from_secs(30);

/// How a service's requests are carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// What `ring_hash` and `maglev` hash; the client's address without it.
    pub hash_on: Option<HashKey>,
    /// How replicas are spoken to.
    pub upstream: UpstreamSettings,
    /// How long each part of a request may take.
    pub timeouts: Timeouts,
    /// When a request is tried again.
    pub retries: Retries,
    /// When a replica is left out.
    pub ejection: Ejection,
    /// Over how long a new replica comes up to its full share; at once if zero.
    #[serde(with = "millis")]
    pub slow_start: Duration,
    /// What waits while there is no ready replica.
    pub queue: Queue,
    /// The largest body of a request, in bytes; any without it.
    pub request_body_bytes_max: Option<u64>,
    /// The largest head of a request, in bytes; what the proxy takes at most without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_head_bytes_max: Option<u32>,
    /// In order; the first that matches decides. A request that none matches goes by the service's own settings.
    pub routes: Vec<RouteRule>,
}

impl Traffic {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a hash policy hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    /// The value of a header; its name in lower case.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
    /// The value of a query parameter, as it stands in the target, not decoded.
    Query(String),
    /// The client's address.
    SourceAddress,
    /// A field of a JSON body, as a JSON pointer (RFC 6901). Only the first 64 KiB are looked at.
    JsonField(String),
}

/// How replicas are spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamSettings {
    /// The protocol.
    pub protocol: UpstreamProtocol,
    /// TLS to replicas; cleartext without it.
    pub tls: Option<UpstreamTls>,
    /// The longest that a connect may take, with the TLS handshake.
    #[serde(with = "millis")]
    pub connect_timeout: Duration,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::default(),
            tls: None,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// The protocol that a service's replicas speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/2 for gRPC requests, HTTP/1.1 for all others.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge if there is no TLS.
    Http2,
}

/// TLS to replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTls {
    /// The name that replicas' certificates have to be for; the replica's address without it.
    pub server_name: Option<String>,
    /// Which certificates are believed.
    pub trust: UpstreamTrust,
}

/// Which of replicas' certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamTrust {
    /// Those that these certificates vouch for, as PEM text.
    Authorities(String),
    /// Any: encryption without authentication.
    Anything,
}

/// How long each part of a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// From the request's last byte to the first of its answer; the service's `stream_timeout` without it.
    #[serde(with = "optional_millis")]
    pub first_byte: Option<Duration>,
    /// The longest silence within an answer; the service's `stream_timeout` without it.
    #[serde(with = "optional_millis")]
    pub idle: Option<Duration>,
    /// From the request's head to the end of its answer; without end if not given.
    #[serde(with = "optional_millis")]
    pub total: Option<Duration>,
    /// The longest that nothing may pass over a connection which has switched protocols; an hour without it. The others end
    /// with the switch.
    #[serde(with = "optional_millis")]
    pub tunnel_idle: Option<Duration>,
}

/// When a request is tried again, on a replica not tried before. What was not sent is tried again in any case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retries {
    /// The most further tries.
    pub max: u32,
    /// The share of live traffic that retries of requests which were sent may add, in percent.
    pub budget_percent: u32,
    /// Statuses on which a safe request (GET, HEAD, OPTIONS, TRACE) is tried again.
    pub statuses: Vec<u16>,
    /// Whether a request that was sent, and whose connection broke before an answer began, is tried again if it
    /// is idempotent (RFC 9110, 9.2.2) and its body, if any, is still held.
    pub after_sent: bool,
    /// From when a try was sent to its answer's first byte.
    #[serde(with = "optional_millis")]
    pub per_try_timeout: Option<Duration>,
    /// If no answer has begun for so long, a second try starts beside the first, and the first to answer wins. Only
    /// safe requests without a body, and within the budget.
    #[serde(with = "optional_millis")]
    pub hedge_after: Option<Duration>,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            max: RETRIES,
            budget_percent: RETRY_BUDGET_PERCENT,
            statuses: Vec::new(),
            after_sent: true,
            per_try_timeout: None,
            hedge_after: None,
        }
    }
}

/// When a replica is left out of balancing by the peer that saw it fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ejection {
    /// So many failed requests in a row: connections that break, silence, statuses 502, 503 and 504. Zero: never.
    pub consecutive_errors: u32,
    /// For how long, at first; doubled with each ejection in a row.
    #[serde(with = "millis")]
    pub base: Duration,
    /// The longest.
    #[serde(with = "millis")]
    pub max: Duration,
    /// If more percent of the ready replicas than this are ejected, ejections are ignored: of two replicas one
    /// may be out at 50.
    pub panic_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_errors: EJECT_AFTER_ERRORS,
            base: EJECTION_BASE,
            max: EJECTION_MAX,
            panic_percent: PANIC_PERCENT,
        }
    }
}

/// What waits at each peer while a service has no ready replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// The most requests; one more is refused with 429. Zero: none waits.
    pub requests: u32,
    /// The longest wait; then 503.
    #[serde(with = "millis")]
    pub wait: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            requests: QUEUE_REQUESTS,
            wait: QUEUE_WAIT,
        }
    }
}

/// One rule for some of a service's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteRule {
    /// Hosts, in lower case, without a port; `*.example.com` for all below one. Any if empty.
    pub hosts: Vec<String>,
    /// What the path begins with, in whole segments; any if none. The path is that without the service's own prefix.
    pub path_prefix: Option<String>,
    /// Methods, in upper case; any if empty.
    pub methods: Vec<String>,
    /// Headers and their exact values; names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What stands in the place of `path_prefix` when the request is sent on.
    pub rewrite_prefix: Option<String>,
    /// Shares of the service's versions, by version number; those of the rollout if empty.
    pub weights: BTreeMap<u64, u32>,
    /// In place of the service's.
    pub timeouts: Option<Timeouts>,
    /// In place of the service's.
    pub retries: Option<Retries>,
    /// The longest that a connect may take, in place of the service's.
    #[serde(with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// The largest body, in bytes, in place of the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_body_bytes_max: Option<u64>,
}

/// Optional durations as whole milliseconds in stored documents.
mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(
        clippy::ref_option,
        reason = "serde passes the field as it stands in the struct"
    )]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}
