//! The service `Services`.

use std::mem::take;
use std::sync::Arc;

use raftserve_model::ServiceName;
use raftserve_model::spec::{Provider, StaticUpstreams};
use raftserve_store::Outcome;
use raftserve_store::command::{Precondition, Request as Asked};
use tonic::{Request, Response, Status};

use super::errors::{self, Reason, Violation};
use super::gate::admitted;
use super::pages;
use super::shared::{Shared, find, service_name};
use super::v1::{self, services_server::Services};
use super::validate::{self, Beside, Checked};
use super::view;

/// See the module.
pub(super) struct ServicesApi(pub(super) Arc<Shared>);

/// A put that was agreed on.
struct Put {
    service: u64,
    version: u32,
    index: u64,
}

impl ServicesApi {
    /// Checks a YAML, and whether this peer could do as it says.
    async fn check(&self, yaml: &str, beside: Beside) -> Result<Checked, Status> {
        let checked = validate::check(yaml, beside, self.0.parts.provider.name())?;
        if let Provider::Static(StaticUpstreams::KubernetesService(_)) = checked.spec.provider
            && let Err(error) = self.0.parts.api.is_known().await
        {
            return Err(errors::invalid_spec(&[Violation {
                field: "_metadata.raftserve.provider.static.kubernetes_service".to_owned(),
                line: None,
                // The error tells its causes itself.
                problem: format!(
                    "needs peers that can ask a Kubernetes API, and this one knows none ({error}): run the peers as pods, \
                     or give each a kubeconfig (KUBECONFIG); or list addresses instead"
                ),
            }]));
        }
        Ok(checked)
    }

    async fn put(
        &self,
        id: Option<v1::RequestId>,
        name: &ServiceName,
        checked: &Checked,
        precondition: Precondition,
    ) -> Result<Put, Status> {
        let request = Asked::put_service(name.clone(), Arc::clone(&checked.spec), precondition);
        let (index, outcome) = self.0.proposer.execute(id, request).await?;
        self.0.catch_up(index).await;
        match outcome {
            Outcome::ServicePut { service, version } => Ok(Put {
                service: service.0,
                version: version.0,
                index: index.0,
            }),
            other => Err(Reason::Internal.status(format!("putting a service gave {other}"))),
        }
    }

    /// What putting `name` would do now: the service's id, 0 if new, and the version.
    async fn rehearse(
        &self,
        name: &ServiceName,
        precondition: Precondition,
    ) -> Result<Put, Status> {
        let (state, _) = self
            .0
            .read(
                false,
                "what services there are cannot be told, so none was changed",
            )
            .await?;
        let found = state.service_by_name(name);
        if found.is_some_and(|service| service.going_down.is_some()) {
            let refusal = raftserve_store::command::Refusal::ServiceGoingDown(name.clone());
            return Err(errors::refused(&refusal));
        }
        match (found, precondition) {
            (Some(_), Precondition::Absent) => {
                let refusal = raftserve_store::command::Refusal::ServiceExists(name.clone());
                Err(errors::refused(&refusal))
            }
            (None, Precondition::Present) => Err(errors::no_such_service(name)),
            (found, _) => Ok(Put {
                service: found.map_or(0, |service| service.id.0),
                version: found.map_or(1, |service| service.version.0 + 1),
                index: 0,
            }),
        }
    }
}

#[tonic::async_trait]
impl Services for ServicesApi {
    async fn apply(
        &self,
        request: Request<v1::ApplyServiceRequest>,
    ) -> Result<Response<v1::ApplyServiceResponse>, Status> {
        let ports = self.0.ports(request.local_addr());
        let (mut asked, _held) = admitted(request);
        let beside = Beside {
            envs: take(&mut asked.envs),
            secrets: take(&mut asked.secrets),
            files: take(&mut asked.files),
        };
        let mut checked = self.check(&asked.yaml, beside).await?;
        let name = validate::choose_name(&asked.name, checked.name.as_ref(), &asked.default_name)?;
        let precondition = match asked.if_exists() {
            v1::IfExists::Unspecified => Precondition::Absent,
            v1::IfExists::Update => Precondition::Any,
        };
        let put = match asked.validate_only {
            true => self.rehearse(&name, precondition).await?,
            false => {
                self.put(asked.request_id, &name, &checked, precondition)
                    .await?
            }
        };
        let state = self.0.parts.consensus.state();
        let endpoint = state
            .service_by_name(&name)
            .and_then(|service| ports.url(service));
        let others = state.services().filter(|it| it.name != name);
        let mut others = others.map(|service| &service.name);
        if put.version == 1
            && let (Some(alone), None) = (others.next(), others.next())
        {
            checked.warnings.push(format!(
                "{alone} was alone and had every request; beside {name} it has those to its own port, to hosts that begin with \
                 {alone}. and to paths under /{alone}/, and those that name no service are answered with 404"
            ));
        }
        Ok(Response::new(v1::ApplyServiceResponse {
            name: name.to_string(),
            service_id: put.service,
            version: put.version,
            log_index: put.index,
            existed: put.version > 1,
            endpoint: endpoint.unwrap_or_default(),
            wanted_replicas: checked.spec.replicas,
            warnings: checked.warnings,
        }))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::UpdateServiceResponse>, Status> {
        let (mut asked, _held) = admitted(request);
        let name = service_name("name", &asked.name)?;
        if v1::UpdateMode::try_from(asked.mode).is_err() {
            let problem = "must be UPDATE_MODE_ROLLING: no other mode is built yet";
            return Err(errors::invalid_request("mode", problem));
        }
        let beside = Beside {
            envs: take(&mut asked.envs),
            secrets: take(&mut asked.secrets),
            files: take(&mut asked.files),
        };
        let mut checked = self.check(&asked.yaml, beside).await?;
        if let Some(own) = checked.name.as_ref().filter(|own| **own != name) {
            let told = format!("the YAML says `name: {own}`, and it is {name} that is updated");
            checked.warnings.push(told);
        }
        let state = self.0.parts.consensus.state();
        if let Some(before) = state.service_by_name(&name)
            && before.spec() == &checked.spec
        {
            checked.warnings.push(format!(
                "nothing differs from version {}, whose replicas are kept",
                before.version
            ));
        }
        let put = match asked.validate_only {
            true => self.rehearse(&name, Precondition::Present).await?,
            false => {
                self.put(asked.request_id, &name, &checked, Precondition::Present)
                    .await?
            }
        };
        Ok(Response::new(v1::UpdateServiceResponse {
            name: name.to_string(),
            service_id: put.service,
            version: put.version,
            log_index: put.index,
            wanted_replicas: checked.spec.replicas,
            warnings: checked.warnings,
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetServiceRequest>,
    ) -> Result<Response<v1::GetServiceResponse>, Status> {
        let mut ports = self.0.ports(request.local_addr());
        let (asked, _held) = admitted(request);
        let (state, index) = self
            .0
            .read(asked.stale, "the service cannot be told")
            .await?;
        let service = find(&state, "name", &asked.name)?;
        ports.remarks = self.0.remarks(std::iter::once(service)).await;
        let shown = v1::Service {
            yaml: service.spec().source_masked(),
            ..view::service(&state, service, &ports)
        };
        Ok(Response::new(v1::GetServiceResponse {
            service: Some(shown),
            log_index: index.0,
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        let mut ports = self.0.ports(request.local_addr());
        let (asked, _held) = admitted(request);
        let after: Option<ServiceName> = pages::after(&asked.page_token)?;
        let (state, index) = self
            .0
            .read(asked.stale, "the services cannot be told")
            .await?;
        let mut services: Vec<_> = state
            .services()
            .filter(|service| after.as_ref().is_none_or(|after| service.name > *after))
            .collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let (page, next_page_token) =
            pages::take(asked.page_size, services.into_iter(), |service| {
                service.name.clone()
            })?;
        ports.remarks = self.0.remarks(page.iter().copied()).await;
        let show = |service: &Arc<_>| view::service(&state, service, &ports);
        Ok(Response::new(v1::ListServicesResponse {
            services: page.into_iter().map(show).collect(),
            next_page_token,
            log_index: index.0,
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteServiceRequest>,
    ) -> Result<Response<v1::DeleteServiceResponse>, Status> {
        let (asked, _held) = admitted(request);
        let delete = Asked::DeleteService {
            name: service_name("name", &asked.name)?,
            purge: asked.purge,
        };
        let (index, _) = self.0.proposer.execute(asked.request_id, delete).await?;
        self.0.catch_up(index).await;
        Ok(Response::new(v1::DeleteServiceResponse {
            log_index: index.0,
        }))
    }
}
