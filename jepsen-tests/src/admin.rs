//! The admin API `raftserve.v1`, as any other program would call it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::access::{self, Bearer, Credential};

/// The generated client of the published protocol.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated from the published .proto files"
)]
pub mod v1 {
    tonic::include_proto!("raftserve.v1");
}

use v1::access_client::AccessClient;
use v1::cluster_client::ClusterClient;
use v1::events_client::EventsClient;
use v1::key_value_client::KeyValueClient;
use v1::replicas_client::ReplicasClient;
use v1::services_client::ServicesClient;
use v1::sessions_client::SessionsClient;

/// How long a connection may take on loopback before the peer counts as hung.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a call may take. A peer answers within 2 s even without a quorum, so this only ends what a
/// defect, or a paused peer, would hang.
pub const CALL_TIME_MAX: Duration = Duration::from_secs(5);

/// The largest page that the API gives.
const PAGE: u32 = 1_000;

/// The most pages that are read of anything: a million records.
const PAGES_MAX: usize = 1_000;

/// A client of one peer's admin port. Connects when it is first used, and again when it must.
#[derive(Clone, Debug)]
pub struct Admin {
    channel: InterceptedService<Channel, Bearer>,
}

impl Admin {
    /// A client of the admin port at `address`.
    ///
    /// # Panics
    /// Never: every socket address makes a URI.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("a socket address makes a URI")
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(CALL_TIME_MAX);
        Self {
            channel: InterceptedService::new(endpoint.connect_lazy(), Bearer::new(None)),
        }
    }

    /// A client of the admin port at `address`, which speaks TLS and asks for a credential.
    ///
    /// # Panics
    /// If the authorities cannot be read.
    #[must_use]
    pub fn with(address: SocketAddr, credential: &Credential) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("a socket address makes a URI")
            .timeout(CALL_TIME_MAX);
        let channel = access::channel(&endpoint, address, credential);
        let bearer = Bearer::new(credential.token.as_deref());
        Self {
            channel: InterceptedService::new(channel, bearer),
        }
    }

    /// Exchanges a password for a token.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn log_in(&self, user: &str, password: &str) -> Result<v1::LoginResponse, Status> {
        let request = v1::LoginRequest {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let mut client = AccessClient::new(self.channel.clone());
        Ok(client.login(request).await?.into_inner())
    }

    /// Who the peer takes this client for.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn who_am_i(&self) -> Result<v1::WhoAmIResponse, Status> {
        let mut client = AccessClient::new(self.channel.clone());
        Ok(client.who_am_i(v1::WhoAmIRequest {}).await?.into_inner())
    }

    /// Removes a member for good.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn remove_member(&self, node_id: u64) -> Result<(), Status> {
        let request = v1::RemoveMemberRequest { node_id };
        let mut client = ClusterClient::new(self.channel.clone());
        client.remove_member(request).await.map(drop)
    }

    /// Has a peer lead.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn transfer_leader(&self, node_id: u64) -> Result<(), Status> {
        let request = v1::TransferLeaderRequest {
            target: Some(node_id),
        };
        let mut client = ClusterClient::new(self.channel.clone());
        client.transfer_leader(request).await.map(drop)
    }

    /// How the leader sees the members.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn health(&self) -> Result<v1::HealthResponse, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        Ok(client.health(v1::HealthRequest {}).await?.into_inner())
    }

    /// How the peer sees itself and the cluster.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn status(&self) -> Result<v1::StatusResponse, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        Ok(client.status(v1::StatusRequest {}).await?.into_inner())
    }

    /// The members, as the peer knows them.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn members(&self) -> Result<Vec<v1::Member>, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let answer = client.members(v1::MembersRequest {}).await?;
        Ok(answer.into_inner().members)
    }

    /// Creates a service.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn apply(&self, yaml: &str) -> Result<v1::ApplyServiceResponse, Status> {
        self.put(v1::ApplyServiceRequest {
            yaml: yaml.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Creates a service with files that its YAML names, or gives it another version if a try before has created it.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn apply_with(
        &self,
        yaml: &str,
        files: Vec<v1::MountedFile>,
    ) -> Result<v1::ApplyServiceResponse, Status> {
        self.put(v1::ApplyServiceRequest {
            yaml: yaml.to_owned(),
            files,
            if_exists: v1::IfExists::Update.into(),
            ..Default::default()
        })
        .await
    }

    async fn put(
        &self,
        request: v1::ApplyServiceRequest,
    ) -> Result<v1::ApplyServiceResponse, Status> {
        let mut client = ServicesClient::new(self.channel.clone());
        Ok(client.apply(request).await?.into_inner())
    }

    /// Gives a service a new version.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn update(
        &self,
        name: &str,
        yaml: &str,
    ) -> Result<v1::UpdateServiceResponse, Status> {
        let request = v1::UpdateServiceRequest {
            name: name.to_owned(),
            yaml: yaml.to_owned(),
            ..Default::default()
        };
        let mut client = ServicesClient::new(self.channel.clone());
        Ok(client.update(request).await?.into_inner())
    }

    /// Takes a service down.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = v1::DeleteServiceRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        let mut client = ServicesClient::new(self.channel.clone());
        client.delete(request).await.map(drop)
    }

    /// Stops a replica.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn terminate(&self, name: &str, replica: u32) -> Result<(), Status> {
        let request = v1::TerminateReplicaRequest {
            service_name: name.to_owned(),
            replica_id: replica,
            ..Default::default()
        };
        let mut client = ReplicasClient::new(self.channel.clone());
        client.terminate(request).await.map(drop)
    }

    /// A service, confirmed by the leader; none if there is no such service.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn service(&self, name: &str) -> Result<Option<v1::Service>, Status> {
        self.get_service(name, false).await
    }

    /// A service as this peer knows it, perhaps behind.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn stale_service(&self, name: &str) -> Result<Option<v1::Service>, Status> {
        self.get_service(name, true).await
    }

    async fn get_service(&self, name: &str, stale: bool) -> Result<Option<v1::Service>, Status> {
        let request = v1::GetServiceRequest {
            name: name.to_owned(),
            stale,
        };
        let mut client = ServicesClient::new(self.channel.clone());
        match client.get(request).await {
            Ok(answer) => Ok(answer.into_inner().service),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// All services.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn services(&self) -> Result<Vec<v1::Service>, Status> {
        let request = v1::ListServicesRequest::default();
        let mut client = ServicesClient::new(self.channel.clone());
        Ok(client.list(request).await?.into_inner().services)
    }

    /// All replicas of all services, also those that are no more than a record.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn replicas(&self) -> Result<Vec<v1::Replica>, Status> {
        let request = v1::ListReplicasRequest::default();
        let mut client = ReplicasClient::new(self.channel.clone());
        Ok(client.list(request).await?.into_inner().replicas)
    }

    /// Which replica each session of a service is bound to, and in which epoch, by key.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn sessions(&self, name: &str) -> anyhow::Result<BTreeMap<String, (u32, u64)>> {
        let mut client = SessionsClient::new(self.channel.clone());
        let mut found = BTreeMap::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = v1::ListSessionsRequest {
                service_name: name.to_owned(),
                page_size: PAGE,
                page_token,
                stale: false,
            };
            let answer = client.list(request).await?.into_inner();
            let entry = |it: v1::Session| (it.key, (it.replica_id, it.epoch));
            found.extend(answer.sessions.into_iter().map(entry));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(found);
            }
        }
        anyhow::bail!("more than {} sessions", found.len())
    }

    /// Opens a client session, for requests that are to take effect once however often they are sent.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn open_client(&self) -> Result<u64, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let opened = client.open_client(v1::OpenClientRequest {}).await?;
        Ok(opened.into_inner().client_id)
    }

    /// Sets a key, under a condition on its modified index (0: it must not exist) if one is given.
    ///
    /// # Errors
    /// As the peer answers. [`Fate::of`] says what became of the write.
    pub async fn put_key(
        &self,
        key: &str,
        value: impl Into<bytes::Bytes>,
        if_modified_index: Option<u64>,
        request_id: Option<v1::RequestId>,
    ) -> Result<v1::PutKeyResponse, Status> {
        let request = v1::PutKeyRequest {
            key: key.to_owned(),
            value: value.into().into(),
            if_modified_index,
            request_id,
        };
        let mut client = KeyValueClient::new(self.channel.clone());
        Ok(client.put(request).await?.into_inner())
    }

    /// Deletes a key, under a condition as `put_key` has it.
    ///
    /// # Errors
    /// As the peer answers. [`Fate::of`] says what became of the write.
    pub async fn delete_key(
        &self,
        key: &str,
        if_modified_index: Option<u64>,
        request_id: Option<v1::RequestId>,
    ) -> Result<v1::DeleteKeyResponse, Status> {
        let request = v1::DeleteKeyRequest {
            key: key.to_owned(),
            if_modified_index,
            request_id,
        };
        let mut client = KeyValueClient::new(self.channel.clone());
        Ok(client.delete(request).await?.into_inner())
    }

    /// A key, confirmed by the leader; none if there is no such key.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn key(&self, key: &str) -> Result<Option<v1::KeyEntry>, Status> {
        self.get_key(key, false).await
    }

    /// A key as this peer knows it, perhaps behind.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn stale_key(&self, key: &str) -> Result<Option<v1::KeyEntry>, Status> {
        self.get_key(key, true).await
    }

    async fn get_key(&self, key: &str, stale: bool) -> Result<Option<v1::KeyEntry>, Status> {
        let request = v1::GetKeyRequest {
            key: key.to_owned(),
            stale,
        };
        let mut client = KeyValueClient::new(self.channel.clone());
        match client.get(request).await {
            Ok(answer) => Ok(answer.into_inner().entry),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// The keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn keys(&self, prefix: &str) -> anyhow::Result<Vec<v1::KeyEntry>> {
        let mut client = KeyValueClient::new(self.channel.clone());
        let (mut found, mut page_token) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let request = v1::ListKeysRequest {
                prefix: prefix.to_owned(),
                page_token,
                ..Default::default()
            };
            let answer = client.list(request).await?.into_inner();
            found.extend(answer.entries);
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(found);
            }
        }
        anyhow::bail!("more than {} keys", found.len())
    }

    /// What becomes of the keys that begin with `prefix`, from the log index `from` on.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn watch_keys(
        &self,
        prefix: &str,
        from: u64,
    ) -> Result<tonic::Streaming<v1::WatchKeysResponse>, Status> {
        let request = v1::WatchKeysRequest {
            from_index: Some(from),
            prefix: prefix.to_owned(),
        };
        let mut client = KeyValueClient::new(self.channel.clone());
        Ok(client.watch(request).await?.into_inner())
    }

    /// What happens from the log index `from` on, as it is told.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn watch_events(
        &self,
        from: Option<u64>,
    ) -> Result<Streaming<v1::WatchEventsResponse>, Status> {
        let request = v1::WatchEventsRequest {
            from_index: from,
            service_name: String::new(),
        };
        let mut client = EventsClient::new(self.channel.clone());
        Ok(client.watch(request).await?.into_inner())
    }

    /// What happens from the log index `from` on.
    ///
    /// # Errors
    /// As the peer answers.
    pub async fn events(&self, from: Option<u64>) -> anyhow::Result<Events> {
        let stream = self.watch_events(from).await;
        Ok(Events {
            stream: stream.context("cannot watch events")?,
        })
    }
}

/// What became of a write that was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It did not take effect and never will.
    Refused,
    /// It may have taken effect, or may yet.
    Unknown,
}

impl Fate {
    /// Only what the API promises to be without effect counts as refused: its own reason `NOT_PROPOSED` and the
    /// status codes of refusals. A connection that broke says nothing. Of a request that is repeated under its
    /// id, every attempt must have been refused.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let refused = matches!(
            status.code(),
            Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::ResourceExhausted
        );
        // The reason is a plain string within the encoded details.
        let reason = b"NOT_PROPOSED";
        let not_proposed = status
            .details()
            .windows(reason.len())
            .any(|window| window == reason);
        match refused || not_proposed {
            true => Self::Refused,
            false => Self::Unknown,
        }
    }
}

/// A stream of what happens.
#[derive(Debug)]
pub struct Events {
    stream: Streaming<v1::WatchEventsResponse>,
}

impl Events {
    /// The next events, all of one log index. An empty list is a bookmark: all before that index was sent.
    ///
    /// # Errors
    /// If the stream broke or ended.
    pub async fn next(&mut self) -> anyhow::Result<(u64, Vec<v1::Event>)> {
        let message = self
            .stream
            .message()
            .await
            .context("the stream of events broke")?;
        let message = message.context("the stream of events ended")?;
        Ok((message.log_index, message.events))
    }
}

/// Whether a replica in this status serves or may yet.
#[must_use]
pub fn is_live(status: v1::ReplicaStatus) -> bool {
    use v1::ReplicaStatus as S;
    matches!(
        status,
        S::Pending | S::Provisioning | S::Starting | S::Ready | S::NotReady
    )
}
