//! Writes of clients while peers take snapshots of a large state.
//!
//! Snapshots are taken as they always are, when the log has grown by so many entries: each peer's at another time.
//! One is being taken as long as an unfinished one lies in the peer's folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::cluster::{Cluster, Options};

use crate::crowd::{self, REPLICAS};
use crate::load::{self, Call, Operation, Step};
use crate::system::{Running, System};
use crate::{CONNECTIONS, WARM_UP};

/// Clients that write.
const CLIENTS: usize = 16;

/// The pause between two looks at the peers' folders: short beside any snapshot of such a state.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long one snapshot after the last may take to be begun and taken.
const SNAPSHOT_TIME_MAX: Duration = Duration::from_secs(300);

/// A snapshot that a peer has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    peer: usize,
    from: Instant,
    until: Instant,
}

impl Window {
    fn overlaps(&self, call: &Call) -> bool {
        call.began < self.until && self.from < call.began + call.took
    }
}

/// Whether a snapshot is being taken in this folder.
fn is_taking(folder: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if entry?.path().extension().is_some_and(|it| it == "tmp") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks at the folders until nobody hears of it any more, and tells of each snapshot when it is taken.
fn look(folders: &[PathBuf], taken: &SyncSender<Window>) -> std::io::Result<()> {
    let mut begun: Vec<Option<Instant>> = vec![None; folders.len()];
    loop {
        for (peer, (folder, begun)) in folders.iter().zip(&mut begun).enumerate() {
            let now = Instant::now();
            match (is_taking(folder)?, *begun) {
                (true, None) => *begun = Some(now),
                (false, Some(from)) => {
                    *begun = None;
                    let until = now;
                    if taken.send(Window { peer, from, until }).is_err() {
                        return Ok(());
                    }
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits for so many snapshots.
fn wait_for(windows: &Receiver<Window>, count: usize) -> anyhow::Result<Vec<Window>> {
    let next = |_| windows.recv_timeout(SNAPSHOT_TIME_MAX);
    let seen: Result<Vec<Window>, _> = (0..count).map(next).collect();
    seen.context("no further snapshot was taken")
}

/// Latencies in order.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of<'a>(calls: impl Iterator<Item = &'a Call>) -> Self {
        let mut latencies: Vec<Duration> = calls.map(|call| call.took).collect();
        latencies.sort_unstable();
        Self(latencies)
    }

    fn p99(&self) -> Duration {
        load::quantile(&self.0, 0.99)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |part| load::quantile(&self.0, part).as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:6.2} ms, p99 {:6.2} ms, longest {:6.2} ms, of {}",
            ms(0.5),
            ms(0.99),
            ms(1.0),
            self.0.len()
        )
    }
}

/// Sets the writes that meet a snapshot of some peer against those that meet none.
fn report(calls: &[Call], windows: &[Window], leader: usize) -> anyhow::Result<()> {
    let met = |call: &Call, whose: &dyn Fn(usize) -> bool| {
        windows.iter().any(|it| whose(it.peer) && it.overlaps(call))
    };
    let quiet = Latencies::of(calls.iter().filter(|call| !met(call, &|_| true)));
    ensure!(!quiet.0.is_empty(), "snapshots were taken all the time");
    println!("no snapshot is taken:            {quiet}");
    let kinds: [(&str, &dyn Fn(usize) -> bool); 3] = [
        ("a snapshot is taken:            ", &|_| true),
        ("  the leader takes one:         ", &|peer| peer == leader),
        ("  a follower takes one:         ", &|peer| peer != leader),
    ];
    for (what, whose) in kinds {
        let taken = windows.iter().filter(|it| whose(it.peer)).count();
        let during = Latencies::of(calls.iter().filter(|call| met(call, whose)));
        if during.0.is_empty() {
            continue;
        }
        let ratio = during.p99().as_secs_f64() / quiet.p99().as_secs_f64();
        println!("{what} {during}; p99 {ratio:.2} of that without, {taken} snapshots");
    }
    Ok(())
}

/// Fills a cluster with so many sessions, and measures until so many snapshots were taken.
pub(crate) async fn run(sessions: u64, snapshots: usize, per_second: u32) -> anyhow::Result<()> {
    let cluster = Cluster::start_with(Options::default()).await?;
    crowd::fill(&cluster, sessions).await?;
    let folder = |index| cluster.peer(index).setup.data_dir.join("snap");
    let folders: Vec<PathBuf> = (0..cluster.size()).map(folder).collect();
    let (leader, term) = cluster.leader_and_term().await?;
    let running = Running::Grpc(Box::new(cluster));

    let (taken, windows) = sync_channel(snapshots);
    std::thread::Builder::new()
        .name("folders".to_owned())
        .spawn(move || look(&folders, &taken))?;
    // The first begins before there is any load, or while it is warming up.
    let waiting = tokio::task::spawn_blocking(move || wait_for(&windows, snapshots));
    let ended = async { waiting.await.context("the wait panicked")? };
    let step = Step::new(Operation::Put, CLIENTS).paced(per_second);
    let target = running.target().await?;
    let (calls, windows) = load::calls_until(target, step, CONNECTIONS, WARM_UP, ended).await?;

    let Running::Grpc(cluster) = &running else {
        anyhow::bail!("{} was started", System::Grpc.name());
    };
    let now = cluster.leader_and_term().await?;
    ensure!(now == (leader, term), "the leader has changed: {now:?}");
    let mut took: Vec<Duration> = windows.iter().map(|it| it.until - it.from).collect();
    took.sort_unstable();
    let newest = newest_size(&cluster.peer(leader).setup.data_dir.join("snap"))?;
    println!(
        "{REPLICAS} replicas, {sessions} sessions; {CLIENTS} clients, {per_second} writes/s; {} snapshots of {} MB, which took {:.2?} to {:.2?}",
        windows.len(),
        newest >> 20,
        took.first().copied().unwrap_or_default(),
        took.last().copied().unwrap_or_default()
    );
    report(&calls, &windows, leader)?;
    running.stop().await
}

fn newest_size(folder: &Path) -> anyhow::Result<u64> {
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|it| it == "snap") {
            sizes.push((entry.file_name(), entry.metadata()?.len()));
        }
    }
    sizes.sort();
    Ok(sizes.pop().context("the leader has no snapshot")?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_meets_a_snapshot_if_they_share_any_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let window = Window {
            peer: 0,
            from: at(10),
            until: at(20),
        };
        let call = |began, took| Call {
            began: at(began),
            took: Duration::from_millis(took),
        };
        for (began, took) in [(5, 6), (12, 1), (19, 9), (5, 90)] {
            assert!(window.overlaps(&call(began, took)), "{began}, {took}");
        }
        for (began, took) in [(5, 5), (20, 4)] {
            assert!(!window.overlaps(&call(began, took)), "{began}, {took}");
        }
    }
}
