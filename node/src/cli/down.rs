//! `raftserve down` and `raftserve terminate-replica`.

use serde_json::json;

use super::args::{DownArgs, TerminateArgs};
use super::confirm::confirm;
use super::connect::Servers;
use super::failure::{Exit, Failure};
use super::progress::{self, Goal};
use super::{fetch, output};
use crate::admin::v1;

/// Takes services down.
pub(super) async fn down(args: DownArgs) -> Result<(), Failure> {
    if let Some(replica_id) = args.replica_id {
        let [name] = args.names.as_slice() else {
            return Err(Failure::usage("--replica-id needs exactly one service"));
        };
        return terminate(TerminateArgs {
            name: name.clone(),
            replica_id,
            purge: args.purge,
            yes: args.yes,
            output: args.output,
            target: args.target,
        })
        .await;
    }
    let mut servers = Servers::new(&args.target)?;
    let all = fetch::services(&mut servers, false).await?;
    let services = fetch::select(all, &args.names)?;
    if services.is_empty() {
        return print(&args, "No services to take down.\n".to_owned(), &[]);
    }
    let names: Vec<&str> = services.iter().map(|one| one.name.as_str()).collect();
    let (what, listed) = (plural(names.len()), names.join(", "));
    let question = match args.purge {
        false => format!("Take down {what} {listed}?"),
        true => format!("Forget {what} {listed} at once, whatever of it still runs?"),
    };
    confirm(args.yes, &question, true)?;
    let mut id = servers.request_id().await?;
    for name in &names {
        let request = v1::DeleteServiceRequest {
            name: (*name).to_owned(),
            purge: args.purge,
            request_id: Some(id),
        };
        let deleted = servers
            .ask(|channel| {
                let request = request.clone();
                async move { fetch::services_client(channel).delete(request).await }
            })
            .await;
        match deleted {
            // Another may have been quicker.
            Err(failure) if failure.exit == Exit::NotFound => {}
            other => drop(other?),
        }
        id.acknowledged = id.sequence;
        id.sequence += 1;
    }
    if args.waiting.no_wait || args.purge {
        return print(&args, format!("Going down: {listed}\n"), &names);
    }
    for service in &services {
        let goal = Goal::Gone {
            service_id: service.id,
        };
        let waiting = progress::wait(&mut servers, &service.name, goal, args.waiting.timeout);
        progress::until_interrupted(&service.name, goal, waiting).await?;
    }
    print(&args, format!("Down: {listed}\n"), &names)
}

fn print(args: &DownArgs, line: String, names: &[&str]) -> Result<(), Failure> {
    let waited = !args.waiting.no_wait && !args.purge;
    let value = json!({ "services": names, "purged": args.purge, "waited": waited });
    output::print(args.output.output, &value, || line)
}

fn plural(count: usize) -> &'static str {
    match count {
        1 => "service",
        _ => "services",
    }
}

/// Stops one replica.
pub(super) async fn terminate(args: TerminateArgs) -> Result<(), Failure> {
    let (name, replica_id) = (&args.name, args.replica_id);
    let question = format!("Stop replica {replica_id} of service {name}?");
    confirm(args.yes, &question, true)?;
    let mut servers = Servers::new(&args.target)?;
    let request = v1::TerminateReplicaRequest {
        service_name: name.clone(),
        replica_id,
        purge: args.purge,
        request_id: Some(servers.request_id().await?),
    };
    let done = servers
        .ask(|channel| {
            let request = request.clone();
            async move { fetch::replicas_client(channel).terminate(request).await }
        })
        .await?;
    let value = json!({ "service": name, "replica_id": replica_id, "log_index": done.log_index });
    output::print(args.output.output, &value, || {
        format!("Stopping replica {replica_id} of service {name}.\n")
    })
}
