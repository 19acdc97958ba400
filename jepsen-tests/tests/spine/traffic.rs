//! The walk-through: SkyServe's own example, served by three peers.

use std::path::Path;

use anyhow::{Context, ensure};
use jepsen_tests::check::{clean, every_request_answered, no_failure_through_live_peers};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::http;
use jepsen_tests::load::Load;

use crate::stage::{self, SETTLE, Share};

/// Requests spread over the three peers.
const REQUESTS: usize = 2_000;

const NAME: &str = "http-service";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_requests_over_three_peers_are_all_answered() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        let yaml = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/http_service.yaml");
        let yaml = yaml.to_str().context("a path in UTF-8")?;
        let up = ["up", yaml, "-n", NAME, "-y", "--timeout", "60s"];
        let said = cluster.cli(0).json(&up).await?;
        ensure!(said["name"] == NAME && said["version"] == 1, "{said}");
        cluster.settled(NAME, SETTLE).await?;

        let mut load = Load::new(cluster.targets(), "/");
        load.steps = Some(REQUESTS);
        let history = load.run().await?;
        ensure!(history.len() == REQUESTS, "{} requests", history.len());
        clean("requests", &every_request_answered(&history))?;
        clean("peers", &no_failure_through_live_peers(&history, &[]))?;
        for peer in 0..3 {
            let first = history.iter().filter(|it| it.attempts[0].peer == peer);
            let count = first.count();
            ensure!(count > REQUESTS / 4, "{count} requests through peer {peer}");
        }
        every_address_answers(&cluster).await?;

        let down = cluster.cli(2).run(&["down", NAME, "-y"]).await?;
        ensure!(down.code == Some(0), "{down:?}");
        cluster.gone(NAME, SETTLE).await?;
        let answer = http::get(cluster.peer(1).setup.ports.proxy, "/").await;
        ensure!(
            matches!(&answer, Ok(reply) if reply.status == 404 || reply.status == 503),
            "{answer:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_port_that_somebody_else_has_is_told() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        let port = cluster.peer(0).setup.ports.service_base;
        let _foreign = std::net::TcpListener::bind(("127.0.0.1", port))?;
        let yaml = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/http_service.yaml");
        let yaml = yaml.to_str().context("a path in UTF-8")?;
        let up = ["up", yaml, "-n", NAME, "-y", "--timeout", "60s"];
        let ran = cluster.cli(0).run(&up).await?;
        let said = format!("its own port {port} cannot be had at this peer");
        ensure!(ran.code == Some(0) && ran.stderr.contains(&said), "{ran:?}");
        let checked = cluster.cli(0).run(&["check"]).await?;
        let line = format!("service port  {NAME}: {said}");
        ensure!(checked.stdout.contains(&line), "{checked:?}");
        let elsewhere = cluster.admin(1).service(NAME).await?;
        ensure!(
            elsewhere.is_some_and(|it| it.hindrance.is_empty()),
            "peer 1 has its port"
        );
        cluster.pass();
        Ok(())
    })
    .await
}

/// By prefix, and at the service's own port, as `status --endpoint` prints it on each peer.
async fn every_address_answers(cluster: &Cluster) -> anyhow::Result<()> {
    for peer in 0..3 {
        let prefix = format!("/{NAME}/");
        let reply = http::get(cluster.peer(peer).setup.ports.proxy, &prefix).await;
        ensure!(
            matches!(&reply, Ok(reply) if reply.status == 200),
            "{reply:?}"
        );
        let printed = cluster
            .cli(peer)
            .run(&["status", NAME, "--endpoint"])
            .await?;
        let address = printed.stdout.trim().strip_prefix("http://");
        let address = address
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("{printed:?}"))?;
        let reply = http::get(address, "/").await;
        ensure!(
            matches!(&reply, Ok(reply) if reply.status == 200),
            "{address}: {reply:?}"
        );
    }
    Ok(())
}
