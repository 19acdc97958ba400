//! The service `Replicas`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use raftserve_model::{ReplicaId, ServiceId, ServiceName};
use raftserve_store::State;
use raftserve_store::command::Request as Asked;
use raftserve_store::state::{Phase, Replica};
use tonic::{Request, Response, Status};

use super::errors;
use super::gate::admitted;
use super::pages;
use super::shared::{Shared, find, service_name};
use super::v1::{self, replicas_server::Replicas};
use super::view;
use crate::peer::Remarks;

/// See the module.
pub(super) struct ReplicasApi(pub(super) Arc<Shared>);

/// A replica's id as a page token.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place(ReplicaId);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (service, number) = text.split_once('-').ok_or(())?;
        Ok(Self(ReplicaId {
            service: ServiceId(service.parse().map_err(|_| ())?),
            number: number.parse().map_err(|_| ())?,
        }))
    }
}

/// What the provider and the leader have to say.
struct Told {
    notes: BTreeMap<ReplicaId, String>,
    trouble: Option<String>,
    remarks: Remarks,
}

/// Whether the leader knows more of it than the record tells.
fn is_remarked_on(replica: &Replica) -> bool {
    replica.is_live() && replica.phase != Phase::Ready
}

fn show(
    state: &State,
    replica: &Replica,
    made_by: &'static str,
    told: &Told,
) -> Option<v1::Replica> {
    let service = state.service(replica.id.service)?;
    // What hinders everything hinders those that are on their way.
    let hindered = || {
        let waits = matches!(replica.phase, Phase::Pending | Phase::Provisioning);
        let made = service.spec().provider.makes_replicas();
        told.trouble.as_ref().filter(|_| waits && made)
    };
    let remark = || told.remarks.replicas.get(&replica.id);
    let note = told.notes.get(&replica.id).or_else(remark);
    let note = note.or_else(hindered);
    Some(view::replica(service, replica, made_by, note))
}

/// Whether a replica is there, and nobody made it.
fn is_nobodys(state: &State, name: &ServiceName, number: u32) -> bool {
    let found = state.service_by_name(name).and_then(|service| {
        let id = ReplicaId {
            service: service.id,
            number,
        };
        Some((service, state.replica(id)?))
    });
    found.is_some_and(|(service, replica)| {
        let spec = service.spec_of(replica.launched_as);
        replica.is_live() && !spec.provider.makes_replicas()
    })
}

#[tonic::async_trait]
impl Replicas for ReplicasApi {
    async fn list(
        &self,
        request: Request<v1::ListReplicasRequest>,
    ) -> Result<Response<v1::ListReplicasResponse>, Status> {
        let (asked, _held) = admitted(request);
        let after: Option<Place> = pages::after(&asked.page_token)?;
        let (state, index) = self
            .0
            .read(asked.stale, "the replicas cannot be told")
            .await?;
        let of = match asked.service_name.as_str() {
            "" => None,
            name => Some(find(&state, "service_name", name)?.id),
        };
        let replicas = state.replicas().filter(|replica| {
            of.is_none_or(|of| replica.id.service == of)
                && after.as_ref().is_none_or(|after| replica.id > after.0)
        });
        let (page, next_page_token) =
            pages::take(asked.page_size, replicas, |replica| Place(replica.id))?;
        let unready = page.iter().filter(|replica| is_remarked_on(replica));
        let unready = unready.map(|replica| replica.id).collect();
        let remarks = self.0.parts.consensus.remarks(Vec::new(), unready).await;
        let provider = &self.0.parts.provider;
        let (made_by, told) = (
            provider.name(),
            Told {
                notes: provider.notes(),
                trouble: provider.trouble(),
                remarks,
            },
        );
        Ok(Response::new(v1::ListReplicasResponse {
            replicas: page
                .into_iter()
                .filter_map(|replica| show(&state, replica, made_by, &told))
                .collect(),
            next_page_token,
            log_index: index.0,
        }))
    }

    async fn terminate(
        &self,
        request: Request<v1::TerminateReplicaRequest>,
    ) -> Result<Response<v1::TerminateReplicaResponse>, Status> {
        let (asked, _held) = admitted(request);
        let name = service_name("service_name", &asked.service_name)?;
        let (state, _) = self
            .0
            .read(
                false,
                "what the replica is cannot be told, so it was not stopped",
            )
            .await?;
        if is_nobodys(&state, &name, asked.replica_id) {
            return Err(errors::invalid_request(
                "replica_id",
                format!(
                    "replica {} of service {name} is static: nobody here runs it, so nobody here can stop it; stop it where \
                     it runs, or leave its address out with an update",
                    asked.replica_id
                ),
            ));
        }
        let terminate = Asked::TerminateReplica {
            name,
            number: asked.replica_id,
            purge: asked.purge,
        };
        let (index, _) = self.0.proposer.execute(asked.request_id, terminate).await?;
        self.0.catch_up(index).await;
        Ok(Response::new(v1::TerminateReplicaResponse {
            log_index: index.0,
        }))
    }
}
