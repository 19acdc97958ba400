//! Peers that die without a word: a client that tries once more, at another peer, sees no failure; one that goes through the
//! Service sees failures for two seconds at the most.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use jepsen_tests::kube::Pod;
use jepsen_tests::steady::{Missed, Steady, Tally};

use crate::stage::{RATE, Release, on_release};

/// The port for all services of a pod.
const PROXY: u16 = 8080;

/// How long after a death the Service may still send requests there.
const WINDOW_MAX: Duration = Duration::from_secs(2);

/// How long a node may take to kill what it is told to: it grants even these pods two seconds.
const DEATH_MAX: Duration = Duration::from_secs(5);

/// One is killed in that time.
const PERIOD: Duration = Duration::from_secs(10);

/// How many are killed at least, in the short form.
const KILLS_MIN: u32 = 5;

/// How long a client waits for a peer before it tries another one. The address of a pod that is gone answers nothing, not
/// even a refusal.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the peers themselves take requests.
pub(crate) fn direct(pods: &[Pod]) -> Vec<SocketAddr> {
    let addresses = pods.iter().filter_map(|pod| pod.address);
    addresses.map(|it| SocketAddr::new(it, PROXY)).collect()
}

/// The same load, from clients that make a connection for each request and know when to try another peer.
pub(crate) fn retrying(load: Steady) -> Steady {
    Steady {
        patience: PATIENCE,
        keep: false,
        ..load
    }
}

/// Kills a peer as `kubectl` can: without a word, and at once.
pub(crate) async fn kill(release: &Release, pod: &str) -> anyhow::Result<()> {
    let delete = [
        "delete",
        "pod",
        pod,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ];
    release.namespace.kubectl(&delete).await.map(drop)
}

/// Of each kill that was noticed: when it was ordered, and when the first and the last request was sent that failed for it.
/// Nobody tells when the process died but the first of them.
fn windows(
    kills: &[Duration],
    failed: impl Iterator<Item = Duration>,
) -> Vec<(Duration, Duration, Duration)> {
    let mut failed: Vec<Duration> = failed.collect();
    failed.sort();
    let mut windows: Vec<(Duration, Duration, Duration)> = Vec::new();
    for at in failed {
        // One before all kills counts from the load's beginning, and so is found to be long after it.
        let kill = kills.iter().rev().find(|kill| **kill <= at).copied();
        let kill = kill.unwrap_or_default();
        match windows.last_mut() {
            Some((same, _, last)) if *same == kill => *last = at,
            _ => windows.push((kill, at, at)),
        }
    }
    windows
}

/// Of those that were good at another try, which met another peer first than one of these.
pub(crate) fn met_elsewhere<'a>(tally: &'a Tally, dead: &[SocketAddr]) -> Vec<&'a Missed> {
    let lived = |missed: &&Missed| missed.tries.iter().any(|(at, _)| !dead.contains(at));
    tally.saved.iter().filter(lived).collect()
}

#[test]
fn a_window_begins_with_the_first_failure_after_a_kill() {
    let secs = |secs: &[u64]| secs.iter().map(|it| Duration::from_secs(*it)).collect();
    let (kills, failed): (Vec<_>, Vec<_>) = (secs(&[10, 20, 30]), secs(&[32, 12, 33, 13, 14]));
    let found = windows(&kills, failed.into_iter());
    let expected: [Vec<Duration>; 2] = [secs(&[10, 12, 14]), secs(&[30, 32, 33])];
    assert_eq!(found, expected.map(|it| (it[0], it[1], it[2])), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_costs_nothing_that_one_retry_elsewhere_does_not_mend() -> anyhow::Result<()>
{
    on_release("kill", &[], async |release| {
        let served = release.serve().await?;
        let through_service = release.load(served.requests(0)).await?;
        let at_peers = retrying(served.requests(1)).start(direct(&release.pods().await?));
        let (mut round, mut kills, mut dead) = (0, Vec::new(), Vec::new());
        while at_peers.progress().done < release.kube.requests * 2 || round < KILLS_MIN {
            let due = PERIOD * (round + 1);
            at_peers.reaches(|progress| progress.elapsed >= due).await;
            // The leader at least every other time.
            let victim = match round % 2 {
                0 => release.leader().await?,
                _ => release.pods().await?.swap_remove(round as usize % 3),
            };
            kills.push(through_service.progress().elapsed);
            dead.extend(direct(std::slice::from_ref(&victim)));
            kill(&release, &victim.name).await?;
            release.await_successor(&victim).await?;
            // A pod that came anew has another address, which clients learn from DNS.
            at_peers.aim(direct(&release.pods().await?));
            round += 1;
        }
        let at_peers = at_peers.finish(release.kube.requests).await?;
        let service = through_service.finish(release.kube.requests).await?;
        eprintln!("{} kills, at the peers: {}", kills.len(), at_peers.line());
        eprintln!("through the Service: {}", service.line());
        let windows = windows(&kills, service.missed.iter().map(|missed| missed.at));
        eprintln!("windows: {windows:?}");
        ensure!(
            service.bad == service.missed.len(),
            "more failures than are remembered"
        );
        for (kill, first, last) in windows {
            ensure!(
                first <= kill + DEATH_MAX && last <= first + WINDOW_MAX,
                "failures long after a death: {:?}",
                service.missed
            );
        }
        ensure!(at_peers.good + at_peers.bad >= RATE as usize, "no load");
        at_peers.all_good()?;
        // What needed the other try had met the dead peer, and nobody else.
        let elsewhere = met_elsewhere(&at_peers, &dead);
        ensure!(
            elsewhere.is_empty(),
            "failures at peers that lived: {elsewhere:?}"
        );
        served.finish(0).await
    })
    .await
}
