//! Peers whose pods are deleted without grace, and peers that die without a word: a client that tries once more, at another
//! peer, sees no failure; one that goes through the Service sees failures for two seconds at the most.
//!
//! A pod that is deleted is always told to stop, and its node grants it two seconds even where nobody grants it any. So only
//! a process that is killed on its node says nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::kube::Pod;
use jepsen_tests::steady::{Missed, Running, Steady, Tally, Try};
use jepsen_tests::{processes, wait};
use rustix::process::Signal;

use crate::stage::{self, Release, on_release};

/// The program of a peer's container.
const PROGRAM: &str = "raftserve";

/// The port for all services of a pod.
const PROXY: u16 = 8080;

/// How long after a death the Service may still send requests there.
const WINDOW_MAX: Duration = Duration::from_secs(2);

/// How long a node may take to kill what it is told to.
const DEATH_MAX: Duration = Duration::from_secs(5);

/// One is killed in that time.
const PERIOD: Duration = Duration::from_secs(10);

/// How many are killed at least, in the short form.
const KILLS_MIN: u32 = 5;

/// How long a request may have been under way when its peer died.
const INSIDE_MAX: Duration = Duration::from_millis(200);

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

/// Has a peer's pod deleted as fast as `kubectl` can have it. Its process is told to stop, and has two seconds.
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

/// What killed a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// Its pod was deleted, without grace.
    Deleted,
    /// Its process was, without a word. Its pod stands.
    Signal,
}

/// One kill.
#[derive(Clone, Debug)]
struct Kill {
    means: Means,
    /// Where the peer took requests.
    peer: Vec<SocketAddr>,
    /// When it was ordered; by a signal it is dead at once.
    at: Duration,
    /// When all peers were ready again.
    mended: Duration,
    led: bool,
}

impl Kill {
    /// Whether a try may have failed for it.
    fn excuses(&self, failed: &Try) -> bool {
        let meanwhile = failed.began <= self.mended && failed.ended >= self.at;
        self.peer.contains(&failed.at) && meanwhile
    }
}

/// Of each kill that was noticed: which it was, and when the first and the last request was sent that failed for it.
fn windows(
    kills: &[Kill],
    failed: impl Iterator<Item = Duration>,
) -> anyhow::Result<Vec<(Kill, Duration, Duration)>> {
    let mut failed: Vec<Duration> = failed.collect();
    failed.sort();
    let mut windows: Vec<(Kill, Duration, Duration)> = Vec::new();
    for at in failed {
        // One that was sent just before may have been inside the peer.
        let killed = kills.iter().rev().find(|kill| kill.at <= at + INSIDE_MAX);
        let killed = killed.with_context(|| format!("a failure at {at:?}, before all kills"))?;
        match windows.last_mut() {
            Some((same, _, last)) if same.at == killed.at => *last = at,
            _ => windows.push((killed.clone(), at, at)),
        }
    }
    Ok(windows)
}

/// Fails for what the Service sent to a peer long after its death. Of one that was deleted nobody tells when it died, but the
/// first failure.
fn ensure_short(windows: &[(Kill, Duration, Duration)]) -> anyhow::Result<()> {
    for window in windows {
        let (kill, first, last) = window;
        let short = match kill.means {
            Means::Signal => *last <= kill.at + WINDOW_MAX,
            Means::Deleted => *first <= kill.at + DEATH_MAX && *last <= *first + WINDOW_MAX,
        };
        ensure!(short, "failures long after a death: {window:?}");
    }
    Ok(())
}

/// Of those that were good at another try, which met a peer first that was not dead then.
fn met_elsewhere<'a>(tally: &'a Tally, kills: &[Kill]) -> Vec<&'a Missed> {
    let excused = |failed: &Try| kills.iter().any(|kill| kill.excuses(failed));
    let lived = |missed: &&Missed| !missed.tries.iter().all(excused);
    tally.saved.iter().filter(lived).collect()
}

fn at_second(means: Means, at: u64) -> Kill {
    Kill {
        means,
        peer: vec![SocketAddr::from(([127, 0, 0, 1], 80))],
        at: Duration::from_secs(at),
        mended: Duration::from_secs(at + 3),
        led: false,
    }
}

#[test]
fn a_window_begins_with_a_death_or_else_with_the_first_failure_after_a_kill() {
    let kills = [
        at_second(Means::Signal, 10),
        at_second(Means::Signal, 20),
        at_second(Means::Deleted, 30),
    ];
    let told = |failed: &[u64]| {
        let failed = failed.iter().map(|it| Duration::from_secs(*it));
        windows(&kills, failed)
    };
    let found = told(&[34, 11, 33, 12]).unwrap();
    let seconds = |it: &(Kill, Duration, Duration)| (it.0.at, it.1, it.2);
    let found_at: Vec<_> = found.iter().map(seconds).collect();
    let expected = [(10, 11, 12), (30, 33, 34)];
    let secs = Duration::from_secs;
    assert_eq!(
        found_at,
        expected.map(|it| (secs(it.0), secs(it.1), secs(it.2)))
    );
    ensure_short(&found).unwrap();
    for late in [&[13][..], &[36], &[33, 36]] {
        assert!(ensure_short(&told(late).unwrap()).is_err(), "{late:?}");
    }
    assert!(told(&[5]).is_err());
}

#[test]
fn a_kill_excuses_what_failed_there_and_then() {
    let kill = at_second(Means::Signal, 10);
    let failed = |port: u16, ended: u64| Try {
        at: SocketAddr::from(([127, 0, 0, 1], port)),
        began: Duration::from_secs(ended - 2),
        ended: Duration::from_secs(ended),
        why: String::new(),
    };
    for its in [failed(80, 10), failed(80, 15)] {
        assert!(kill.excuses(&its), "{its:?}");
    }
    for other in [failed(80, 9), failed(80, 16), failed(81, 11)] {
        assert!(!kill.excuses(&other), "{other:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_costs_nothing_that_one_retry_elsewhere_does_not_mend() -> anyhow::Result<()>
{
    on_release("kill", &[], async |release| {
        let served = release.serve().await?;
        let through_service = release.load(served.requests(0)).await?;
        let at_peers = retrying(served.requests(1)).start(direct(&release.pods().await?));
        let (mut round, mut kills) = (0, Vec::<Kill>::new());
        while at_peers.progress().done < release.kube.requests * 2 || round < KILLS_MIN {
            // One request has one other try: it is not to meet two deaths, that of a peer which it was sent to before its
            // client knew better, and that of the next.
            let known = kills.last().map_or(Duration::ZERO, |kill| kill.mended + PATIENCE);
            let due = known.max(PERIOD * (round + 1));
            at_peers.reaches(|progress| progress.elapsed >= due).await;
            kills.push(release.kill_one(round, &at_peers).await?);
            round += 1;
        }
        let elapsed = at_peers.elapsed();
        let at_peers = at_peers.finish(release.kube.requests * 2).await?;
        let service = through_service.finish(release.kube.requests * 2).await?;
        let led = kills.iter().filter(|kill| kill.led).count();
        let silent = kills.iter().filter(|kill| kill.means == Means::Signal);
        let silent = silent.count();
        eprintln!(
            "{} kills in {elapsed:?}, {led} of the leader, {silent} without a word; at the peers: {}",
            kills.len(),
            at_peers.line()
        );
        eprintln!("through the Service: {}", service.line());
        at_peers.all_good()?;
        ensure!(
            u64::from(round) + 1 >= elapsed.as_secs() / PERIOD.as_secs(),
            "{round} kills in {elapsed:?}"
        );
        ensure!(led * 2 >= kills.len(), "the leader too seldom: {kills:?}");
        ensure!(
            release.kube.lab.is_none() || (silent > 0 && silent < kills.len()),
            "not both ways: {kills:?}"
        );
        ensure!(
            service.bad == service.missed.len() && at_peers.retried == at_peers.saved.len(),
            "more failures than are remembered"
        );
        let windows = windows(&kills, service.missed.iter().map(|missed| missed.at))?;
        for (kill, first, last) in &windows {
            let after = last.saturating_sub(kill.at);
            eprintln!("{:?} at {:?}: from {first:?}, until {after:?} after", kill.means, kill.at);
        }
        ensure_short(&windows)?;
        ensure!(
            silent == 0 || windows.iter().any(|it| it.0.means == Means::Signal),
            "no death without a word was noticed: {kills:?}"
        );
        // What needed the other try had met a peer that was dead then, and nobody else.
        let elsewhere = met_elsewhere(&at_peers, &kills);
        ensure!(
            elsewhere.is_empty(),
            "failures at peers that lived: {elsewhere:?}"
        );
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Kills a peer, at least every other time the leader, and waits until all is well again. Where a process can be killed, two
    /// of four rounds do that; one whose process has died before is deleted, since its kubelet waits before it starts it again.
    async fn kill_one(&self, round: u32, load: &Running) -> anyhow::Result<Kill> {
        let leader = self.leader().await?;
        let victim = match round % 2 {
            0 => leader.clone(),
            _ => self.pods().await?.swap_remove(round as usize % 3),
        };
        let peer = direct(std::slice::from_ref(&victim));
        let led = victim.uid == leader.uid;
        let silent = self.kube.lab.is_some() && round % 4 < 2 && victim.restarts == 0;
        let (means, at) = if silent {
            let process = processes::first_in_pod(&victim.uid, PROGRAM)?;
            let at = load.elapsed();
            processes::signal(process, Signal::KILL)?;
            wait::until("the peer's return", stage::PATIENCE, async || {
                let pods = self.pods().await?;
                let back = pods
                    .iter()
                    .any(|pod| pod.uid == victim.uid && pod.restarts > 0);
                ensure!(back, "{pods:?}");
                Ok(())
            })
            .await?;
            self.await_ready(3).await?;
            (Means::Signal, at)
        } else {
            let at = load.elapsed();
            kill(self, &victim.name).await?;
            self.await_successor(&victim).await?;
            (Means::Deleted, at)
        };
        // A pod that came anew has another address, which clients learn from DNS.
        load.aim(direct(&self.pods().await?));
        Ok(Kill {
            means,
            peer,
            at,
            mended: load.elapsed(),
            led,
        })
    }
}
