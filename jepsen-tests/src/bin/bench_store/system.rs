//! What is measured: a running cluster, and a connection to its leader.

use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use jepsen_tests::admin::v1;
use jepsen_tests::admin::v1::key_value_client::KeyValueClient;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::etcd::pb;
use jepsen_tests::etcd::pb::kv_client::KvClient;
use jepsen_tests::etcd::{Etcd, Timing};
use tonic::transport::{Channel, Endpoint};

use crate::raw::{RawCluster, RawConnection};

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

    /// Ends it; nothing needs to be kept for a look at it.
    pub(crate) fn stop(self) {
        if let Self::Grpc(cluster) = self {
            cluster.pass();
        }
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

    /// A new connection to the leader.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        Ok(match self {
            Self::Etcd(etcd) => Connection::Etcd(etcd.client(etcd.leader().await?).await?),
            Self::Grpc(cluster) => {
                let leader = cluster.leader().await?;
                let address = cluster.peer(leader).setup.ports.admin;
                let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
                let channel = endpoint.tcp_nodelay(true).connect().await?;
                Connection::Grpc(KeyValueClient::new(channel))
            }
            Self::Raw(cluster) => Connection::Raw(cluster.connect().await?),
        })
    }
}

/// A connection, shared by some clients.
#[derive(Clone)]
pub(crate) enum Connection {
    Etcd(KvClient<Channel>),
    Grpc(KeyValueClient<Channel>),
    Raw(RawConnection),
}

impl Connection {
    /// Returns once the value is agreed on.
    pub(crate) async fn put(&mut self, key: String, value: &Bytes) -> anyhow::Result<()> {
        match self {
            Self::Etcd(client) => {
                let request = pb::PutRequest {
                    key: key.into_bytes(),
                    value: value.to_vec(),
                };
                client.put(request).await?;
            }
            Self::Grpc(client) => {
                let request = v1::PutKeyRequest {
                    key,
                    value: value.to_vec(),
                    ..v1::PutKeyRequest::default()
                };
                client.put(request).await?;
            }
            Self::Raw(connection) => connection.put(key.as_bytes(), value).await?,
        }
        Ok(())
    }

    /// A linearizable read of a key that exists.
    pub(crate) async fn get(&mut self, key: String) -> anyhow::Result<Bytes> {
        match self {
            Self::Etcd(client) => {
                let request = pb::RangeRequest {
                    key: key.into_bytes(),
                    range_end: Vec::new(),
                };
                let found = client.range(request).await?.into_inner().kvs;
                let entry = found.into_iter().next().context("there is no such key")?;
                Ok(entry.value.into())
            }
            Self::Grpc(client) => {
                let request = v1::GetKeyRequest { key, stale: false };
                let found = client.get(request).await?.into_inner();
                let entry = found.entry.context("there is no such key")?;
                Ok(entry.value.into())
            }
            Self::Raw(connection) => connection.get(key.as_bytes()).await,
        }
    }
}
