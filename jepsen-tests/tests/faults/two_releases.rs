//! Peers of two releases, side by side and one after the other.

use std::path::Path;

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::{binary, wait};

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// Stops a peer, and starts it with another program.
async fn go_over(cluster: &mut Cluster, index: usize, program: &Path) -> anyhow::Result<()> {
    let ended = cluster.peer_mut(index).stop(PATIENCE).await?;
    ensure!(ended.success(), "peer {index}: {ended}");
    program.clone_into(&mut cluster.peer_mut(index).setup.binary);
    cluster.note(&format!("peer {index} goes over to {}", program.display()));
    cluster.restart(index).await
}

/// The cluster's version, and the newest that a peer supports.
async fn versions(cluster: &Cluster) -> anyhow::Result<(u32, u32)> {
    let status = cluster.admin(0).status().await?;
    let newest = status.releases.iter().map(|release| release.newest).max();
    Ok((status.cluster_version, newest.context("no release")?))
}

/// Runs a command until it has succeeded: a peer that came a moment ago may not have been heard yet.
async fn succeed(cluster: &Cluster, command: &[&str]) -> anyhow::Result<()> {
    wait::until("a command's success", PATIENCE, async || {
        let ran = cluster.cli(0).run(command).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_go_over_to_another_release_and_back_until_that_is_final() -> anyhow::Result<()> {
    let Some(before) = binary::raftserve_before()? else {
        return Ok(());
    };
    let after = binary::raftserve()?;
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::prepare(&Options::default())?;
        for index in 0..cluster.size() {
            before.clone_into(&mut cluster.peer_mut(index).setup.binary);
        }
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;
        let (old, _) = versions(&cluster).await?;
        let finalize = ["cluster", "finalize", "-y"];
        let compare = ["cluster", "compare"];

        for (round, program) in [&after, &before, &after].into_iter().enumerate() {
            for index in 0..cluster.size() {
                go_over(&mut cluster, index, program).await?;
                running.progress(SOME).await?;
                let (version, newest) = versions(&cluster).await?;
                ensure!(version == old, "version {version} instead of {old}");
                if round == 0 && index == 1 && newest > old {
                    let ran = cluster.cli(0).run(&finalize).await?;
                    ensure!(ran.code != Some(0), "half-way: {ran:?}");
                    cluster.note(&format!("half-way: {}", ran.stderr.trim()));
                }
            }
            if program == &before {
                succeed(&cluster, &compare).await?;
            }
        }
        let early = cluster.cli(0).run(&compare).await?;
        if early.stderr.contains("needs cluster version") {
            // Not one that may be there on another try, or at another peer.
            ensure!(early.code == Some(6), "{early:?}");
            cluster.note(&format!("too early: {}", early.stderr.trim()));
        }
        succeed(&cluster, &finalize).await?;
        succeed(&cluster, &compare).await?;
        let (version, newest) = versions(&cluster).await?;
        ensure!(version == newest, "{version} of {newest}");
        running.progress(SOME).await?;

        if newest > old {
            let last = cluster.size() - 1;
            ensure!(cluster.peer_mut(last).stop(PATIENCE).await?.success());
            before.clone_into(&mut cluster.peer_mut(last).setup.binary);
            cluster.peer_mut(last).start()?;
            let ended = cluster.peer_mut(last).ended(PATIENCE).await?;
            let said = cluster.peer(last).log_tail(1);
            let why = format!("the cluster is at version {newest}");
            ensure!(!ended.success() && said.contains(&why), "{ended}: {said}");
            cluster.note(&format!("peer {last} ended: {said}"));
            running.progress(SOME).await?;
            after.clone_into(&mut cluster.peer_mut(last).setup.binary);
            cluster.restart(last).await?;
            succeed(&cluster, &compare).await?;
        } else {
            eprintln!(
                "not played: a way back after `cluster finalize`; both are at version {newest}"
            );
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
