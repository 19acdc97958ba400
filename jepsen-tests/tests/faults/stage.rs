//! What every test stands on: its share of the machine, a bound on its time, clients, and a last look.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::Admin;
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::register::{self, Running, Workload};
use jepsen_tests::wait;
use tokio::sync::Semaphore;

/// The longest that most tests may take. Far above what any needs, so that only a hang meets it.
pub(crate) const TEST_TIME_MAX: Duration = Duration::from_secs(300);

/// How many writes show that the cluster goes on: of each client about one.
pub(crate) const SOME: u64 = 6;

/// The machine, in halves: at most two tests run at a time.
static MACHINE: Semaphore = Semaphore::const_new(2);

/// Runs a test once there is room for it.
pub(crate) async fn run(
    limit: Duration,
    test: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let _share = MACHINE.acquire().await.context("nobody closes it")?;
    tokio::time::timeout(limit, test)
        .await
        .with_context(|| format!("the test did not end in {limit:?}"))?
}

/// The admin APIs of all peers.
pub(crate) fn admins(cluster: &Cluster) -> Vec<Admin> {
    (0..cluster.size())
        .map(|index| cluster.admin(index))
        .collect()
}

/// Clients on a few registers, at all peers, those that do not run yet too.
pub(crate) fn clients(cluster: &Cluster) -> Running {
    let seed = rand::random();
    cluster.note(&format!("clients with seed {seed}"));
    Workload::new(admins(cluster), seed, "r/").start(&names(0))
}

/// The registers of a round.
pub(crate) fn names(round: usize) -> Vec<String> {
    (0..3).map(|number| format!("{round}-{number}")).collect()
}

/// Stops the clients and checks all that they saw, and that all peers, which must run, agree.
pub(crate) async fn check(cluster: &Cluster, running: Running) -> anyhow::Result<()> {
    check_at(cluster, running, &admins(cluster)).await
}

/// The same with the peers that are left.
pub(crate) async fn check_at(
    cluster: &Cluster,
    running: Running,
    left: &[Admin],
) -> anyhow::Result<()> {
    let seen = running.stop().await?;
    cluster.note(&format!(
        "{} calls, {} counted writes",
        seen.operations.len(),
        seen.counted.len()
    ));
    ensure!(!seen.counted.is_empty(), "no counted write");
    register::check(seen, left).await?;
    agree_at(left).await
}

/// All peers come to hold the same.
pub(crate) async fn agree(cluster: &Cluster) -> anyhow::Result<()> {
    agree_at(&admins(cluster)).await
}

async fn agree_at(admins: &[Admin]) -> anyhow::Result<()> {
    wait::until("peers that agree", PATIENCE, async || {
        let mut first = None;
        for admin in admins {
            let keys = admin.keys("").await?;
            let status = admin.status().await?;
            ensure!(status.quorum, "no quorum: {status:?}");
            let first = first.get_or_insert_with(|| keys.clone());
            ensure!(*first == keys, "keys differ: {first:?} and {keys:?}");
        }
        Ok(())
    })
    .await
}

/// A follower.
pub(crate) async fn follower(cluster: &Cluster) -> anyhow::Result<usize> {
    cluster.another(cluster.leader().await?)
}
