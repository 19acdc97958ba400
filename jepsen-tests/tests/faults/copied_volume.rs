//! The volume of a peer that runs is copied, and a second peer is started on the copy.

use std::path::Path;

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::folders;
use jepsen_tests::peer::Company;
use rustix::process::Signal;

use crate::members::agreed;
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// Copies a directory as it is at one moment: what a volume's snapshot does.
fn copy(cluster: &Cluster, peer: usize, to: &Path) -> anyhow::Result<()> {
    cluster.peer(peer).signal(Signal::STOP)?;
    let copied = folders::copy(&cluster.peer(peer).setup.data_dir, to);
    cluster.peer(peer).signal(Signal::CONT)?;
    copied.with_context(|| format!("cannot copy the directory of peer {peer}"))
}

/// Starts a peer on a copy, and waits until it has ended and said why.
async fn refused(cluster: &mut Cluster, stray: usize, original: usize) -> anyhow::Result<()> {
    let before = cluster.peer(stray).log_text().len();
    cluster.peer_mut(stray).start()?;
    let status = cluster.peer_mut(stray).ended(PATIENCE).await?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    let log = cluster.peer(stray).log_text().split_off(before);
    let last = log.lines().last().unwrap_or_default();
    cluster.note(&format!("the copy ended: {last}"));
    let (id, address) = (cluster.node_id(original)?, cluster.peer(original).address());
    for word in [
        &format!("peer {id} of cluster") as &str,
        &format!("runs at {address} already"),
        "copy of its data directory",
        "Remove the copy",
    ] {
        ensure!(last.contains(word), "nothing of {word:?}: {last}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_peers_volume_ends_and_the_cluster_serves_on() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start().await?;
        let mut running = stage::clients(&cluster);
        let leader = cluster.leader().await?;
        for original in [leader, cluster.another(leader)?] {
            let others = (0..3).filter(|peer| *peer != original);
            let others: Vec<_> = others.map(|peer| cluster.peer(peer).address()).collect();
            // Told of the peer whose copy it is and another, of the others only, and of nobody.
            let told = [
                vec![cluster.peer(original).address(), others[0].clone()],
                others,
                vec![],
            ];
            for (way, told) in told.into_iter().enumerate() {
                running.progress(5 * SOME).await?;
                let stray = cluster.newcomer(&[original])?;
                let folder = cluster.path(&format!("copy-{original}-{way}"));
                copy(&cluster, original, &folder)?;
                let setup = &mut cluster.peer_mut(stray).setup;
                setup.data_dir = folder;
                let own = setup.ports.peer.to_string();
                setup.company = Company::Named([vec![own], told].concat());
                refused(&mut cluster, stray, original).await?;
                running.progress(SOME).await?;
                agreed(&cluster, &[0, 1, 2], &[]).await?;
            }
        }
        let admins: Vec<_> = (0..3).map(|peer| cluster.admin(peer)).collect();
        stage::check_at(&cluster, running, &admins).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
