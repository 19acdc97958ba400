//! `raftserve logs`.

use super::args::LogsArgs;
use super::connect::Servers;
use super::failure::{Exit, Failure};
use super::{fetch, output};
use crate::admin::v1;
use crate::admin::v1::logs_client::LogsClient;

/// Runs the verb.
pub(super) async fn run(args: LogsArgs) -> Result<(), Failure> {
    for (given, flag) in [
        (args.controller, "--controller"),
        (args.load_balancer, "--load-balancer"),
    ] {
        if given {
            return Err(Failure::usage(format!(
                "{flag} is not built: there is no separate process of that kind"
            ))
            .remedy("`raftserve events NAME` shows what the controller does; each peer logs to its standard error"));
        }
    }
    let mut servers = Servers::new(&args.target)?;
    let replica_id = match args.replica_id {
        Some(replica_id) => replica_id,
        None => only_replica(&mut servers, &args.name).await?,
    };
    let request = v1::StreamLogsRequest {
        service_name: args.name.clone(),
        replica_id,
        tail_lines: args.tail,
        follow: !args.no_follow && args.tail.is_none(),
    };
    let mut pieces = servers
        .ask(|channel| {
            let request = request.clone();
            async move { LogsClient::new(channel).stream(request).await }
        })
        .await?;
    loop {
        match pieces.message().await {
            Ok(Some(piece)) => output::write(&piece.data)?,
            Ok(None) => return Ok(()),
            Err(status) => {
                return Err(Failure::new(
                    Exit::Unavailable,
                    format!("the output broke off: {}", status.message()),
                )
                .remedy("ask again, with --tail to see only its end"));
            }
        }
    }
}

async fn only_replica(servers: &mut Servers, name: &str) -> Result<u32, Failure> {
    let replicas = fetch::replicas(servers, name, false).await?;
    match replicas.as_slice() {
        [only] => Ok(only.id),
        [] => Err(Failure::new(
            Exit::NotFound,
            format!("service {name} has no replica"),
        )),
        several => {
            let ids: Vec<_> = several.iter().map(|one| one.id.to_string()).collect();
            Err(
                Failure::usage(format!("service {name} has several replicas: which one?"))
                    .remedy(format!("give one of {} as REPLICA_ID", ids.join(", "))),
            )
        }
    }
}
