//! A cluster is founded once. Volumes that were lost are not mistaken for a first install, and those that are there are
//! enough, whatever else is gone.

use anyhow::ensure;
use jepsen_tests::wait;

use crate::stage::{PATIENCE, PEERS, RELEASE, on_release_abreast};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_lost_all_volumes_found_no_second_cluster() -> anyhow::Result<()> {
    on_release_abreast("founded", &[], async |release| {
        if !release.kube.disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        let cluster = release.cluster().await?;
        ensure!(cluster.len() == 32, "{cluster}");
        release.scale(0).await?;
        release.await_ready(0).await?;
        let claims = ["delete", "pvc", "-l", PEERS, "--wait"];
        release.namespace.kubectl(&claims).await?;
        release.scale(3).await?;
        let first = format!("{RELEASE}-0");
        wait::until("a refusal", PATIENCE, async || {
            let logs = release.namespace.kubectl(&["logs", &first]).await?;
            let previous = release
                .namespace
                .kubectl(&["logs", &first, "--previous"])
                .await;
            let said = logs + &previous.unwrap_or_default();
            ensure!(
                said.contains(&cluster) && said.contains("cluster recover"),
                "{said}"
            );
            Ok(())
        })
        .await?;
        ensure!(
            release.cluster().await? == cluster,
            "the record was changed"
        );
        ensure!(release.pods().await?.iter().all(|pod| !pod.ready));
        // Somebody who wants none of it back says so.
        let record = format!("{RELEASE}-cluster");
        release
            .namespace
            .kubectl(&["delete", "configmap", &record])
            .await?;
        release
            .namespace
            .kubectl(&["delete", "pod", "-l", PEERS])
            .await?;
        release.await_ready(3).await?;
        ensure!(
            release.cluster().await? != cluster,
            "the same cluster without its volumes"
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_comes_back_to_its_volumes_is_the_same_cluster() -> anyhow::Result<()> {
    on_release_abreast("return", &[], async |release| {
        let cluster = release.cluster().await?;
        release
            .namespace
            .helm(&["uninstall", RELEASE, "--wait"])
            .await?;
        // As on another Kubernetes cluster, where nothing was written down.
        let record = format!("{RELEASE}-cluster");
        release
            .namespace
            .kubectl(&["delete", "configmap", &record])
            .await?;
        release.install(&[]).await?;
        release.await_members(3, 0).await?;
        let record = wait::until("the record", PATIENCE, async || release.cluster().await).await?;
        ensure!(record == cluster, "{record} instead of {cluster}");
        Ok(())
    })
    .await
}
