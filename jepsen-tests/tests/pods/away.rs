//! The API server goes away and comes back.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::kube::Namespace;
use jepsen_tests::wait;

use crate::door::{Door, Way};
use crate::stage::{SETTLE, any_admin, ask, on_namespace, peers_by, ready, service, uids};

/// How soon it is told that what is sent to the API server is lost: once probes of a quiet connection have stayed without an
/// answer for some 13 s.
const LOSS_TOLD_WITHIN: Duration = Duration::from_secs(16);

/// A peer that gets to the API server through a door, and its one replica, which is ready. `folder` is to have its access.
async fn one_by_a_door(
    namespace: &Namespace,
    folder: &Path,
) -> anyhow::Result<(Door, Cluster, BTreeSet<u32>)> {
    let config = folder.join("kubeconfig");
    let door = Door::build(namespace, &config).await?;
    let cluster = peers_by(namespace, 1, &config).await?;
    cluster.admin(0).apply(&service("web", 1)).await?;
    let before = ready(&cluster, 1).await?;
    Ok((door, cluster, before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_status_says_so_and_traffic_goes_on() -> anyhow::Result<()> {
    on_namespace("away", async |namespace| {
        let folder = tempfile::tempdir()?;
        let (door, cluster, before) = one_by_a_door(namespace, folder.path()).await?;

        door.set(Way::Shut);
        await_told(&cluster).await?;
        cluster.admin(0).update("web", &service("web", 2)).await?;
        ensure!(ask(&cluster, 0).await? == "1", "traffic goes on");

        door.set(Way::Open);
        let after = ready(&cluster, 2).await?;
        ensure!(after.is_superset(&before), "{after:?} after {before:?}");
        ensure!(hindrance(&cluster).await?.is_empty(), "it is still told");
        cluster.pass();
        Ok(())
    })
    .await
}

/// What stands in the way of the service, as its status tells.
async fn hindrance(cluster: &Cluster) -> anyhow::Result<String> {
    let service = cluster.admin(0).service("web").await?;
    Ok(service.context("no service")?.hindrance)
}

async fn await_told(cluster: &Cluster) -> anyhow::Result<()> {
    wait::until("word of it", SETTLE, async || {
        let told = hindrance(cluster).await?;
        ensure!(told.contains("does not answer"), "{told:?}");
        // Whatever is told, nobody's request fails.
        ask(cluster, 0).await.map(drop)
    })
    .await
}

/// Nothing tells that the path is gone: connections stand, and no packet comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_packets_to_the_api_server_are_lost_is_noticed_and_told_soon() -> anyhow::Result<()> {
    on_namespace("away-lost", async |namespace| {
        let folder = tempfile::tempdir()?;
        let (door, cluster, before) = one_by_a_door(namespace, folder.path()).await?;

        let lost = Instant::now();
        door.set(Way::Lost);
        await_told(&cluster).await?;
        let told = lost.elapsed();
        ensure!(told <= LOSS_TOLD_WITHIN, "told after {told:?}");
        cluster.admin(0).update("web", &service("web", 2)).await?;
        ensure!(ask(&cluster, 0).await? == "1", "traffic goes on");

        door.set(Way::Open);
        let found = Instant::now();
        let after = ready(&cluster, 2).await?;
        eprintln!(
            "told after {told:.1?}, and mended after {:.1?}",
            found.elapsed()
        );
        ensure!(after.is_superset(&before), "{after:?} after {before:?}");
        wait::until("no word of it any more", SETTLE, async || {
            let told = hindrance(&cluster).await?;
            ensure!(told.is_empty(), "{told}");
            Ok(())
        })
        .await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Where replicas of `service` are, if exactly `count` are ready and no other one is on record.
async fn serving(
    admin: &jepsen_tests::admin::Admin,
    service: &str,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let all = admin.replicas().await?;
    let own: Vec<_> = all.iter().filter(|it| it.service_name == service).collect();
    let ready = own.iter().all(|it| it.status() == v1::ReplicaStatus::Ready);
    ensure!(own.len() == count && ready, "{own:?}");
    Ok(own.iter().map(|it| it.endpoint.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_without_the_api_server_probes_and_follows_and_stops_nothing()
-> anyhow::Result<()> {
    on_namespace("away-led", async |namespace| {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("kubeconfig");
        let door = Door::build(namespace, &config).await?;
        let mut cluster = peers_by(namespace, 3, &config).await?;
        let leader = cluster.leader().await?;
        cluster.admin(leader).apply(&service("web", 2)).await?;
        let before = ready(&cluster, 2).await?;
        let pods = uids(namespace).await?;

        door.set(Way::Shut);
        cluster.kill(leader)?;
        cluster.leader().await?;
        let admin = any_admin(&cluster)?;
        let endpoints = serving(&admin, "web", 2).await?;
        let there = endpoints[0]
            .strip_prefix("http://")
            .context("over HTTP")?
            .to_owned();
        let plain = format!(
            "name: plain\nservice: {{}}\n\
             _metadata: {{raftserve: {{provider: {{static: {{addresses: [\"{there}\"]}}}}}}}}\n"
        );
        admin.apply(&plain).await?;
        wait::until("a static service", SETTLE, async || {
            serving(&admin, "plain", 1).await.map(drop)
        })
        .await?;
        serving(&admin, "web", 2).await?;
        ensure!(uids(namespace).await? == pods, "other pods");

        // Of one that is gone, probes tell. It is missed only once the new leader sees what exists.
        let (victim, _) = pods.first().context("two pods")?;
        let kill = ["delete", "pod", victim, "--grace-period=0", "--force"];
        namespace.kubectl(&kill).await?;
        wait::until("word of the dead replica", SETTLE, async || {
            let all = admin.replicas().await?;
            let web = || all.iter().filter(|it| it.service_name == "web");
            let dead = web().any(|it| it.status() == v1::ReplicaStatus::NotReady);
            ensure!(web().count() == 2 && dead, "{all:?}");
            Ok(())
        })
        .await?;
        admin.delete("plain").await?;

        door.set(Way::Open);
        let after = wait::until("a replacement", SETTLE, async || {
            let after = ready(&cluster, 2).await?;
            ensure!(after != before, "still {before:?}");
            Ok(after)
        })
        .await?;
        ensure!(
            after.intersection(&before).count() == 1,
            "{after:?} after {before:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}
