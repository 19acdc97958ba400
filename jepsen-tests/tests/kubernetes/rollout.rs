//! What operators do on purpose costs no request: a change of every pod, and a drained node.

use anyhow::ensure;

use crate::served::{PODS, Served};
use crate::stage::{RELEASE, Release, on_release};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_all_peers_fails_no_request() -> anyhow::Result<()> {
    on_release("upgrade", &[], async |release| {
        let cluster = release.cluster().await?;
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let mut upgrades = 0;
        while upgrades == 0 || load.progress().done < release.kube.requests {
            upgrades += 1;
            let before = release.pods().await?;
            let touched = format!("podAnnotations.touched=at-{upgrades}");
            release.upgrade(&[&touched]).await?;
            release.await_rollout().await?;
            release.await_ready(3).await?;
            let after = release.pods().await?;
            for (old, new) in before.iter().zip(&after) {
                ensure!(old.uid != new.uid, "{} was not replaced", old.name);
                ensure!(new.restarts == 0, "{new:?}");
            }
        }
        ensure!(release.cluster().await? == cluster, "another cluster");
        release.namespace.helm(&["test", RELEASE]).await?;
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("helm upgrade, {upgrades} times: {}", tally.line());
        tally.all_good()?;
        served.finish(0).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_fails_no_request() -> anyhow::Result<()> {
    on_release("drain", &[], async |release| {
        if !release.kube.disruptive {
            eprintln!("skipped: nodes are not to be drained here");
            return Ok(());
        }
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let (mut moved, mut rounds) = (0, 0);
        let nodes = release.kube.nodes().await?;
        for (place, (node, _)) in nodes.iter().enumerate().cycle() {
            if place == 0 && rounds > 0 && load.progress().done >= release.kube.requests {
                break;
            }
            rounds += usize::from(place == 0);
            let replicas = release.namespace.pods(PODS).await?;
            moved += replicas.iter().filter(|pod| pod.node == *node).count();
            let drained = drain(&release, &served, node).await;
            // Whatever came of it, others need the node.
            release.kube.kubectl(&["uncordon", node]).await?;
            drained?;
            eprintln!("{node} drained after {:?}", load.progress().elapsed);
        }
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("drain of each node, {rounds} times: {}", tally.line());
        tally.all_good()?;
        served.finish(moved).await
    })
    .await
}

/// Drains a node of all that is ours: peers, and replicas, which belong to no controller that `kubectl` knows.
async fn drain(release: &Release, served: &Served, node: &str) -> anyhow::Result<()> {
    let peers = format!("--pod-selector=app.kubernetes.io/instance={RELEASE}");
    let replicas = format!("--pod-selector={PODS}");
    for selector in [&[&*peers][..], &[&*replicas, "--force"]] {
        let drain = [
            "drain",
            node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=120s",
            // What earlier cases have left to end by itself.
            "--skip-wait-for-delete-timeout=1",
        ];
        release.kube.kubectl(&[&drain, selector].concat()).await?;
    }
    release.await_ready(3).await?;
    served.await_ready().await.map(drop)
}
