//! What all services of the admin API work on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::{LogIndex, ServiceId, ServiceName};
use raftserve_proxy::{PortState, PortStatus};
use raftserve_store::State;
use raftserve_store::state::Service;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::door::Denials;
use super::errors::{self, Reason};
use super::proposer::Proposer;
use super::view::ServicePorts;
use crate::access::{Certificates, Credentials};
use crate::consensus::Consensus;
use crate::controller::one_host;
use crate::kubernetes::{ApiServer, Home};
use crate::provider::Provider;

/// How long a linearizable read may take before the caller is told that there is no quorum.
const READ_BUDGET: Duration = Duration::from_millis(1_500);

/// How long a write's answer may wait for this peer to apply what the leader already has, so that the
/// caller's next stale read sees it. Past that the answer is given all the same.
const APPLY_WAIT: Duration = Duration::from_millis(150);

/// The most watches and log streams at once: each holds a task and at most half a megabyte.
const STREAMS_MAX: usize = 256;

/// What the admin API is made of.
pub struct AdminParts {
    /// The log.
    pub consensus: Consensus,
    /// Whether this peer takes requests; told by health.
    pub ready: watch::Receiver<bool>,
    /// The port of the first service with a port of its own, on this peer.
    pub service_port_base: u16,
    /// Which services' own ports this peer could open, and which not.
    pub service_ports: watch::Receiver<Vec<PortStatus>>,
    /// The host to name in the URLs of services; the one that the caller reached if not given.
    pub advertise_host: Option<String>,
    /// Where Kubernetes is asked for the endpoints of its Services.
    pub api: ApiServer,
    /// Where this peer runs, if it is a pod of a StatefulSet.
    pub home: Option<Arc<Home>>,
    /// Where replicas' output is read.
    pub provider: Arc<dyn Provider>,
    /// With which the port serves TLS; without, it serves none.
    pub certificates: Option<Arc<Certificates>>,
    /// Who may call; without, everybody who reaches the port.
    pub credentials: Option<Arc<Credentials>>,
    /// How often somebody was not let in is counted here.
    pub denials: Arc<Denials>,
}

/// See the module.
pub(super) struct Shared {
    pub(super) parts: AdminParts,
    pub(super) proposer: Proposer<Consensus>,
    /// Cancelled when the port closes: streams end then.
    pub(super) closing: CancellationToken,
    streams: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(parts: AdminParts, closing: CancellationToken) -> Self {
        Self {
            proposer: Proposer::new(parts.consensus.clone()),
            parts,
            closing,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// A state to answer a read from, and an index that it reflects. `otherwise` says what cannot be
    /// told or done without.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the read is not to be stale and no leader confirmed it in time.
    pub(super) async fn read(
        &self,
        stale: bool,
        otherwise: &str,
    ) -> Result<(Arc<State>, LogIndex), Status> {
        let consensus = &self.parts.consensus;
        let confirmed = if stale {
            LogIndex(0)
        } else {
            let barrier = consensus.read_barrier(READ_BUDGET);
            tokio::time::timeout(READ_BUDGET, barrier)
                .await
                .map_err(|_| no_quorum(otherwise, "no quorum answered in time"))?
                .map_err(|error| no_quorum(otherwise, &error.reason))?
        };
        // The index first: the state is then at least as new as it says.
        let applied = *consensus.applied().borrow();
        Ok((consensus.state(), applied.max(confirmed)))
    }

    /// Waits a little until this peer has applied `index`.
    pub(super) async fn catch_up(&self, index: LogIndex) {
        let mut applied = self.parts.consensus.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        // An answer that this peer has not caught up with yet is still a right answer.
        let _ = tokio::time::timeout(APPLY_WAIT, reached).await;
    }

    /// Room for one more stream.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is none.
    pub(super) fn admit_stream(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Reason::TooManyStreams.status(format!(
                "this peer serves {STREAMS_MAX} streams already; close some, or ask another peer"
            ))
        })
    }

    /// What keeps this peer from seeing or making replicas at all.
    pub(super) fn hindrance(&self) -> Option<String> {
        let provider = self.parts.provider.as_ref();
        let trouble = provider.trouble();
        trouble.or_else(|| one_host::not_shared(&self.parts.consensus, provider))
    }

    /// What keeps this peer from being an endpoint, or from saying who is one.
    pub(super) fn endpoints_hindrance(&self) -> Option<String> {
        self.parts.home.as_ref()?.gate_trouble()
    }

    /// Where this peer's service ports are reached by a caller that reached it at `local`.
    pub(super) fn ports(&self, local: Option<SocketAddr>) -> ServicePorts {
        let reached = || local.map(|local| local.ip().to_canonical().to_string());
        let advertised = self.parts.advertise_host.clone();
        ServicePorts {
            host: advertised
                .or_else(reached)
                .unwrap_or_else(|| "127.0.0.1".to_owned()),
            base: self.parts.service_port_base,
            provider: self.parts.provider.name(),
            hindrance: self.hindrance(),
            endpoints: self.endpoints_hindrance(),
            refused: refused(&self.parts.service_ports.borrow()),
            remarks: BTreeMap::new(),
        }
    }

    /// What the leader says of `services`.
    pub(super) async fn remarks(
        &self,
        services: impl Iterator<Item = &Arc<Service>>,
    ) -> BTreeMap<ServiceId, String> {
        let ids = services.map(|service| service.id).collect();
        self.parts.consensus.remarks(ids, Vec::new()).await.services
    }
}

/// Why services' own ports are not theirs at this peer. Somebody else may answer there.
fn refused(ports: &[PortStatus]) -> BTreeMap<ServiceId, String> {
    let reason = |status: &PortStatus| match &status.state {
        PortState::Open => None,
        PortState::Refused { reason } => Some((
            status.service,
            format!(
                "its own port {} cannot be had at this peer: {reason}; free it, or choose another --service-port-base",
                status.port
            ),
        )),
    };
    ports.iter().filter_map(reason).collect()
}

/// A read that no quorum confirmed: `otherwise` says what cannot be told or done without it.
pub(super) fn no_quorum(otherwise: &str, reason: &str) -> Status {
    Reason::NoQuorum.status(format!(
        "{otherwise}: {reason}; try again, also on another peer: another leader is elected within a second \
         where a majority of the peers is up"
    ))
}

/// A service's name as a request gives it.
///
/// # Errors
/// `INVALID_ARGUMENT` naming `field`.
pub(super) fn service_name(field: &str, text: &str) -> Result<ServiceName, Status> {
    text.parse().map_err(|error: raftserve_model::id::IdError| {
        errors::invalid_request(field, error.to_string())
    })
}

/// The service that a request names.
///
/// # Errors
/// `INVALID_ARGUMENT` if it cannot be a name, `NOT_FOUND` if nothing has it.
pub(super) fn find<'a>(
    state: &'a State,
    field: &str,
    text: &str,
) -> Result<&'a Arc<Service>, Status> {
    let name = service_name(field, text)?;
    state
        .service_by_name(&name)
        .ok_or_else(|| errors::no_such_service(&name))
}
