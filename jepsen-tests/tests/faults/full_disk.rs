//! A disk without room: a file system in memory, of a size that the test sets.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use jepsen_tests::binary;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::wait;

use crate::stage::{self, SOME, TEST_TIME_MAX};

/// Room that no test fills.
const AMPLE: u64 = 256 << 20;

/// What is left when the disk is to fill up: a few large values.
const SCARCE: u64 = 128 << 10;

/// Size of the values that fill it.
const VALUE: usize = 32 << 10;

/// A file system of a settable size. Unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `path`; none if this process may not.
    fn mount(path: &Path) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(path)?;
        let size = format!("size={AMPLE}");
        let mounted = run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "raftserve-test"],
            path,
        )?;
        let path = path.to_owned();
        Ok(mounted.then_some(Self { path }))
    }

    /// Leaves so many bytes free.
    fn leave(&self, free: u64) -> anyhow::Result<()> {
        let now = rustix::fs::statvfs(&self.path)?;
        let used = (now.f_blocks - now.f_bfree) * now.f_frsize;
        let size = format!("remount,size={}", used + free);
        ensure!(
            run("mount", &["-o", &size], &self.path)?,
            "cannot resize the disk"
        );
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever still uses it keeps it until that ends, which the test's end sees to.
        let _ = run("umount", &["--lazy"], &self.path);
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> anyhow::Result<bool> {
    let status = Command::new(program)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(status.success())
}

/// Writes large values until a peer stops, which of them it is being known.
async fn fill(cluster: &mut Cluster, victim: usize) -> anyhow::Result<std::process::ExitStatus> {
    let admin = cluster.admin(cluster.another(victim)?);
    let value = vec![b'x'; VALUE];
    let filling = async {
        for number in 0.. {
            // Refused while another leads, it is tried again with the next.
            let _ = admin
                .put_key(&format!("large-{}", number % 64), value.clone(), None, None)
                .await;
        }
    };
    let peer = cluster.peer_mut(victim);
    tokio::select! {
        ended = peer.ended(PATIENCE) => ended,
        () = filling => unreachable!("it goes on for ever"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_a_full_disk_stops_and_says_why_and_the_others_go_on() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut cluster = Cluster::prepare(&Options::default())?;
        let mut disks = Vec::new();
        for index in 0..cluster.size() {
            match SmallDisk::mount(&cluster.peer(index).setup.data_dir)? {
                Some(disk) => disks.push(disk),
                None => {
                    binary::skip("this user may not mount a file system in memory");
                    cluster.pass();
                    return Ok(());
                }
            }
        }
        cluster.restart_all().await?;
        let mut running = stage::clients(&cluster);
        for leads in [true, false] {
            let leader = cluster.leader().await?;
            let victim = match leads {
                true => leader,
                false => cluster.another(leader)?,
            };
            running.progress(SOME).await?;
            cluster.note(&format!(
                "the disk of peer {victim} fills up; {leader} leads"
            ));
            disks[victim].leave(SCARCE)?;
            let status = fill(&mut cluster, victim).await?;
            told(&cluster, victim, status)?;
            running.progress(2 * SOME).await?;

            // Without room it does not come back, and says why.
            cluster.peer_mut(victim).start()?;
            let status = cluster.peer_mut(victim).ended(PATIENCE).await?;
            told(&cluster, victim, status)?;

            disks[victim].leave(AMPLE)?;
            cluster.restart(victim).await?;
            let reached = cluster
                .admin(cluster.another(victim)?)
                .status()
                .await?
                .applied_index;
            wait::until("the peer to catch up", PATIENCE, async || {
                let now = cluster.admin(victim).status().await?.applied_index;
                ensure!(now >= reached, "{now} of {reached}");
                Ok(())
            })
            .await?;
        }
        stage::check(&cluster, running).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// The last line of its log says what is full and what to do.
fn told(cluster: &Cluster, peer: usize, status: std::process::ExitStatus) -> anyhow::Result<()> {
    cluster.note(&format!("peer {peer} ended: {status}"));
    let log = cluster.peer(peer).log_text();
    let last = log.lines().last().unwrap_or_default();
    eprintln!("{last}");
    ensure!(status.code() == Some(1), "{status}");
    let folder = &cluster.peer(peer).setup.data_dir;
    let folder = folder.to_str().context("a path in UTF-8")?;
    for word in ["No space left on device", folder] {
        ensure!(last.contains(word), "nothing of {word:?}: {last}");
    }
    Ok(())
}
