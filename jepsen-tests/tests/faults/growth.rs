//! Peers whose logs grow so little before they are cut that snapshots, purges and new segments come all the time, and
//! what of that can be seen from outside.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::Admin;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::wait;

/// The entries that a follower may hold beyond what the leader had applied: more than there are clients and fillers.
const IN_FLIGHT_MAX: u64 = 50;

/// Writers that let logs grow while a peer is away, each with a write at a time. With the clients fewer than entries are
/// kept: a log that is purged over what nobody has committed is another matter.
const FILLERS: usize = 16;

/// Entries that each of these writes at most: what is written in all is far more than what logs are to grow by, and the
/// disk is not filled while a busy machine is late to purge them.
const FILLS_MAX: usize = 1_000;

/// How long logs may take to grow by some hundred entries, on however busy a machine.
const GROWTH_MAX: Duration = Duration::from_secs(60);

/// What a peer logs.
const TAKEN: &str = "a snapshot was taken";
const INSTALLED: &str = "a snapshot was installed";

/// The flags by which a peer's log is cut soon.
pub(crate) fn flags() -> Vec<String> {
    let flags = [
        "--snapshot-entries=80",
        "--snapshot-look=100ms",
        "--log-kept=50",
        "--segment-size=8192",
    ];
    flags.map(str::to_owned).into()
}

/// Waits until the others' logs do not hold any more what `away` lacks, which does not run. Returns an entry that it
/// lacks, and that only snapshots of the others hold.
pub(crate) async fn leaves_behind(cluster: &Cluster, away: usize) -> anyhow::Result<u64> {
    let leader = cluster.leader().await?;
    let applied = cluster.admin(leader).status().await?.applied_index;
    let target = applied + IN_FLIGHT_MAX;
    let grown = wait::until("purged logs of the others", GROWTH_MAX, async || {
        for peer in (0..cluster.size()).filter(|peer| *peer != away) {
            let first = cluster
                .metric(peer, "raftserve_raft_log_first_index")
                .await?;
            ensure!(
                first > target,
                "the log of peer {peer} begins at {first}, not after {target}"
            );
        }
        Ok(())
    });
    let fillers = (0..FILLERS).map(|number| fill(cluster.admin(leader), number));
    let filling = futures_util::future::join_all(fillers);
    // Logs need not be purged by the time that all is written.
    tokio::pin!(grown);
    tokio::select! {
        grown = &mut grown => return grown.map(|()| target),
        _ = filling => {}
    }
    grown.await.map(|()| target)
}

/// Writes a key of its own again and again.
async fn fill(admin: Admin, number: usize) {
    let key = format!("filler-{number}");
    let mut written = 0;
    while written < FILLS_MAX {
        // Refused while there is no leader, it is tried again.
        let put = admin.put_key(&key, "x", None, None).await;
        written += usize::from(put.is_ok());
        tokio::task::yield_now().await;
    }
}

/// Waits until a peer has installed a snapshot since its log had so many bytes.
pub(crate) async fn installed(cluster: &Cluster, peer: usize, since: usize) -> anyhow::Result<()> {
    wait::until("an installed snapshot", GROWTH_MAX, async || {
        let log = cluster.peer(peer).log_text().split_off(since);
        ensure!(log.contains(INSTALLED), "peer {peer} says nothing of one");
        Ok(())
    })
    .await
}

/// Waits until every peer has taken a snapshot, has one, and has removed the first segment of its log; clients write.
pub(crate) async fn everywhere(cluster: &Cluster) -> anyhow::Result<()> {
    wait::until("snapshots and purged logs", GROWTH_MAX, async || {
        for peer in 0..cluster.size() {
            let folder = &cluster.peer(peer).setup.data_dir;
            let taken = cluster.peer(peer).log_text().matches(TAKEN).count();
            ensure!(taken > 0, "peer {peer} has taken no snapshot");
            let newest = newest_snapshot(folder)?;
            ensure!(newest > 0, "peer {peer} has no snapshot");
            let first = first_segment(folder)?;
            ensure!(first > 1, "peer {peer} has its whole log");
        }
        Ok(())
    })
    .await?;
    let count = |what: &str| -> usize {
        let logs = (0..cluster.size()).map(|peer| cluster.peer(peer).log_text());
        logs.map(|log| log.matches(what).count()).sum()
    };
    cluster.note(&format!(
        "{} snapshots were taken and {} installed",
        count(TAKEN),
        count(INSTALLED)
    ));
    Ok(())
}

/// The last entry of a peer's newest snapshot; 0 without one.
pub(crate) fn newest_snapshot(data_dir: &Path) -> anyhow::Result<u64> {
    let numbers = numbers(&data_dir.join("snap"), ".snap")?;
    Ok(numbers.into_iter().max().unwrap_or(0))
}

/// The first segment of a peer's log; 0 without any.
fn first_segment(data_dir: &Path) -> anyhow::Result<u64> {
    let numbers = numbers(&data_dir.join("wal"), ".wal")?;
    Ok(numbers.into_iter().min().unwrap_or(0))
}

/// The numbers by which the names of files with this ending begin.
fn numbers(folder: &Path, ending: &str) -> anyhow::Result<Vec<u64>> {
    let files = std::fs::read_dir(folder);
    let files = files.with_context(|| format!("cannot list {}", folder.display()))?;
    let mut numbers = Vec::new();
    for file in files {
        let name = file?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(ending));
        let number = name.and_then(|name| name.split('-').next());
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(numbers)
}
