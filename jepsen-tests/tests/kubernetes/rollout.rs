//! What operators do on purpose costs no request: a change of every pod, and a drained node.

use anyhow::ensure;

use crate::stage::{RELEASE, on_release};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_all_peers_fails_no_request() -> anyhow::Result<()> {
    on_release("upgrade", &[], async |release| {
        let before = release.pods().await?;
        let cluster = release.cluster().await?;
        let load = release.load().await?;
        release.upgrade(&["podAnnotations.touched=once"]).await?;
        release.await_rollout().await?;
        release.await_ready(3).await?;
        let after = release.pods().await?;
        for (old, new) in before.iter().zip(&after) {
            ensure!(old.uid != new.uid, "{} was not replaced", old.name);
            ensure!(new.restarts == 0, "{new:?}");
        }
        ensure!(release.cluster().await? == cluster, "another cluster");
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("helm upgrade: {}", tally.line());
        tally.all_good()
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
        let load = release.load().await?;
        let node = release.leader().await?.node;
        let drained = async {
            let drain = [
                "drain",
                &node,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
            ];
            let selector = format!("--pod-selector=app.kubernetes.io/instance={RELEASE}");
            let drain = [&drain[..], &["--timeout=120s", &selector]].concat();
            release.kube.kubectl(&drain).await?;
            release.await_ready(3).await
        }
        .await;
        // Whatever came of it, others need the node.
        release.kube.kubectl(&["uncordon", &node]).await?;
        drained?;
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("drain of {node}: {}", tally.line());
        tally.all_good()
    })
    .await
}
