//! The admin API as `raftserve dev` uses it: one lazy connection to each peer, and calls that go to
//! whichever of them answers.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::ports::Block;
use super::service_file::ServiceFile;
use crate::admin::v1;
use v1::cluster_client::ClusterClient;
use v1::replicas_client::ReplicasClient;
use v1::services_client::ServicesClient;
use v1::sessions_client::SessionsClient;

/// How long a peer may take to accept: it is on this host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer may take to answer a question.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer may take to answer a change: it tells of a lost quorum sooner.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a change is tried, over all peers, until it is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// The pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The admin API of one peer.
#[derive(Clone, Debug)]
pub(super) struct PeerAdmin {
    channel: Channel,
}

impl PeerAdmin {
    /// The admin API of the peer at `block`; connects when first asked, and again when needed.
    pub(super) fn new(block: Block) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", block.admin()))
            .expect("an address makes a URL")
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(WRITE_TIMEOUT);
        Self {
            channel: endpoint.connect_lazy(),
        }
    }

    /// How the peer sees itself and the cluster.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(super) async fn status(&self) -> Result<v1::StatusResponse, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        Ok(client
            .status(read(v1::StatusRequest {}))
            .await?
            .into_inner())
    }

    /// The services that the peer knows of, the first 1,000.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(super) async fn services(&self) -> Result<Vec<v1::Service>, Status> {
        let mut client = ServicesClient::new(self.channel.clone());
        let request = v1::ListServicesRequest {
            stale: true,
            ..Default::default()
        };
        Ok(client.list(read(request)).await?.into_inner().services)
    }

    /// One service, with its YAML, as the peer knows it.
    ///
    /// # Errors
    /// If it does not answer in time, or there is no such service.
    pub(super) async fn service(&self, name: &str) -> Result<v1::Service, Status> {
        let mut client = ServicesClient::new(self.channel.clone());
        let request = v1::GetServiceRequest {
            name: name.to_owned(),
            stale: true,
        };
        let answer = client.get(read(request)).await?.into_inner();
        answer
            .service
            .ok_or_else(|| Status::not_found(format!("there is no service {name}")))
    }

    /// The replicas that the peer knows of, the first 1,000.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub(super) async fn replicas(&self) -> Result<Vec<v1::Replica>, Status> {
        let mut client = ReplicasClient::new(self.channel.clone());
        let request = v1::ListReplicasRequest {
            stale: true,
            ..Default::default()
        };
        Ok(client.list(read(request)).await?.into_inner().replicas)
    }

    /// The session that a client of the service with this key has, as the peer knows it.
    ///
    /// # Errors
    /// If it does not answer in time, or there is no such session.
    pub(super) async fn session(&self, service: &str, value: &str) -> Result<v1::Session, Status> {
        let mut client = SessionsClient::new(self.channel.clone());
        let request = v1::GetSessionRequest {
            service_name: service.to_owned(),
            session: Some(v1::get_session_request::Session::Value(value.to_owned())),
            stale: true,
        };
        let answer = client.get(read(request)).await?.into_inner();
        answer
            .session
            .ok_or_else(|| Status::not_found("there is no such session"))
    }

    /// Has the record of a failed replica forgotten.
    ///
    /// # Errors
    /// If the peer cannot do it, or it is not failed.
    pub(super) async fn forget(&self, replica: &v1::Replica) -> Result<(), Status> {
        let mut client = ReplicasClient::new(self.channel.clone());
        let request = v1::TerminateReplicaRequest {
            service_name: replica.service_name.clone(),
            replica_id: replica.id,
            purge: true,
            request_id: None,
        };
        client.terminate(request).await.map(|_| ())
    }

    async fn open_client(&self) -> Result<u64, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let opened = client.open_client(v1::OpenClientRequest {}).await?;
        Ok(opened.into_inner().client_id)
    }

    async fn apply(
        &self,
        request: v1::ApplyServiceRequest,
    ) -> Result<v1::ApplyServiceResponse, Status> {
        let mut client = ServicesClient::new(self.channel.clone());
        Ok(client.apply(request).await?.into_inner())
    }
}

fn read<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(READ_TIMEOUT);
    request
}

/// Applies the service: makes it, or with `if_exists` gives it a new version. Tried on one peer after
/// the other, and done once however often that is.
///
/// # Errors
/// What the cluster has against it, or that no peer could do it in time.
pub(super) async fn apply(
    peers: &[PeerAdmin],
    file: &ServiceFile,
    if_exists: v1::IfExists,
) -> Result<v1::ApplyServiceResponse> {
    let deadline = Instant::now() + WRITE_PATIENCE;
    let client_id = until_done(
        peers,
        deadline,
        |peer| async move { peer.open_client().await },
    )
    .await
    .context("cannot open a session with the cluster")?;
    let request = v1::ApplyServiceRequest {
        yaml: file.yaml.clone(),
        name: file.name.to_string(),
        if_exists: if_exists.into(),
        files: file.files.clone(),
        request_id: Some(v1::RequestId {
            client_id,
            sequence: 1,
            acknowledged: 0,
        }),
        ..v1::ApplyServiceRequest::default()
    };
    let request = &request;
    until_done(peers, deadline, |peer| async move {
        peer.apply(request.clone()).await
    })
    .await
    .with_context(|| format!("cannot bring up service {}", file.name))
}

/// Tries a call on one peer after the other until one of them does it, or refuses it.
async fn until_done<'a, T, F>(
    peers: &'a [PeerAdmin],
    deadline: Instant,
    call: impl Fn(&'a PeerAdmin) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    for peer in peers.iter().cycle() {
        match call(peer).await {
            Ok(done) => return Ok(done),
            Err(status) if !may_pass(status.code()) || Instant::now() >= deadline => {
                return Err(anyhow!("{}", status.message()));
            }
            Err(_) => sleep(RETRY_PAUSE).await,
        }
    }
    Err(anyhow!("there is no peer to ask"))
}

/// Whether another peer, or the same one later, may do what was refused now.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
    )
}
