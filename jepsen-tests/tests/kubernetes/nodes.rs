//! A node that loses its power: its pods say nothing, its kubelet neither, and until Kubernetes notices, a third of all
//! connections would go there. The leader takes the peer out of the endpoints long before, and replaces its replicas. The last
//! one does not come back, and its peer's volume is lost with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::kube::watched::Told;
use jepsen_tests::kube::{Lab, Pod};
use jepsen_tests::source_ports::SourcePorts;
use jepsen_tests::steady::Tally;
use jepsen_tests::wait;

use crate::kills::{direct, retrying};
use crate::served::{PODS, Served};
use crate::stage::{PATIENCE, RATE, RELEASE, Release, on_release, peers_only};

/// How long after its death requests may still be sent to a peer.
const WINDOW_MAX: Duration = Duration::from_secs(2);

/// How soon after the API server it is told that a replica's node is lost.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// What the API server says of a pod whose node is lost, and what a peer says of its replica.
const LOST: (&str, &str) = ("DeletionByTaintManager", "its node is lost");

/// How long is looked on: beyond the time after which Kubernetes itself notices.
const LOOK_ON: Duration = Duration::from_secs(25);

/// With fewer requests than that asked for, two nodes die, and not all.
const EACH_NODE: usize = 20_000;

/// A service that is alone answers everything; beside this one, peers themselves answer what is for no service.
const ANOTHER_SERVICE: &str = r#"
name: another
service: {readiness_probe: {path: /}}
_metadata: {raftserve: {provider: {static: {addresses: ["127.0.0.1:9"]}}}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_gets_no_requests_after_two_seconds_and_its_replicas_are_replaced()
-> anyhow::Result<()> {
    on_release("node", &[], async |release| {
        let Some(lab) = release.kube.lab.clone().filter(|_| release.kube.disruptive) else {
            eprintln!("skipped: nobody says how nodes are killed here");
            return Ok(());
        };
        let served = release.serve().await?;
        served.admin().await?.apply(ANOTHER_SERVICE).await?;
        // A node's memory of connections to the dead one is not the Service.
        let ports = Arc::new(SourcePorts::default());
        let nodes = release.kube.nodes().await?.into_iter();
        let mut left: Vec<String> = nodes.map(|(name, _)| name).collect();
        let mut replaced = 0;
        let kills = match release.kube.requests < EACH_NODE {
            true => 2,
            false => left.len(),
        };
        let requests = release.kube.requests.div_ceil(kills);
        for round in 0..kills {
            let replicas = release.namespace.pods(PODS).await?;
            let carries = |node: &String| {
                let there = replicas.iter().filter(|it| it.node == *node && !it.going);
                there.count()
            };
            // The leader's first; then one that carries a replica, if there is one that has not died yet.
            let victim = match round {
                0 => release.leader().await?.node,
                _ => {
                    let most = left.iter().max_by_key(|node| carries(node));
                    most.context("no node")?.clone()
                }
            };
            left.retain(|node| *node != victim);
            let lost = carries(&victim);
            eprintln!("{victim} is killed, with {lost} replicas");
            let end = match round + 1 < kills {
                true => End::Return,
                false => End::Loss,
            };
            kill(&release, &served, &lab, &victim, &ports, requests, end).await?;
            replaced += lost;
        }
        ensure!(replaced > 0, "no dead node carried a replica");
        served.finish(replaced).await
    })
    .await
}

/// What becomes of a dead node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It comes back with all that is on it.
    Return,
    /// Its peers' volumes are lost with it. What comes back, for others, is a new node.
    Loss,
}

async fn kill(
    release: &Release,
    served: &Served,
    lab: &Lab,
    victim: &str,
    ports: &Arc<SourcePorts>,
    requests: usize,
    end: End,
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
    let pods = release.pods().await?;
    let at_peers = retrying(served.requests(1)).start(direct(&pods));
    load.reaches(|progress| progress.done >= RATE as usize)
        .await;
    let replicas = release.namespace.pods(PODS).await?;
    let mut known = match replicas.iter().any(|it| it.node == victim && !it.going) {
        true => Some(release.namespace.watch_for(LOST.0)?),
        false => None,
    };
    let before = load.progress().elapsed;
    if let Err(error) = lab.kill(number).await {
        lab.start(number).await?;
        return Err(error);
    }
    let killed = load.progress().elapsed;
    // Where replicas die with a peer, a request may have met both, one after the other. By now, clients have learned that the
    // peer is gone.
    let (dead, alive): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| pod.node == victim);
    at_peers.aim(direct(&alive));
    let told = async {
        match (&mut known, alive.first()) {
            (Some(known), Some(witness)) => told(served, witness, known).await,
            _ => Ok(()),
        }
    };
    let looked_on = load.reaches(|progress| progress.elapsed >= killed + LOOK_ON);
    let (told, _) = tokio::join!(told, looked_on);
    // With as many pods as there were, or Kubernetes has not told yet that the node is dead.
    let replaced = served.await_replaced(victim).await;
    eprintln!("replaced {:?} after", load.progress().elapsed - killed);
    let through_service = load.finish(0).await;
    // The node stays dead for as long as it takes.
    let at_peers = at_peers.finish(requests).await;
    let healed = match end {
        End::Return => Ok(()),
        End::Loss => lose(release, served, victim, &dead).await,
    };
    // Whatever came of it, others need the node.
    lab.start(number).await?;
    let ready = format!("node/{victim}");
    let ready = ["wait", &ready, "--for=condition=Ready", "--timeout=60s"];
    wait::until("the node", PATIENCE, async || {
        release.kube.kubectl(&ready).await
    })
    .await?;
    release.await_ready(3).await?;
    healed?;
    told?;
    replaced?;
    window(victim, &through_service?, before, killed)?;
    let at_peers = at_peers?;
    // A peer that lives may have sent one to a replica that died.
    let dead = direct(&dead);
    let elsewhere = at_peers.saved.iter();
    let elsewhere = elsewhere.filter(|missed| missed.tries.iter().any(|it| !dead.contains(&it.at)));
    let elsewhere = elsewhere.count();
    eprintln!(
        "{victim} killed, at the peers: {}, {elsewhere} of them at one that lived",
        at_peers.line()
    );
    at_peers.all_good()
}

/// A peer that lives tells why a replica does not run, soon after the API server does.
async fn told(served: &Served, witness: &Pod, known: &mut Told) -> anyhow::Result<()> {
    let told = served.await_told(witness, LOST.1).await?;
    let after = known.until(told).await?;
    eprintln!("a lost node is told {after:?} after the API server tells it");
    ensure!(after <= TOLD_WITHIN, "too late");
    Ok(())
}

/// The node will not come back, and nor will what was on it: its peer's place is taken by another one, elsewhere.
async fn lose(
    release: &Release,
    served: &Served,
    victim: &str,
    dead: &[Pod],
) -> anyhow::Result<()> {
    let ids = async || {
        let members = wait::until("the members", PATIENCE, async || {
            Ok(served.admin().await?.members().await?)
        })
        .await?;
        anyhow::Ok(members.iter().map(|it| it.id).collect::<BTreeSet<u64>>())
    };
    let before = ids().await?;
    served.keep("before").await?;
    release.kube.kubectl(&["delete", "node", victim]).await?;
    for pod in dead {
        let claim = format!("data-{}", pod.name);
        let delete = ["delete", "pvc", &claim, "--wait=false"];
        release.namespace.kubectl(&delete).await?;
        let delete = ["delete", "pod", &pod.name, "--grace-period=0", "--force"];
        release.namespace.kubectl(&delete).await?;
    }
    for pod in dead {
        release.await_successor(pod).await?;
    }
    release.await_members(3, 0).await?;
    let after = ids().await?;
    let kept = before.intersection(&after).count();
    ensure!(kept + dead.len() == 3, "{before:?}, then {after:?}");
    served.ensure_kept("before").await
}

/// Looks at what a dead peer has cost those who ask the Service.
fn window(victim: &str, tally: &Tally, before: Duration, killed: Duration) -> anyhow::Result<()> {
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
