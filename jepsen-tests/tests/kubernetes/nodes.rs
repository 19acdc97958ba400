//! A node that loses its power: its pods say nothing, its kubelet neither, and until Kubernetes notices, a third of all
//! connections would go there. The leader takes the peer out of the endpoints long before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::kube::Lab;
use jepsen_tests::source_ports::SourcePorts;

use crate::stage::{RATE, RELEASE, Release, on_release, peers_only};

/// How long after its death requests may still be sent to a peer.
const WINDOW_MAX: Duration = Duration::from_secs(2);

/// How long is looked on: beyond the time after which Kubernetes itself notices.
const LOOK_ON: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_gets_no_requests_after_two_seconds() -> anyhow::Result<()> {
    on_release("node", &[], async |release| {
        let Some(lab) = release.kube.lab.clone().filter(|_| release.kube.disruptive) else {
            eprintln!("skipped: nobody says how nodes are killed here");
            return Ok(());
        };
        // A node's memory of connections to the dead one is not the Service.
        let ports = Arc::new(SourcePorts::default());
        // The leader's first; then each of those that have not been killed.
        let mut victims = vec![release.leader().await?.node];
        let nodes = release.kube.nodes().await?.into_iter();
        let others = nodes
            .map(|(name, _)| name)
            .filter(|name| *name != victims[0]);
        victims.extend(others.collect::<Vec<_>>());
        for victim in victims {
            kill(&release, &lab, &victim, &ports).await?;
        }
        Ok(())
    })
    .await
}

async fn kill(
    release: &Release,
    lab: &Lab,
    victim: &str,
    ports: &Arc<SourcePorts>,
) -> anyhow::Result<()> {
    let nodes = release.kube.nodes().await?;
    let port = release.namespace.node_port(RELEASE, "http").await?;
    let others = nodes.iter().filter(|(name, _)| name != victim);
    let entrances = others
        .map(|(_, address)| SocketAddr::new(*address, port))
        .collect();
    let number = victim.trim_start_matches(|it: char| !it.is_ascii_digit());
    let mut load = peers_only();
    // Connections of their own, so that each goes wherever the Service sends it.
    load.keep = false;
    load.ports = Some(Arc::clone(ports));
    let load = load.start(entrances);
    load.reaches(|progress| progress.done >= RATE as usize)
        .await;
    let before = load.progress().elapsed;
    lab.node("kill", number).await?;
    let killed = load.progress().elapsed;
    load.reaches(|progress| progress.elapsed >= killed + LOOK_ON)
        .await;
    let looked_on = load.finish(0).await;
    // Whatever came of it, others need the node.
    lab.node("up", number).await?;
    let tally = looked_on?;
    release.await_ready(3).await?;

    let sent = tally.missed.iter().map(|missed| missed.at);
    // The peer dies at some point while the node is killed.
    let first = sent.clone().min().context("no request met the dead node")?;
    let window = sent.max().unwrap_or(first).saturating_sub(first);
    eprintln!("{victim} killed: {}; sent within {window:?}", tally.line());
    for missed in &tally.missed {
        if missed.at > first + WINDOW_MAX {
            eprintln!("late: {missed:?}");
        }
    }
    let meanwhile = before.saturating_sub(WINDOW_MAX / 10)..=killed;
    ensure!(meanwhile.contains(&first), "one failed without a kill");
    ensure!(
        tally.bad == tally.missed.len(),
        "more failures than are remembered"
    );
    ensure!(window <= WINDOW_MAX, "the window is too long");
    Ok(())
}
