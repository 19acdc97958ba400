//! A peer loses its volume, comes back with an empty one, and later the old one turns up.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::peer::Company;

use crate::members::{agreed, eager, refused};
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// How long a peer may take to give up what will not be: it waits for half a minute for those that may only be slow.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// Kills a peer, puts its data directory aside, and starts it with the flags it always had. Returns where the
/// directory is now.
async fn wipe(cluster: &mut Cluster, peer: usize) -> anyhow::Result<PathBuf> {
    let old = cluster.node_id(peer)?;
    cluster.kill(peer)?;
    let folder = cluster.peer(peer).setup.data_dir.clone();
    let aside = cluster.path(&format!("volume-of-{old}"));
    std::fs::rename(&folder, &aside)?;
    cluster.restart(peer).await?;
    let new = cluster.node_id(peer)?;
    ensure!(new > old, "peer {old} is peer {new} now");
    Ok(aside)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_peer_takes_its_place_under_a_new_id_and_its_old_volume_stays_out()
-> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start_with(eager(3)).await?;
        let mut running = stage::clients(&cluster);
        let leader = cluster.leader().await?;
        // The first-named peer founded the cluster, and must not found another.
        for victim in [leader, 0] {
            running.progress(5 * SOME).await?;
            let old = cluster.node_id(victim)?;
            let aside = wipe(&mut cluster, victim).await?;
            agreed(&cluster, &[0, 1, 2], &[]).await?;
            running.progress(5 * SOME).await?;

            // The old volume in the place of the new one.
            ensure!(cluster.peer_mut(victim).stop(PATIENCE).await?.success());
            let own = cluster.peer(victim).setup.clone();
            for _ in 0..2 {
                cluster.peer_mut(victim).setup.data_dir.clone_from(&aside);
                refused(&mut cluster, victim, old).await?;
                running.progress(SOME).await?;
            }
            cluster.peer_mut(victim).setup.data_dir = own.data_dir;
            cluster.restart(victim).await?;

            // And beside it, at an address of its own.
            let stray = cluster.newcomer(&[(victim + 1) % 3])?;
            cluster.peer_mut(stray).setup.data_dir.clone_from(&aside);
            refused(&mut cluster, stray, old).await?;
            let named = Company::Named(vec![
                cluster.peer(stray).address(),
                cluster.peer((victim + 1) % 3).address(),
                cluster.peer((victim + 2) % 3).address(),
            ]);
            cluster.peer_mut(stray).setup.company = named;
            refused(&mut cluster, stray, old).await?;
            agreed(&cluster, &[0, 1, 2], &[]).await?;
        }
        running.progress(SOME).await?;
        let admins: Vec<_> = (0..3).map(|peer| cluster.admin(peer)).collect();
        stage::check_at(&cluster, running, &admins).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_most_volumes_lost_nobody_founds_another_cluster_and_what_recovers_it_is_told()
-> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let old = cluster.cluster_id()?.to_owned();
        cluster.kill_all()?;
        // The first-named one, which founded it, is among them.
        let lost = [0, 1];
        for peer in lost {
            let folder = cluster.peer(peer).setup.data_dir.clone();
            std::fs::rename(&folder, cluster.path(&format!("volume-{peer}")))?;
        }
        for peer in 0..3 {
            cluster.peer_mut(peer).start()?;
        }
        for peer in lost {
            let status = cluster.peer_mut(peer).ended(GIVEN_UP).await?;
            ensure!(!status.success(), "peer {peer} ended with {status}");
            let log = cluster.peer(peer).log_text();
            let last = log.lines().last().unwrap_or_default();
            for words in ["2 of the 3 peers", "no quorum", "cluster recover"] {
                ensure!(last.contains(words), "nothing of {words:?}: {last}");
            }
        }
        // The one that is left waits for them, and is what it was.
        let status = cluster.admin(2).status().await?;
        ensure!(
            status.cluster_id == old && !status.quorum,
            "{old} is another one: {status:?}"
        );
        cluster.pass();
        Ok(())
    })
    .await
}
