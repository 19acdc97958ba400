//! Peers with an admin port each, in this process and on loopback.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, stream};
use raftserve_model::{ClusterId, Incarnation, ServiceId};
use raftserve_node::admin::v1;
use raftserve_node::admin::v1::cluster_client::ClusterClient;
use raftserve_node::admin::v1::events_client::EventsClient;
use raftserve_node::admin::v1::key_value_client::KeyValueClient;
use raftserve_node::admin::v1::logs_client::LogsClient;
use raftserve_node::admin::v1::replicas_client::ReplicasClient;
use raftserve_node::admin::v1::services_client::ServicesClient;
use raftserve_node::admin::v1::sessions_client::SessionsClient;
use raftserve_node::admin::{self, AdminError, AdminParts};
use raftserve_node::clock;
use raftserve_node::consensus::Consensus;
use raftserve_node::peer::{self, LogGrowth, Peer, PeerConfig, Profile};
use raftserve_node::provider::{
    Launched, LogQuery, LogStream, Observation, Provider, ProviderError, ReplicaKey, ReplicaLaunch,
};
use raftserve_store::formats::SUPPORTED;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// A service that is accepted; nothing here runs it.
pub(crate) const YAML: &str = "service:\n  readiness_probe: /\n  replicas: 2\nresources:\n  ports: 8080\nrun: python3 -m http.server 8080\n";

/// Applies [`YAML`] under a name.
pub(crate) fn apply_request(name: &str) -> v1::ApplyServiceRequest {
    v1::ApplyServiceRequest {
        yaml: YAML.to_owned(),
        name: name.to_owned(),
        ..v1::ApplyServiceRequest::default()
    }
}

/// Whether a program that a test needs is there. If not, the test says so and is skipped, or fails
/// where all tools are required.
#[expect(
    clippy::disallowed_methods,
    reason = "the one switch of tests that need a tool"
)]
pub(crate) fn tool(name: &str, program: &str, probe: &[&str]) -> bool {
    let found = Command::new(program)
        .args(probe)
        .output()
        .is_ok_and(|ran| ran.status.success());
    if !found {
        let required = std::env::var_os("RAFTSERVE_REQUIRE_TOOLS").is_some_and(|set| set == "1");
        assert!(!required, "{name} is required and missing");
        eprintln!("skipped: {name} is missing");
    }
    found
}

/// A peer with its admin port.
pub(crate) struct Lab {
    pub(crate) address: SocketAddr,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) closing: CancellationToken,
    pub(crate) dir: tempfile::TempDir,
    peer: Peer,
    channel: Channel,
    serving: JoinHandle<Result<(), AdminError>>,
}

impl Lab {
    /// A cluster of one.
    pub(crate) async fn start() -> Self {
        let mut labs = Self::start_many(1).await;
        labs.pop().unwrap()
    }

    /// A cluster of `count`, which has a leader.
    pub(crate) async fn start_many(count: usize) -> Vec<Self> {
        let listeners: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let peers: Vec<String> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().to_string())
            .collect();
        let starting = listeners.into_iter().enumerate().map(|(at, listener)| {
            let (address, peers) = (peers[at].clone(), peers.clone());
            Self::start_one(at, listener, address, peers)
        });
        let labs = join_all(starting).await;
        for lab in &labs {
            let mut leadership = lab.consensus().leadership();
            let led = leadership.wait_for(|now| now.leader.is_some());
            tokio::time::timeout(Duration::from_secs(20), led)
                .await
                .expect("a leader within 20 s")
                .unwrap();
        }
        labs
    }

    async fn start_one(
        at: usize,
        listener: std::net::TcpListener,
        address: String,
        peers: Vec<String>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin_port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_address = admin_port.local_addr().unwrap();
        let config = PeerConfig {
            data_dir: dir.path().join("data"),
            listener,
            peers,
            join: Vec::new(),
            policy: peer::MembershipPolicy {
                promote_after: Duration::ZERO,
                promotion: raftserve_store::state::Promotion::Automatic,
                dead_after: None,
                lease: Duration::ZERO,
            },
            address,
            admin_address: admin_address.to_string(),
            proxy_address: "127.0.0.1:8080".into(),
            host: "here".into(),
            incarnation: Incarnation(at as u64 + 1),
            profile: Profile::Fast,
            growth: LogGrowth::default(),
            supports: SUPPORTED,
            wall_clock: clock::wall_now,
            certificates: None,
            founding: None,
            waits_for: tokio::sync::watch::Sender::default(),
        };
        let peer = peer::start(config).await.unwrap();
        let (ready, is_ready) = watch::channel(true);
        let closing = CancellationToken::new();
        let parts = AdminParts {
            consensus: peer.consensus(),
            ready: is_ready,
            service_port_base: 30_001,
            service_ports: watch::channel(Vec::new()).1,
            advertise_host: None,
            api: Default::default(),
            home: None,
            provider: Arc::new(TwoLines),
            certificates: None,
            credentials: None,
            denials: Arc::default(),
        };
        let serving = tokio::spawn(admin::serve(admin_port, parts, closing.clone()));
        let channel = Endpoint::from_shared(format!("http://{admin_address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            address: admin_address,
            ready,
            closing,
            dir,
            peer,
            channel,
            serving,
        }
    }

    pub(crate) fn consensus(&self) -> Consensus {
        self.peer.consensus()
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// For the command line: first a port at which nobody answers, then this peer.
    pub(crate) fn servers(&self) -> String {
        format!("127.0.0.1:1,{}", self.address)
    }

    pub(crate) fn services(&self) -> ServicesClient<Channel> {
        ServicesClient::new(self.channel())
    }

    pub(crate) fn replicas(&self) -> ReplicasClient<Channel> {
        ReplicasClient::new(self.channel())
    }

    pub(crate) fn logs(&self) -> LogsClient<Channel> {
        LogsClient::new(self.channel())
    }

    pub(crate) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel())
    }

    pub(crate) fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel())
    }

    pub(crate) fn keys(&self) -> KeyValueClient<Channel> {
        KeyValueClient::new(self.channel())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    pub(crate) async fn stop(self) {
        self.closing.cancel();
        drop(self.channel);
        self.serving.await.unwrap().unwrap();
        self.peer.stop().await;
    }
}

/// A provider whose replicas have all written the same two lines.
struct TwoLines;

impl Provider for TwoLines {
    fn ensure(&self, _launch: ReplicaLaunch) -> BoxFuture<'_, Result<Launched, ProviderError>> {
        async { Ok(Launched::Started) }.boxed()
    }

    fn stop<'a>(
        &'a self,
        _replica: &'a ReplicaKey,
        _grace: Duration,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }

    fn take_over(&self, _: ClusterId) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Vec<Observation>, ProviderError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn logs<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<LogStream, ProviderError>> {
        let lines = ["first\n", "second\n"];
        let skipped = lines.len() - query.tail.map_or(2, |tail| tail as usize);
        let unknown = replica.id.number > 1;
        async move {
            match unknown {
                true => Err(ProviderError::Unknown(replica.clone())),
                false => {
                    let pieces = lines.into_iter().skip(skipped);
                    let pieces = pieces.map(|line| Ok(Bytes::from_static(line.as_bytes())));
                    Ok(stream::iter(pieces.collect::<Vec<_>>()).boxed())
                }
            }
        }
        .boxed()
    }

    fn forget(&self, _service: ServiceId) -> BoxFuture<'_, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }
}
