//! Peers join, leave, move and die for good while clients read and write.

use std::time::{Duration, Instant};

use anyhow::ensure;
use jepsen_tests::admin::Admin;
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::wait;

use crate::members::{CHANGE, agreed, eager, refused, told_to_go};
use crate::stage::{self, SOME, TEST_TIME_MAX};

/// The shortest time after which silent voters may be removed.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// How many times a leader may have to begin to count.
const REIGNS_MAX: u32 = 3;

/// Removes a peer for good, asked of another, and waits for its end.
async fn remove(cluster: &mut Cluster, peer: usize, asked: usize) -> anyhow::Result<()> {
    let id = cluster.node_id(peer)?;
    cluster.note(&format!("removing peer {peer}, asked of peer {asked}"));
    let before = cluster.peer(peer).log_text().len();
    let cli = cluster.cli(asked);
    let answer = cli
        .json(&["cluster", "remove", &id.to_string(), "-y"])
        .await?;
    ensure!(answer["removed"] == id, "{answer}");
    told_to_go(cluster, peer, id, before).await
}

async fn tolerance(cluster: &Cluster, asked: usize, wanted: u64) -> anyhow::Result<()> {
    wait::until("a healthy cluster", PATIENCE, async || {
        let health = cluster.cli(asked).json(&["cluster", "health"]).await?;
        let good = health["healthy"] == true && health["failure_tolerance"] == wanted;
        ensure!(good, "{health}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_grows_to_five_and_shrinks_to_three_under_clients() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start_with(eager(1)).await?;
        // Each through another one, some through a peer that has only just joined itself.
        for through in [0, 1, 2, 1] {
            cluster.newcomer(&[through])?;
        }
        let mut running = stage::clients(&cluster);
        running.progress(5 * SOME).await?;
        tolerance(&cluster, 0, 0).await?;

        cluster.restart(1).await?;
        agreed(&cluster, &[0], &[1]).await?;
        running.progress(SOME).await?;
        cluster.restart(2).await?;
        agreed(&cluster, &[0, 1, 2], &[]).await?;
        running.progress(5 * SOME).await?;
        tolerance(&cluster, 1, 1).await?;

        for newcomer in [3, 4] {
            cluster.peer_mut(newcomer).start()?;
        }
        for newcomer in [3, 4] {
            cluster.await_ready(newcomer).await?;
        }
        agreed(&cluster, &[0, 1, 2, 3, 4], &[]).await?;
        running.progress(5 * SOME).await?;
        tolerance(&cluster, 4, 2).await?;

        let leader = cluster.leader().await?;
        let follower = cluster.another(leader)?;
        remove(&mut cluster, follower, leader).await?;
        let left = cluster.started();
        agreed(&cluster, &left, &[]).await?;
        running.progress(5 * SOME).await?;
        let leader = cluster.leader().await?;
        let asked = cluster.another(leader)?;
        remove(&mut cluster, leader, asked).await?;
        let left = cluster.started();
        ensure!(left.len() == 3, "{left:?}");
        agreed(&cluster, &left, &[]).await?;
        running.progress(5 * SOME).await?;
        tolerance(&cluster, asked, 1).await?;

        for gone in [follower, leader] {
            let id = cluster.node_id(gone)?;
            refused(&mut cluster, gone, id).await?;
        }
        running.progress(SOME).await?;
        let admins: Vec<_> = left.iter().map(|peer| cluster.admin(*peer)).collect();
        stage::check_at(&cluster, running, &admins).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Waits until all peers say that each is where it is now, and answers.
async fn found(cluster: &Cluster) -> anyhow::Result<()> {
    wait::until("peers that find each other", PATIENCE, async || {
        for asked in 0..cluster.size() {
            for member in cluster.admin(asked).members().await? {
                let peer =
                    (0..cluster.size()).find(|it| cluster.node_id(*it).ok() == Some(member.id));
                let address = peer.map(|peer| cluster.peer(peer).address());
                ensure!(
                    address.as_ref() == Some(&member.peer_address),
                    "peer {asked} looks for {peer:?} elsewhere: {member:?}"
                );
            }
        }
        Ok(())
    })
    .await
}

/// Waits until the logs of all peers say where this one is.
async fn recorded(cluster: &Cluster, peer: usize) -> anyhow::Result<()> {
    let (id, address) = (cluster.node_id(peer)?, cluster.peer(peer).address());
    let told = format!("Readdress(NodeId({id}), \"{address}\")");
    wait::until("the address to be recorded", PATIENCE, async || {
        let told = (0..cluster.size()).any(|it| cluster.peer(it).log_text().contains(&told));
        ensure!(told, "no peer has recorded it");
        Ok(())
    })
    .await?;
    let leader = cluster.leader().await?;
    let upto = cluster.admin(leader).status().await?.applied_index;
    wait::until("all to know the address", PATIENCE, async || {
        for asked in 0..cluster.size() {
            let applied = cluster.admin(asked).status().await?.applied_index;
            ensure!(applied >= upto, "peer {asked} is at {applied} of {upto}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_at_another_address_is_found_again() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::start_with(eager(3)).await?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;
        // One after the other, until none is where it was, nor where the flags of another have it: what is then left
        // is what the log says.
        for _ in 0..2 {
            for peer in 0..3 {
                let id = cluster.node_id(peer)?;
                cluster.kill(peer)?;
                cluster.relocate(peer)?;
                cluster.restart(peer).await?;
                ensure!(cluster.node_id(peer)? == id, "it has another id");
                found(&cluster).await?;
                recorded(&cluster, peer).await?;
                running.use_peers(stage::admins(&cluster));
                running.progress(SOME).await?;
            }
        }
        agreed(&cluster, &[0, 1, 2], &[]).await?;
        tolerance(&cluster, 0, 1).await?;
        // Two that do move at once meet through the one that did not.
        for peer in [1, 2] {
            cluster.kill(peer)?;
            cluster.relocate(peer)?;
        }
        for peer in [1, 2] {
            cluster.peer_mut(peer).start()?;
        }
        for peer in [1, 2] {
            cluster.await_ready(peer).await?;
        }
        found(&cluster).await?;
        running.use_peers(stage::admins(&cluster));
        running.progress(SOME).await?;
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// Waits until so many members are left. A leader counts a silence from the beginning of its own reign, and anew after it
/// was out of touch with the others for a moment, as on a busy machine.
async fn shrunk(asked: &Admin, count: usize) -> anyhow::Result<()> {
    let limit = REIGNS_MAX * (DEAD_AFTER + CHANGE);
    wait::until("the dead to be removed", limit, async || {
        let members = asked.members().await?;
        ensure!(members.len() <= count, "{members:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_are_dead_for_long_are_removed_and_the_living_stay() -> anyhow::Result<()> {
    stage::run(2 * TEST_TIME_MAX, async {
        let mut options = eager(5);
        let seconds = DEAD_AFTER.as_secs().to_string();
        options
            .flags
            .extend(["--remove-dead-after".to_owned(), seconds]);
        let mut cluster = Cluster::start_with(options).await?;
        let mut running = stage::clients(&cluster);
        running.progress(SOME).await?;
        let leader = cluster.leader().await?;
        let dead: Vec<usize> = (0..5).filter(|peer| *peer != leader).take(2).collect();
        let killed = Instant::now();
        for peer in &dead {
            cluster.kill(*peer)?;
        }
        let left = cluster.started();
        running.progress(SOME).await?;
        let asked = cluster.admin(leader);
        // One at a time.
        for count in [4, 3] {
            shrunk(&asked, count).await?;
            let waited = killed.elapsed();
            cluster.note(&format!("{count} members after {waited:?}"));
            ensure!(waited >= DEAD_AFTER, "removed after {waited:?} already");
        }
        agreed(&cluster, &left, &[]).await?;
        running.progress(SOME).await?;
        for peer in dead {
            let id = cluster.node_id(peer)?;
            refused(&mut cluster, peer, id).await?;
        }
        let admins: Vec<_> = left.iter().map(|peer| cluster.admin(*peer)).collect();
        stage::check_at(&cluster, running, &admins).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
