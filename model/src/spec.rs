//! What a service is asked to be: the typed, checked form of a SkyServe YAML.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod fields;

mod error;
mod file_mounts;
mod other_probe;
mod parse;
mod placement;
mod port;
mod probe;
mod raftserve;
mod reader;
mod render;
mod resources;
mod scalar;
mod service;
mod stored;
mod substitute;
mod task;
#[cfg(test)]
mod tests;
mod traffic;
mod upstreams;
mod yaml;

pub use error::{SpecError, SpecErrors};
pub use file_mounts::{
    Destination, FILE_MODE, FILE_PATH_BYTES_MAX, FILES_BYTES_MAX, FILES_MAX, FILES_TOO_MUCH_REMEDY,
    FileMount, LocalSource, MountContent, MountedFile, SentFile,
};
pub use parse::{ParseOptions, Parsed};
pub use placement::{Accelerators, Placement};
pub use render::MASK;
pub use service::REPLICAS_MAX;
pub use stored::SPEC_DOCUMENT_BYTES_MAX;
pub use traffic::{
    Ejection, HashKey, Queue, Retries, RouteRule, Timeouts, Traffic, UpstreamProtocol,
    UpstreamSettings, UpstreamTls, UpstreamTrust,
};
pub use upstreams::{KubernetesService, StaticUpstreams};
pub use yaml::{SPEC_DEPTH_MAX, SPEC_SOURCE_BYTES_MAX};

/// How long a replica may fail its probes before its first success, unless the file says otherwise.
pub const INITIAL_DELAY: Duration = Duration::from_secs(1200);
/// How long one probe may take, unless the file says otherwise.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause between two probes of a replica, unless the file says otherwise.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a replica that was ready may fail its probes, unless the file says otherwise.
pub const FAILURE_THRESHOLD: Duration = Duration::from_secs(180);
/// The longest silence of an upstream, unless the file says otherwise.
pub const STREAM_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a replica may finish its requests, unless the file says otherwise: SkyServe's drain.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a replica may take to stop, unless the file says otherwise.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long an unused session binding is kept, unless the file says otherwise.
pub const SESSION_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The most session bindings of a service, unless the file says otherwise.
pub const SESSIONS: u32 = 1_000_000;

/// Durations as whole milliseconds in stored documents.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A checked service specification.
///
/// Stored as a JSON document inside the log's own frame, so that fields can be added with a default
/// and older documents still decode. Files, if there are any, follow the document.
///
/// Its `Debug` form is that of [`ServiceSpec::render`], with secrets masked and no file's contents.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The YAML as the user wrote it. It may hold secrets: show [`ServiceSpec::source_masked`].
    pub source: String,
    /// How many replicas are wanted.
    pub replicas: u32,
    /// When a replica counts as ready.
    pub readiness: ReadinessProbe,
    /// The port that `run` names; replaced by each replica's own where the provider assigns one.
    pub port: u16,
    /// How an endpoint is picked for a request.
    pub policy: LoadBalancingPolicy,
    /// The longest silence from an upstream within a request, and for its first byte.
    #[serde(with = "millis")]
    pub stream_timeout: Duration,
    /// Who creates the replicas.
    pub provider: Provider,
    /// Shell text run once before `run`.
    pub setup: Option<String>,
    /// Shell text whose process is the replica.
    pub run: String,
    /// Environment of `setup` and `run`.
    pub envs: BTreeMap<String, String>,
    /// Environment of `setup` and `run` that is masked wherever a specification is shown. It is kept
    /// in the clear in the log and its snapshots.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Resources as requested: `cpus` and the like. The process provider only shows them.
    pub resources: BTreeMap<String, String>,
    /// What else a replica asks of what it runs in. Absent from documents that ask for nothing.
    #[serde(default, skip_serializing_if = "Placement::is_default")]
    pub placement: Placement,
    /// Strict session affinity, if asked for.
    pub affinity: Option<SessionAffinity>,
    /// The longest that a replica may finish its requests after it left rotation.
    #[serde(with = "millis")]
    pub drain_timeout: Duration,
    /// How long a replica may take from SIGTERM to its exit before it is killed.
    #[serde(with = "millis")]
    pub stop_grace: Duration,
    /// How requests are carried, beyond what SkyServe knows. Absent from documents that say nothing of it, which
    /// so have the bytes that they had before it.
    #[serde(default, skip_serializing_if = "Traffic::is_default")]
    pub traffic: Traffic,
    /// Files that each replica finds. They may be secrets, and are kept in the clear in the log and its snapshots.
    #[serde(skip)]
    pub file_mounts: Vec<FileMount>,
}

impl ServiceSpec {
    /// Whether a replica made for `self` would run just as one made for `other`, so that an update
    /// from one to the other need not replace it.
    #[must_use]
    pub fn runs_the_same(&self, other: &Self) -> bool {
        let Self {
            provider,
            port,
            setup,
            run,
            envs,
            secrets,
            resources,
            placement,
            file_mounts,
            ..
        } = self;
        (
            provider,
            port,
            setup,
            run,
            envs,
            secrets,
            resources,
            placement,
            file_mounts,
        ) == (
            &other.provider,
            &other.port,
            &other.setup,
            &other.run,
            &other.envs,
            &other.secrets,
            &other.resources,
            &other.placement,
            &other.file_mounts,
        )
    }
}

/// When a replica counts as ready: SkyServe's `readiness_probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessProbe {
    /// What is asked. Absent from documents of HTTP probes, which so have the bytes that they had before it.
    #[serde(default, skip_serializing_if = "ProbeKind::is_default")]
    pub kind: ProbeKind,
    /// Path and query, starting with `/`; `/` where the probe is not HTTP.
    pub path: String,
    /// JSON text to POST; a GET without it.
    pub post_data: Option<String>,
    /// Headers of each probe.
    pub headers: BTreeMap<String, String>,
    /// How long a replica may fail its probes before its first success.
    #[serde(with = "millis")]
    pub initial_delay: Duration,
    /// The longest one probe may take.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// The pause between two probes of one replica.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// How long a replica that was ready may fail its probes before it is replaced.
    #[serde(with = "millis")]
    pub failure_threshold: Duration,
}

/// What a readiness probe asks, in the way in which the service's replicas are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// A request over HTTP, which has to be answered with 200.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check`, which has to be answered with `SERVING`.
    Grpc {
        /// The service that is asked about; the server as a whole if empty.
        service: String,
    },
    /// Nothing: a connection that opens is enough.
    Tcp,
}

impl ProbeKind {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How an endpoint is picked for a request that no session binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancingPolicy {
    /// Each endpoint in turn.
    RoundRobin,
    /// The endpoint with the fewest requests in flight, over all peers.
    #[default]
    LeastLoad,
    /// As `LeastLoad`, each endpoint's requests divided by what an instance of its kind can take.
    InstanceAwareLeastLoad,
    /// Of two drawn endpoints, the one that is likely to answer sooner.
    P2c,
    /// The endpoint that comes next on a ring after the hash of the request's key, within a bounded load.
    RingHash,
    /// The endpoint that Maglev's table names for the hash of the request's key.
    Maglev,
}

impl LoadBalancingPolicy {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::LeastLoad,
        Self::InstanceAwareLeastLoad,
        Self::P2c,
        Self::RingHash,
        Self::Maglev,
    ];

    /// The one of that name in a service YAML.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// Whether it hashes a key of the request, so that equal keys meet the same replica.
    #[must_use]
    pub fn hashes(self) -> bool {
        match self {
            Self::RingHash | Self::Maglev => true,
            Self::RoundRobin | Self::LeastLoad | Self::InstanceAwareLeastLoad | Self::P2c => false,
        }
    }

    /// Whether SkyServe's `service.load_balancing_policy` can name it.
    pub(crate) fn is_skyserves(self) -> bool {
        match self {
            Self::RoundRobin | Self::LeastLoad | Self::InstanceAwareLeastLoad => true,
            Self::P2c | Self::RingHash | Self::Maglev => false,
        }
    }

    /// Its name in a service YAML.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastLoad => "least_load",
            Self::InstanceAwareLeastLoad => "instance_aware_least_load",
            Self::P2c => "p2c",
            Self::RingHash => "ring_hash",
            Self::Maglev => "maglev",
        }
    }
}

/// Who creates the replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// The peers, in the way that they were started with: `--provider`. Stored under the name that it had when
    /// there was one way only.
    #[default]
    #[serde(rename = "process")]
    Peers,
    /// Nobody: they are there already.
    Static(StaticUpstreams),
}

impl Provider {
    /// Whether replicas are made for the service, and stopped.
    #[must_use]
    pub fn makes_replicas(&self) -> bool {
        match self {
            Self::Peers => true,
            Self::Static(_) => false,
        }
    }

    /// Whether somebody else tells which replicas are ready, so that none is probed.
    #[must_use]
    pub fn tells_readiness(&self) -> bool {
        match self {
            Self::Peers | Self::Static(StaticUpstreams::Addresses(_)) => false,
            Self::Static(StaticUpstreams::KubernetesService(_)) => true,
        }
    }
}

/// Strict session affinity: policy S1. Each key is bound to one replica through the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAffinity {
    /// Where a request carries its key. A request without it is balanced freely.
    pub key: SessionKeySource,
    /// How long after its last use a binding is kept.
    #[serde(with = "millis")]
    pub ttl: Duration,
    /// The most bindings the service may hold; one more is refused with 503.
    pub max_sessions: u32,
    /// What a peer does with bound sessions once it has lost touch with the cluster.
    pub without_quorum: WithoutQuorum,
}

/// Where a request carries its session key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKeySource {
    /// The value of a header; its name in lower case.
    Header(String),
    /// The value of a cookie; its name as written.
    Cookie(String),
}

/// What a peer does with bound sessions once its lease from the leader has run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutQuorum {
    /// Refuse with 503: never two replicas for one key, even across a partition.
    #[default]
    Refuse,
    /// Serve from the last agreed binding: a partition may then see old and new at once.
    ServeStale,
}
