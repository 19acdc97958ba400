//! Writes and syncs that fail.

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::faulty_disk::{Fault, FaultyDisk};
use rustix::io::Errno;

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// A prepared cluster with this election timing, whose peers have disks that fail on command; the peers do not
/// run yet.
pub(crate) fn on_faulty_disks(profile: &str) -> anyhow::Result<(Cluster, Vec<FaultyDisk>)> {
    with_faulty_disks(&Options {
        profile: profile.to_owned(),
        ..Options::default()
    })
}

/// The same with these options.
pub(crate) fn with_faulty_disks(options: &Options) -> anyhow::Result<(Cluster, Vec<FaultyDisk>)> {
    let mut cluster = Cluster::prepare(options)?;
    let root = cluster
        .path("")
        .canonicalize()
        .context("the cluster's directory")?;
    let mut disks = Vec::new();
    for index in 0..cluster.size() {
        let setup = &mut cluster.peer_mut(index).setup;
        let name = setup.data_dir.file_name().context("the peer's directory")?;
        let disk = FaultyDisk::create(&root, &format!("disk-{index}"), &root.join(name))?;
        setup.environment = disk.environment();
        disks.push(disk);
    }
    Ok((cluster, disks))
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Leader,
    Follower,
}

/// Lets a peer's disk fail, and sees it stop with the reason while the others go on, and come back once the
/// disk is well.
async fn fails(
    cluster: &mut Cluster,
    disks: &[FaultyDisk],
    running: &mut jepsen_tests::register::Running,
    (role, fault, told): (Role, Fault, &str),
) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let victim = match role {
        Role::Leader => leader,
        Role::Follower => cluster.another(leader)?,
    };
    running.progress(SOME).await?;
    let before = cluster.peer(victim).log_text().len();
    let hits = disks[victim].hits()?;
    cluster.note(&format!("{fault:?} at peer {victim}, {role:?}"));
    disks[victim].set(fault, 3)?;
    let status = cluster.peer_mut(victim).ended(PATIENCE).await?;
    cluster.note(&format!("peer {victim} ended: {status}"));
    ensure!(disks[victim].hits()? > hits, "the fault met nothing");
    ensure!(status.code() == Some(1), "{status}");
    let log = cluster.peer(victim).log_text().split_off(before);
    let file = cluster.peer(victim).setup.data_dir.join("wal");
    let file = file.to_str().context("a path in UTF-8")?;
    let last = log.lines().last().unwrap_or_default();
    eprintln!("{last}");
    for word in [told, file, "Input/output error", "start it again"] {
        ensure!(last.contains(word), "nothing of {word:?}: {last}");
    }
    running.progress(2 * SOME).await?;
    // As long as the disk fails the peer does not come back, and says why.
    cluster.peer_mut(victim).start()?;
    let status = cluster.peer_mut(victim).ended(PATIENCE).await?;
    ensure!(status.code() == Some(1), "{status}");
    disks[victim].set(Fault::None, 0)?;
    cluster.restart(victim).await?;
    running.progress(SOME).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_disk_fails_stops_and_says_why_and_the_others_go_on() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let (mut cluster, disks) = on_faulty_disks("fast")?;
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        for role in [Role::Leader, Role::Follower] {
            for (fault, told) in [
                (Fault::Write(Errno::IO), "cannot write"),
                (Fault::Sync(Errno::IO), "cannot sync"),
            ] {
                let done = fails(&mut cluster, &disks, &mut running, (role, fault, told)).await;
                done.with_context(|| format!("{fault:?}, {role:?}"))?;
            }
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
