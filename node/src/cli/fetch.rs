//! What the CLI reads of services and replicas: one, or whole lists, page by page.

use super::connect::{Link, Servers};
use super::failure::{Exit, Failure};
use super::glob;
use crate::admin::v1;
use crate::admin::v1::replicas_client::ReplicasClient;
use crate::admin::v1::services_client::ServicesClient;

/// The most bytes that an answer may have: a page of a thousand replicas with long reasons.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A client of `Services`.
pub(super) fn services_client(channel: Link) -> ServicesClient<Link> {
    ServicesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// A client of `Replicas`.
pub(super) fn replicas_client(channel: Link) -> ReplicasClient<Link> {
    ReplicasClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// A service as any peer knows it.
///
/// # Errors
/// If there is none of that name, or nobody answers.
pub(super) async fn service(
    servers: &mut Servers,
    name: &str,
) -> Result<Option<v1::Service>, Failure> {
    let request = v1::GetServiceRequest {
        name: name.to_owned(),
        stale: true,
    };
    let found = servers
        .ask(|channel| {
            let request = request.clone();
            async move { services_client(channel).get(request).await }
        })
        .await?;
    Ok(found.service)
}

/// Every service, by name.
pub(super) async fn services(
    servers: &mut Servers,
    stale: bool,
) -> Result<Vec<v1::Service>, Failure> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListServicesRequest {
            page_size: 0,
            page_token: page_token.clone(),
            stale,
        };
        let page = servers
            .ask(|channel| {
                let request = request.clone();
                async move { services_client(channel).list(request).await }
            })
            .await?;
        all.extend(page.services);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// Every replica, of one service or of all if `service_name` is empty.
pub(super) async fn replicas(
    servers: &mut Servers,
    service_name: &str,
    stale: bool,
) -> Result<Vec<v1::Replica>, Failure> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListReplicasRequest {
            service_name: service_name.to_owned(),
            page_size: 0,
            page_token: page_token.clone(),
            stale,
        };
        let page = servers
            .ask(|channel| {
                let request = request.clone();
                async move { replicas_client(channel).list(request).await }
            })
            .await?;
        all.extend(page.replicas);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// Those of `services` that `wanted` names or matches; all if it is empty.
///
/// # Errors
/// If something wanted matches nothing.
pub(super) fn select(
    services: Vec<v1::Service>,
    wanted: &[String],
) -> Result<Vec<v1::Service>, Failure> {
    let matches = |wanted: &String, service: &v1::Service| match glob::is_pattern(wanted) {
        true => glob::matches(wanted, &service.name),
        false => *wanted == service.name,
    };
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|wanted| !services.iter().any(|service| matches(wanted, service)))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        let message = format!("there is no service {}", missing.join(", "));
        return Err(
            Failure::new(Exit::NotFound, message).remedy("`raftserve status` lists the services")
        );
    }
    let is_wanted = |service: &v1::Service| {
        wanted.is_empty() || wanted.iter().any(|wanted| matches(wanted, service))
    };
    Ok(services.into_iter().filter(is_wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns_select_services_and_must_match_something() {
        let all = || {
            let named = |name: &str| v1::Service {
                name: name.to_owned(),
                ..v1::Service::default()
            };
            vec![named("api"), named("web-1"), named("web-2")]
        };
        let select = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
            let found = super::select(all(), &wanted)?;
            Ok::<_, Failure>(found.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(select(&[]).unwrap().len(), 3);
        assert_eq!(select(&["web-*"]).unwrap(), ["web-1", "web-2"]);
        assert_eq!(select(&["web-2", "web-?", "api"]).unwrap().len(), 3);
        let failure = select(&["api", "nope", "x*"]).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.message, "there is no service nope, x*");
    }
}
