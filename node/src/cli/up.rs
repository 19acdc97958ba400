//! `raftserve up` and `raftserve update`: check first, ask, then change.

use raftserve_model::spec::{FileMount, ServiceSpec};
use serde_json::json;
use tonic::Status;

use super::args::{Format, UpArgs, UpdateArgs};
use super::confirm::confirm;
use super::connect::Servers;
use super::failure::Failure;
use super::fetch::{self, services_client};
use super::kubectl::Release;
use super::output;
use super::paint::{Paint, Tone};
use super::progress::{self, Goal};
use super::source::{self, Source};
use super::table::Table;
use crate::admin::v1;
use crate::admin::validate::{self, Beside};

/// Brings up a service.
pub(super) async fn up(args: UpArgs) -> Result<(), Failure> {
    let source = Source::read(&args.yaml)?;
    let given = source::given(&args.variables, &source)?;
    if args.dry_run {
        return dry_run(
            &source,
            given.beside,
            args.name.as_deref(),
            args.output.output,
        );
    }
    let mut servers = Servers::new(&args.target)?;
    let mut request = v1::ApplyServiceRequest {
        yaml: source.text.clone(),
        name: args.name.clone().unwrap_or_default(),
        default_name: source.default_name.clone(),
        if_exists: v1::IfExists::Unspecified.into(),
        validate_only: true,
        request_id: None,
        files: given.files_to_check(),
        envs: given.beside.envs.clone(),
        secrets: given.beside.secrets.clone(),
    };
    let planned = apply(&mut servers, &source, &request).await?;
    warn(&planned.warnings);
    let question = format!(
        "Bring up service {} with {}{}?",
        planned.name,
        replicas(planned.wanted_replicas),
        given.files_sent()
    );
    confirm(args.yes, &question, true)?;
    request.validate_only = false;
    request.files = given.beside.files;
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
        let waiting = async {
            progress::wait(&mut servers, &put.name, goal, args.waiting.timeout).await?;
            hindrance(&mut servers, &put.name).await
        };
        let hindrance = progress::until_interrupted(&put.name, goal, waiting).await?;
        put.warnings.extend(hindrance);
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
            "" => format!(
                "Service {} {done}. It has no port of its own, as others have all: reach it at the proxy port of any peer, by \
                 host name or under /{}/.\n",
                put.name, put.name
            ),
            url => format!("Service {} {done}.\nEndpoint: {url}\n", put.name),
        }
    })
}

/// Gives a service a new version.
pub(super) async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let source = Source::read(&args.yaml)?;
    let given = source::given(&args.variables, &source)?;
    if args.dry_run {
        return dry_run(&source, given.beside, Some(&args.name), args.output.output);
    }
    let mut servers = Servers::new(&args.target)?;
    let mut request = v1::UpdateServiceRequest {
        name: args.name.clone(),
        yaml: source.text.clone(),
        mode: v1::UpdateMode::Rolling.into(),
        validate_only: true,
        request_id: None,
        files: given.files_to_check(),
        envs: given.beside.envs.clone(),
        secrets: given.beside.secrets.clone(),
    };
    let planned = put_version(&mut servers, &source, &request).await?;
    warn(&planned.warnings);
    let question = format!(
        "Update service {} to version {} with {}{}?",
        planned.name,
        planned.version,
        replicas(planned.wanted_replicas),
        given.files_sent()
    );
    confirm(args.yes, &question, true)?;
    request.validate_only = false;
    request.files = given.beside.files;
    request.request_id = Some(servers.request_id().await?);
    let put = put_version(&mut servers, &source, &request).await?;
    if !args.waiting.no_wait {
        let goal = Goal::Ready {
            service_id: put.service_id,
            version: put.version,
            wanted: put.wanted_replicas,
        };
        let waiting = progress::wait(&mut servers, &put.name, goal, args.waiting.timeout);
        progress::until_interrupted(&put.name, goal, waiting).await?;
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

/// Checks a YAML as a peer would, and shows what it asks for.
fn dry_run(
    source: &Source,
    given: Beside,
    name: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let refused = |status: Status| Failure::of_sent(&status, Some(source.sent()));
    let checked = validate::check_for_any(&source.text, given);
    let mut checked = checked.map_err(refused)?;
    let own = checked.name.as_ref();
    let name = validate::choose_name(name.unwrap_or_default(), own, &source.default_name);
    let name = name.map_err(refused)?;
    let spec = &checked.spec;
    let pods = validate::pod_fields(spec);
    let pods = pods.map(|field| format!("{field} needs peers that run with --provider kubernetes"));
    checked.warnings.extend(pods);
    warn(&checked.warnings);
    let wanted = spec.provider.makes_replicas().then_some(spec.replicas);
    let policy = spec.policy.name();
    let value = json!({
        "name": name.to_string(),
        "wanted_replicas": wanted,
        "load_balancing_policy": policy,
        "files": files(spec),
        "dry_run": true,
        "warnings": checked.warnings,
    });
    output::print(format, &value, || {
        let count = wanted.map_or("the replicas that are there".to_owned(), replicas);
        let mut shown = format!(
            "Nothing is wrong with {}: service {name} with {count}, policy {policy}. No peer was asked.\n",
            source.path
        );
        let mut sent = Table::new(["FILE", "BYTES", "MODE"]);
        for file in files(spec) {
            let cells = [file.path, file.bytes.to_string(), file.mode];
            sent.row(cells.map(|cell| (cell, Tone::Plain)));
        }
        if !spec.file_mounts.is_empty() {
            shown.push_str(&sent.render(Paint::of(&std::io::stdout())));
        }
        shown
    })
}

/// A file that would be sent.
#[derive(serde::Serialize)]
struct ShownFile {
    path: String,
    bytes: usize,
    mode: String,
}

fn files(spec: &ServiceSpec) -> Vec<ShownFile> {
    let of_mount = |mount: &FileMount| -> Vec<ShownFile> {
        let shown = mount.files().map(|(path, file)| ShownFile {
            path: mount.path_of(path),
            bytes: file.bytes.len(),
            mode: format!("{:03o}", file.mode),
        });
        shown.collect()
    };
    spec.file_mounts.iter().flat_map(of_mount).collect()
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

/// What is wrong with a service though it is up, such as a port that somebody else has. Said, and returned.
async fn hindrance(servers: &mut Servers, name: &str) -> Result<Option<String>, Failure> {
    let service = fetch::service(servers, name).await?;
    let hindrance = service.map(|it| it.hindrance);
    let hindrance = hindrance.filter(|said| !said.is_empty());
    warn(hindrance.as_slice());
    Ok(hindrance)
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
