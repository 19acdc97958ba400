//! What every test stands on: its share of the machine, a bound on its time, and a service that counts.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use jepsen_tests::binary;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::load::Load;
use jepsen_tests::program::{Counters, Service};
use tokio::sync::Semaphore;

/// The longest that a test may take. Far above what any needs, so that only a hang meets it.
const TEST_TIME_MAX: Duration = Duration::from_secs(180);

/// The longest that a service may take to become as it should be, on a loaded machine.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);

/// The machine, in halves.
static MACHINE: Semaphore = Semaphore::const_new(2);

/// How much of the machine a test needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Share {
    /// Another test may run beside it.
    Half = 1,
    /// What it measures or saturates would be wrong with another test beside it.
    Whole = 2,
}

/// Runs a test once it has its share of the machine; skips it where there is no python3, which replicas
/// need.
pub(crate) async fn run(
    share: Share,
    test: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if !binary::have("python3") {
        return Ok(());
    }
    let _share = MACHINE
        .acquire_many(share as u32)
        .await
        .context("nobody closes it")?;
    tokio::time::timeout(TEST_TIME_MAX, test)
        .await
        .with_context(|| format!("the test did not end in {TEST_TIME_MAX:?}"))?
}

/// Three peers, and where their replicas count.
pub(crate) async fn three_peers() -> anyhow::Result<(Cluster, Counters)> {
    with_counters(Cluster::start().await?)
}

/// One peer alone, and where its replicas count.
pub(crate) async fn one_peer() -> anyhow::Result<(Cluster, Counters)> {
    let options = Options {
        peers: 1,
        ..Options::default()
    };
    with_counters(Cluster::start_with(options).await?)
}

fn with_counters(cluster: Cluster) -> anyhow::Result<(Cluster, Counters)> {
    let counters = Counters::create(cluster.path("count"))?;
    Ok((cluster, counters))
}

/// Brings up a service and waits until it is as it should be.
pub(crate) async fn bring_up(cluster: &Cluster, service: &Service) -> anyhow::Result<()> {
    cluster.admin(0).apply(&service.yaml()).await?;
    cluster.settled(&service.name, SETTLE).await.map(drop)
}

/// A load on a service through all peers.
pub(crate) fn load(cluster: &Cluster, service: &Service) -> Load {
    Load::new(cluster.targets(), &format!("/{}/", service.name))
}

/// So many session keys.
pub(crate) fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}
