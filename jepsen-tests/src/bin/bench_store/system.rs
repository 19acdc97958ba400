//! What is measured: a running cluster, and a connection to its leader.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::etcd::pb;
use jepsen_tests::etcd::{Etcd, Timing};
use rustix::process::Signal;

use crate::grpc::GrpcConnection;
use crate::raw::{RawCluster, RawConnection};

/// How long a peer may take to end.
const STOP_MAX: Duration = Duration::from_secs(30);

/// What is measured.
pub(crate) enum System {
    Etcd,
    Grpc,
    Raw(PathBuf),
}

impl System {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Grpc => "grpc",
            Self::Raw(_) => "raw",
        }
    }
}

/// A cluster. Killed when dropped.
pub(crate) enum Running {
    Etcd(Etcd),
    Grpc(Box<Cluster>),
    Raw(RawCluster),
}

impl Running {
    pub(crate) async fn start(system: &System) -> anyhow::Result<Self> {
        Ok(match system {
            System::Etcd => Self::Etcd(Etcd::start(Timing::default()).await?),
            System::Grpc => Self::Grpc(Box::new(Cluster::start_with(Options::default()).await?)),
            System::Raw(binary) => Self::Raw(RawCluster::start(binary).await?),
        })
    }

    /// Ends it; nothing needs to be kept for a look at it. Our own ends by itself: a binary that is profiled writes what
    /// it saw only then.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        if let Self::Grpc(mut cluster) = self {
            for index in cluster.started() {
                cluster.peer(index).signal(Signal::TERM)?;
            }
            for index in cluster.started() {
                cluster.peer_mut(index).ended(STOP_MAX).await?;
            }
            cluster.pass();
        }
        Ok(())
    }

    pub(crate) fn pids(&self) -> anyhow::Result<Vec<i32>> {
        match self {
            Self::Etcd(etcd) => etcd.pids(),
            Self::Grpc(cluster) => (0..cluster.size())
                .map(|index| cluster.peer(index).pid())
                .collect(),
            Self::Raw(cluster) => cluster.pids(),
        }
    }

    /// Its leader.
    pub(crate) async fn target(&self) -> anyhow::Result<Target> {
        let (protocol, address) = match self {
            Self::Etcd(etcd) => (Protocol::Etcd, etcd.client_address(etcd.leader().await?)),
            Self::Grpc(cluster) => {
                let leader = cluster.leader().await?;
                (Protocol::Grpc, cluster.peer(leader).setup.ports.admin)
            }
            Self::Raw(cluster) => (Protocol::Raw, cluster.leader().await?),
        };
        Ok(Target { protocol, address })
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Etcd,
    Grpc,
    Raw,
}

/// A server to connect to.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    protocol: Protocol,
    address: SocketAddr,
}

impl Target {
    /// A new connection.
    pub(crate) async fn connect(self) -> anyhow::Result<Connection> {
        let address = self.address;
        Ok(match self.protocol {
            Protocol::Etcd => Connection::Etcd(GrpcConnection::open(address).await?),
            Protocol::Grpc => Connection::Grpc(GrpcConnection::open(address).await?),
            Protocol::Raw => Connection::Raw(RawConnection::open(address).await?),
        })
    }
}

/// A connection, shared by some clients.
#[derive(Clone)]
pub(crate) enum Connection {
    Etcd(GrpcConnection),
    Grpc(GrpcConnection),
    Raw(RawConnection),
}

impl Connection {
    /// Returns once the value is agreed on.
    pub(crate) async fn put(&self, key: String, value: &Bytes) -> anyhow::Result<()> {
        match self {
            Self::Etcd(connection) => {
                let request = pb::PutRequest {
                    key: key.into_bytes(),
                    value: value.to_vec(),
                };
                let _: pb::PutResponse = connection.call("/etcdserverpb.KV/Put", &request).await?;
            }
            Self::Grpc(connection) => {
                let request = v1::PutKeyRequest {
                    key,
                    value: value.to_vec(),
                    ..v1::PutKeyRequest::default()
                };
                let _: v1::PutKeyResponse = connection
                    .call("/raftserve.v1.KeyValue/Put", &request)
                    .await?;
            }
            Self::Raw(connection) => connection.put(key.as_bytes(), value).await?,
        }
        Ok(())
    }

    /// A linearizable read of a key that exists.
    pub(crate) async fn get(&self, key: String) -> anyhow::Result<Bytes> {
        match self {
            Self::Etcd(connection) => {
                let request = pb::RangeRequest {
                    key: key.into_bytes(),
                    range_end: Vec::new(),
                };
                let found: pb::RangeResponse =
                    connection.call("/etcdserverpb.KV/Range", &request).await?;
                let entry = found
                    .kvs
                    .into_iter()
                    .next()
                    .context("there is no such key")?;
                Ok(entry.value.into())
            }
            Self::Grpc(connection) => {
                let request = v1::GetKeyRequest { key, stale: false };
                let found: v1::GetKeyResponse = connection
                    .call("/raftserve.v1.KeyValue/Get", &request)
                    .await?;
                let entry = found.entry.context("there is no such key")?;
                Ok(entry.value.into())
            }
            Self::Raw(connection) => connection.get(key.as_bytes()).await,
        }
    }
}
