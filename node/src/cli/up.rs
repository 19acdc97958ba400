//! `raftserve up` and `raftserve update`: check first, ask, then change.

use serde_json::json;

use super::args::{UpArgs, UpdateArgs};
use super::confirm::confirm;
use super::connect::Servers;
use super::failure::Failure;
use super::fetch::services_client;
use super::kubectl::Release;
use super::output;
use super::progress::{self, Goal};
use super::source::{Given, Source};
use crate::admin::v1;

/// Brings up a service.
pub(super) async fn up(args: UpArgs) -> Result<(), Failure> {
    let source = Source::read(&args.yaml)?;
    let given = Given::read(&args.variables)?;
    let mut servers = Servers::new(&args.target)?;
    let mut request = v1::ApplyServiceRequest {
        yaml: source.text.clone(),
        name: args.name.clone().unwrap_or_default(),
        default_name: source.default_name.clone(),
        if_exists: v1::IfExists::Unspecified.into(),
        validate_only: true,
        request_id: None,
        envs: given.envs,
        secrets: given.secrets,
    };
    let planned = apply(&mut servers, &source, &request).await?;
    warn(&planned.warnings);
    let question = format!(
        "Bring up service {} with {}?",
        planned.name,
        replicas(planned.wanted_replicas)
    );
    confirm(args.yes, &question, true)?;
    request.validate_only = false;
    // What was shown is what is done, whatever the YAML's name rules say next.
    request.name = planned.name;
    request.request_id = Some(servers.request_id().await?);
    let mut put = apply(&mut servers, &source, &request).await?;
    let entrance = servers.release().and_then(Release::entrance);
    let outside = entrance.and_then(|entrance| entrance.url(&put.name, &put.endpoint));
    put.endpoint = outside.unwrap_or(put.endpoint);
    if !args.waiting.no_wait {
        let goal = Goal::Ready {
            service_id: put.service_id,
            version: put.version,
            wanted: put.wanted_replicas,
        };
        progress::wait(&mut servers, &put.name, goal, args.waiting.timeout).await?;
    }
    let value = json!({
        "name": put.name,
        "version": put.version,
        "endpoint": (!put.endpoint.is_empty()).then_some(&put.endpoint),
        "log_index": put.log_index,
        "waited": !args.waiting.no_wait,
        "warnings": put.warnings,
    });
    output::print(args.output.output, &value, || {
        let done = match args.waiting.no_wait {
            true => "is coming up",
            false => "is up",
        };
        match put.endpoint.as_str() {
            "" => format!("Service {} {done}.\n", put.name),
            url => format!("Service {} {done}.\nEndpoint: {url}\n", put.name),
        }
    })
}

/// Gives a service a new version.
pub(super) async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let source = Source::read(&args.yaml)?;
    let given = Given::read(&args.variables)?;
    let mut servers = Servers::new(&args.target)?;
    let mut request = v1::UpdateServiceRequest {
        name: args.name.clone(),
        yaml: source.text.clone(),
        mode: v1::UpdateMode::Rolling.into(),
        validate_only: true,
        request_id: None,
        envs: given.envs,
        secrets: given.secrets,
    };
    let planned = put_version(&mut servers, &source, &request).await?;
    warn(&planned.warnings);
    let question = format!(
        "Update service {} to version {} with {}?",
        planned.name,
        planned.version,
        replicas(planned.wanted_replicas)
    );
    confirm(args.yes, &question, true)?;
    request.validate_only = false;
    request.request_id = Some(servers.request_id().await?);
    let put = put_version(&mut servers, &source, &request).await?;
    if !args.waiting.no_wait {
        let goal = Goal::Ready {
            service_id: put.service_id,
            version: put.version,
            wanted: put.wanted_replicas,
        };
        progress::wait(&mut servers, &put.name, goal, args.waiting.timeout).await?;
    }
    let value = json!({
        "name": put.name,
        "version": put.version,
        "log_index": put.log_index,
        "waited": !args.waiting.no_wait,
        "warnings": put.warnings,
    });
    output::print(args.output.output, &value, || {
        let done = match args.waiting.no_wait {
            true => "is being updated to",
            false => "is at",
        };
        format!("Service {} {done} version {}.\n", put.name, put.version)
    })
}

async fn apply(
    servers: &mut Servers,
    source: &Source,
    request: &v1::ApplyServiceRequest,
) -> Result<v1::ApplyServiceResponse, Failure> {
    servers
        .call(|channel| {
            let request = request.clone();
            async move { services_client(channel).apply(request).await }
        })
        .await
        .map_err(|status| Failure::of_sent(&status, Some(source.sent())))
}

async fn put_version(
    servers: &mut Servers,
    source: &Source,
    request: &v1::UpdateServiceRequest,
) -> Result<v1::UpdateServiceResponse, Failure> {
    servers
        .call(|channel| {
            let request = request.clone();
            async move { services_client(channel).update(request).await }
        })
        .await
        .map_err(|status| Failure::of_sent(&status, Some(source.sent())))
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

fn replicas(count: u32) -> String {
    match count {
        1 => "1 replica".to_owned(),
        many => format!("{many} replicas"),
    }
}
