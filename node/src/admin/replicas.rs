//! The service `Replicas`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use raftserve_model::{ReplicaId, ServiceId};
use raftserve_store::State;
use raftserve_store::command::Request as Asked;
use raftserve_store::state::{Phase, Replica};
use tonic::{Request, Response, Status};

use super::gate::admitted;
use super::pages;
use super::shared::{Shared, find, service_name};
use super::v1::{self, replicas_server::Replicas};
use super::view;

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

/// What the provider has to say.
struct Told {
    notes: BTreeMap<ReplicaId, String>,
    trouble: Option<String>,
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
    let note = told.notes.get(&replica.id).or_else(hindered);
    Some(view::replica(service, replica, made_by, note))
}

#[tonic::async_trait]
impl Replicas for ReplicasApi {
    async fn list(
        &self,
        request: Request<v1::ListReplicasRequest>,
    ) -> Result<Response<v1::ListReplicasResponse>, Status> {
        let (asked, _held) = admitted(request);
        let after: Option<Place> = pages::after(&asked.page_token)?;
        let (state, index) = self.0.read(asked.stale).await?;
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
        let provider = &self.0.parts.provider;
        let (made_by, told) = (
            provider.name(),
            Told {
                notes: provider.notes(),
                trouble: provider.trouble(),
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
        let terminate = Asked::TerminateReplica {
            name: service_name("service_name", &asked.service_name)?,
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
