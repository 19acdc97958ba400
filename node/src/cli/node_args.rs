//! The flags of `raftserve node`. They are texts and numbers as given; turning them into a checked
//! configuration is the node's.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{address, durations};

/// How fast failures are noticed, against how much the network may delay messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimingProfile {
    /// Peers on one host or in one rack: a lost leader is replaced in under a second.
    Fast,
    /// Peers in one data centre that may be busy.
    Lan,
    /// Peers in several regions.
    Wan,
    /// etcd's defaults (heartbeat 100 ms, election 1 s), to be compared with it.
    #[value(hide = true)]
    Etcd,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Only what needs somebody.
    Error,
    /// Also what may need somebody soon.
    Warn,
    /// Also what changes: elections, replicas, members.
    Info,
    /// Also each decision.
    Debug,
    /// Everything.
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Which code carries HTTP/1.1 requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Http1Choice {
    /// Plain requests take a shorter way.
    Fast,
    /// All go through the HTTP library.
    Hyper,
}

/// Who makes replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProviderChoice {
    /// Processes of the host that all peers share.
    Process,
    /// Pods.
    Kubernetes,
}

/// Run one peer of a cluster.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example, the first of three peers on one host:
  raftserve node --data-dir /var/lib/raftserve/1 --node-index 1 \\
    --peers 127.0.0.1:7001,127.0.0.1:7101,127.0.0.1:7201
The second adds 100 to each port:
  raftserve node --data-dir /var/lib/raftserve/2 --node-index 2 \\
    --peers 127.0.0.1:7001,127.0.0.1:7101,127.0.0.1:7201 \\
    --proxy-addr 0.0.0.0:8180 --admin-addr 127.0.0.1:7100 --peer-addr 127.0.0.1:7101 \\
    --ops-addr 127.0.0.1:7102 --service-port-base 30101

An empty data directory starts no cluster while one is known: the first peer named does so, once, and only
when all peers named answer that they are empty. Without --peers and --join, a peer names itself alone, and is a
cluster of one. The same flags may stay for as long as a peer named is a member: an empty directory whose named
peers run a cluster joins it under a new id, and takes its own former place. Where all of them were replaced, name
present ones with --join: they would found another cluster, unless --replica-root holds one's replicas, or its
members look for peers at their addresses.

A further peer joins through any of them:
  raftserve node --data-dir /var/lib/raftserve/4 --join 127.0.0.1:7001,127.0.0.1:7101 \\
    --proxy-addr 0.0.0.0:8380 --admin-addr 127.0.0.1:7300 --peer-addr 127.0.0.1:7301 \\
    --ops-addr 127.0.0.1:7302 --service-port-base 30301

Only the proxy's ports may be bound beyond loopback, unless --cert-dir gives this peer certificates and
--credentials-dir says who may use its admin port.")]
pub struct NodeArgs {
    /// Where this peer keeps its identity, its log and its snapshots. No other peer may use it.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Which of --peers this peer is, from 1. May be left out if --peer-addr is one of them.
    #[arg(long, value_name = "N", env = "RAFTSERVE_NODE_INDEX")]
    pub node_index: Option<usize>,
    /// Peer addresses, HOST:PORT, of all peers that start the cluster, 1, 3 or 5, this one too, in the same order on
    /// all of them. Just this peer if not given. One that is not among them joins them, if --advertise-peer says who it is.
    #[arg(
        long,
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address::host_port,
        env = "RAFTSERVE_PEERS"
    )]
    pub peers: Vec<String>,
    /// Peer addresses, HOST:PORT, of a running cluster that this peer shall join; one of them is enough.
    /// Instead of --peers. Used while the data directory is empty, and to find peers that have moved.
    #[arg(
        long,
        value_name = "ADDR",
        value_delimiter = ',',
        conflicts_with_all = ["peers", "node_index"],
        value_parser = address::host_port,
        env = "RAFTSERVE_JOIN"
    )]
    pub join: Vec<String>,
    /// Join as a learner that has the log and no vote, until `raftserve cluster promote`.
    #[arg(long)]
    pub learner: bool,
    /// How long, in seconds, a peer that has joined must answer and be caught up before it gets a vote. Each
    /// peer's own applies while it leads.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub promote_after: u64,
    /// Remove a voter for good once it has been silent for so many seconds, while this peer leads. Never by
    /// default, and never one of three or fewer, nor while most voters are silent.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(60..))]
    pub remove_dead_after: Option<u64>,
    /// Where requests to services are taken.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080", value_parser = address::ip_port)]
    pub proxy_addr: SocketAddr,
    /// Which code carries HTTP/1.1 requests. What clients and replicas see is the same.
    #[arg(long, value_name = "PATH", value_enum, default_value_t = Http1Choice::Fast)]
    pub http1_path: Http1Choice,
    /// How long a client's connection lasts, such as 10s or 2h, give or take a tenth. HTTP/2 is then told by GOAWAY, HTTP/1
    /// with its next answer, and no request is cut: so clients that stay connected spread anew over the peers.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = durations::parse)]
    pub connection_age: Duration,
    /// How long the requests of an HTTP/2 connection of that age may still run; to their end by default.
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub connection_age_grace: Option<Duration>,
    /// How long requests that run may still take when this peer is told to stop; then they are cut.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = durations::parse)]
    pub drain_grace: Duration,
    /// How long this pod's preStop hook may hold it until the other peers are a quorum without it. What is left of that when
    /// it stops is added to --drain-grace: together they must be less than the pod's grace. One that is to be removed is
    /// held for both, but for the last five seconds, until it is. Only with --stateful-set.
    #[arg(long, value_name = "DURATION", default_value = "35s", value_parser = durations::parse)]
    pub hold_grace: Duration,
    /// Serve TLS too, with the certificates of this directory: NAME.crt with NAME.key (PEM), as many as there are, and
    /// those of directories in it. Which one a client gets depends on the name that it asks for. Files that change are
    /// read again; if they cannot be used, the ones before stay.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Where requests to services are taken over TLS.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "0.0.0.0:8443",
        value_parser = address::ip_port,
        requires = "tls_dir"
    )]
    pub tls_addr: SocketAddr,
    /// PEM file of the authorities whose clients' certificates are believed. Replicas are told of them in
    /// X-Forwarded-Client-Cert.
    #[arg(long, value_name = "FILE", requires = "tls_dir")]
    pub tls_client_ca: Option<PathBuf>,
    /// Turn clients without such a certificate away.
    #[arg(long, requires = "tls_client_ca")]
    pub tls_require_client_cert: bool,
    /// Certificates of this peer: tls.crt and tls.key, and in ca.crt the authorities of all peers (PEM, as cert-manager lays
    /// out a Secret). Peers then speak mutual TLS, and the admin port serves TLS. Files that change are read again; if
    /// they cannot be used, the ones before stay.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_CERT_DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Who may use the admin API: htpasswd (lines USER:HASH, bcrypt), tokens (lines NAME:ROLE:SHA256 of the token) and roles
    /// (lines USER:ROLE; a user without one is a viewer), as a Secret is mounted. Roles are viewer, operator and admin.
    /// Files that change are read again; if they cannot be used, the ones before stay.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_CREDENTIALS_DIR")]
    pub credentials_dir: Option<PathBuf>,
    /// How long a login is good, such as 30m or 12h.
    #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = durations::parse)]
    pub login_lifetime: Duration,
    /// Where the admin API is served. Beyond loopback with --cert-dir and --credentials-dir only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000", value_parser = address::ip_port)]
    pub admin_addr: SocketAddr,
    /// Where the other peers connect. Beyond loopback with --cert-dir and --credentials-dir only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7001", value_parser = address::ip_port)]
    pub peer_addr: SocketAddr,
    /// HOST:PORT at which the other peers reach this one's peer port, if that is not --peer-addr; a name is looked up
    /// whenever they connect. Its host is also where people are told to find the admin port.
    #[arg(
        long,
        value_name = "ADDR",
        conflicts_with = "node_index",
        env = "RAFTSERVE_ADVERTISE_PEER"
    )]
    pub advertise_peer: Option<String>,
    /// The StatefulSet of Kubernetes whose pod this peer is. Peers that it does not want any more are then removed, one that
    /// is told to stop waits (GET /prestop of the ops port) until the others can do without it, dead ones are taken out of
    /// the Services, and no cluster is founded where there was one.
    #[arg(
        long,
        value_name = "NAME",
        requires = "advertise_peer",
        env = "RAFTSERVE_STATEFUL_SET"
    )]
    pub stateful_set: Option<String>,
    /// The addresses of the pod that this peer is. Where one is of IPv6, ports that are open on 0.0.0.0 are on `[::]`, which
    /// takes IPv4 too where the pod has both.
    #[arg(
        long,
        value_name = "IP,...",
        value_delimiter = ',',
        env = "RAFTSERVE_POD_IPS"
    )]
    pub pod_ips: Vec<IpAddr>,
    /// Where health and metrics are served, in the clear. Beyond loopback with --cert-dir and --credentials-dir only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7002", value_parser = address::ip_port)]
    pub ops_addr: SocketAddr,
    /// The first of the 20 ports that services have of their own, on the proxy's address.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 30_001,
        value_parser = clap::value_parser!(u16).range(1..=65_516)
    )]
    pub service_port_base: u16,
    /// The host that URLs of services name; by default the one at which the peer was asked.
    #[arg(long, value_name = "HOST")]
    pub advertise_host: Option<String>,
    /// Where replicas run, the same for all peers of the host. By default `replicas` beside the data
    /// directory.
    #[arg(long, value_name = "DIR")]
    pub replica_root: Option<PathBuf>,
    /// Who makes replicas, the same for all peers.
    #[arg(
        long,
        value_enum,
        default_value = "process",
        env = "RAFTSERVE_PROVIDER"
    )]
    pub provider: ProviderChoice,
    /// The namespace of replicas' pods, and of Kubernetes Services that are named without one. By default that of the
    /// service account, or of the kubeconfig's context.
    #[arg(long, value_name = "NS", env = "RAFTSERVE_KUBERNETES_NAMESPACE")]
    pub kubernetes_namespace: Option<String>,
    /// The image of pods whose service names none.
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "docker.io/library/python:3.11-slim",
        env = "RAFTSERVE_KUBERNETES_DEFAULT_IMAGE"
    )]
    pub kubernetes_default_image: String,
    /// A unix socket whose end of file stops this peer and its replicas: they then end with whoever
    /// listens on it, however that ends.
    #[arg(long, value_name = "SOCKET")]
    pub lifeline: Option<PathBuf>,
    /// A file to which each request of a service is told, as one JSON object a line; `-` for standard output.
    /// Without headers, queries and bodies. It may be moved away at any time: a new one is then made, without a signal.
    #[arg(long, value_name = "FILE", env = "RAFTSERVE_ACCESS_LOG")]
    pub access_log: Option<PathBuf>,
    /// Tell the spans of requests to the OpenTelemetry collector at this URL, by OTLP over gRPC: http://HOST:PORT, mostly
    /// port 4317. One span for each request, and one for each of its tries at a replica.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = crate::otlp::Collector::parse)]
    pub otlp_endpoint: Option<crate::otlp::Collector>,
    /// Which share of the traces that begin here is told, from 0 to 1. Of a trace that began before, its beginner decides.
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = share, requires = "otlp_endpoint")]
    pub otlp_sample: f64,
    /// How fast failures are noticed, against how much the network may delay.
    #[arg(long, value_enum, default_value = "fast")]
    pub profile: TimingProfile,
    /// How much is logged, to standard error.
    #[arg(long, value_enum, default_value = "info", env = "RAFTSERVE_LOG_LEVEL")]
    pub log_level: LogLevel,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text", env = "RAFTSERVE_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Take a snapshot after so many entries. For tests, as the next three.
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_entries: Option<u64>,
    /// How often it is looked whether a snapshot is due.
    #[arg(long, value_name = "DURATION", hide = true, value_parser = durations::parse)]
    pub snapshot_look: Option<Duration>,
    /// How many entries stay in the log after they are in a snapshot.
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_kept: Option<u64>,
    /// How large a segment of the log becomes.
    #[arg(
        long,
        value_name = "BYTES",
        hide = true,
        value_parser = clap::value_parser!(u64).range(1 << 10..=1 << 30)
    )]
    pub segment_size: Option<u64>,
}

fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        args: NodeArgs,
    }

    fn parse(flags: &[&str]) -> Result<NodeArgs, String> {
        let words = ["node", "--data-dir", "d"].iter().chain(flags);
        Whole::try_parse_from(words)
            .map(|whole| whole.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn spans_go_to_a_collector_that_can_be_reached() {
        let args = parse(&["--otlp-endpoint", "http://c:4317", "--otlp-sample", "0.25"]).unwrap();
        assert_eq!(args.otlp_endpoint.unwrap().to_string(), "http://c:4317/");
        assert_eq!(args.otlp_sample, 0.25);
        for bad in ["c:4317", "https://c:4317", "ftp://c", "http://"] {
            assert!(parse(&["--otlp-endpoint", bad]).is_err(), "{bad}");
        }
        for bad in ["1.1", "-0.1", "NaN", "half"] {
            let flags = ["--otlp-endpoint", "http://c:4317", "--otlp-sample", bad];
            assert!(parse(&flags).is_err(), "{bad}");
        }
        assert!(parse(&["--otlp-sample", "0.5"]).is_err());
        assert!(parse(&[]).unwrap().otlp_endpoint.is_none());
    }

    #[test]
    fn a_log_cannot_be_cut_to_nothing() {
        let args = parse(&["--snapshot-entries", "80", "--log-kept", "50"]).unwrap();
        assert_eq!((args.snapshot_entries, args.log_kept), (Some(80), Some(50)));
        for bad in [
            ["--snapshot-entries", "0"],
            ["--log-kept", "0"],
            ["--segment-size", "1023"],
            ["--segment-size", "4294967296"],
            ["--snapshot-look", "0s"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn peers_may_be_listed_with_commas() {
        let args = parse(&["--peers", "a:1,b:2", "--peers", "c:3"]).unwrap();
        assert_eq!(args.peers, ["a:1", "b:2", "c:3"]);
        assert!(parse(&["--service-port-base", "65530"]).is_err());
        for flag in ["--peers", "--join"] {
            let refused = parse(&[flag, "a:1,nonsense"]).unwrap_err();
            assert!(refused.contains("write HOST:PORT"), "{refused}");
        }
    }
}
