//! Peers are killed with SIGKILL, one, two or all three of them, again and again, under clients that write.

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::register::{self, Running, Workload};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use crate::stage::{self, SOME, names};

/// How many rounds, instead of [`ROUNDS`].
const ROUNDS_VARIABLE: &str = "RAFTSERVE_KILL_ROUNDS";

/// Decides who is killed when, and what clients ask, instead of a random number.
const SEED_VARIABLE: &str = "RAFTSERVE_KILL_SEED";

/// Rounds without a setting.
const ROUNDS: usize = 50;

/// The longest that a round may take on average. A few times what it takes on a busy machine.
const ROUND_TIME_MAX: Duration = Duration::from_secs(10);

/// After so many rounds the clients stop, and all that was seen is checked.
const CHAPTER: usize = 25;

/// The longest pause before a fault: over a dozen group commits.
const MOMENT_MAX_MS: u64 = 80;

/// When a peer that comes back is killed again: from before it has opened its log to when it is ready.
const AGAIN_MAX_MS: u64 = 400;

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment how long to go on, there being no command line of its own"
)]
fn setting(variable: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(
            text.parse().with_context(|| format!("{variable}={text}"))?,
        )),
        Err(_) => Ok(None),
    }
}

/// Who is killed, in which order.
async fn victims(cluster: &Cluster, random: &mut StdRng) -> anyhow::Result<Vec<usize>> {
    let leader = cluster.leader().await?;
    let mut others: Vec<usize> = (0..cluster.size()).filter(|it| *it != leader).collect();
    others.shuffle(random);
    let mut victims = match random.random_range(0..5) {
        0 => vec![leader],
        1 => vec![others[0]],
        2 => vec![leader, others[0]],
        3 => others,
        _ => (0..cluster.size()).collect(),
    };
    victims.shuffle(random);
    Ok(victims)
}

/// The moment of a fault, not what is waited for.
async fn pause(random: &mut StdRng, max_ms: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(0..max_ms))).await;
}

async fn round(
    cluster: &mut Cluster,
    running: &mut Running,
    random: &mut StdRng,
) -> anyhow::Result<()> {
    running.progress(SOME).await?;
    let victims = victims(cluster, random).await?;
    pause(random, MOMENT_MAX_MS).await;
    for victim in &victims {
        cluster.kill(*victim)?;
        if random.random_bool(0.5) {
            pause(random, MOMENT_MAX_MS / 4).await;
        }
    }
    if victims.len() == 1 && random.random_bool(0.5) {
        running.progress(SOME).await?;
    }
    for victim in &victims {
        cluster.peer_mut(*victim).start()?;
    }
    if random.random_bool(0.2) {
        let again = *victims.choose(random).context("somebody is killed")?;
        pause(random, AGAIN_MAX_MS).await;
        cluster.kill(again)?;
        cluster.peer_mut(again).start()?;
    }
    if random.random_bool(0.3) {
        for victim in victims {
            cluster.await_ready(victim).await?;
        }
    }
    Ok(())
}

/// Rounds with clients of their own, and a check of all that they saw. Returns it.
async fn chapter(
    cluster: &mut Cluster,
    rounds: std::ops::Range<usize>,
    random: &mut StdRng,
) -> anyhow::Result<Vec<jepsen_tests::history::Operation>> {
    let admins = stage::admins(cluster);
    let workload = Workload::new(
        admins.clone(),
        random.random(),
        &format!("{}/", rounds.start),
    );
    let mut running = workload.start(&names(rounds.start));
    for number in rounds {
        running.use_registers(&names(number));
        let done = round(cluster, &mut running, random).await;
        done.with_context(|| format!("round {number}"))?;
    }
    for peer in 0..cluster.size() {
        cluster.await_ready(peer).await?;
    }
    running.progress(SOME).await?;
    let seen = running.stop().await?;
    let (calls, counted) = (seen.operations.len(), seen.counted.len());
    cluster.note(&format!(
        "{calls} calls and {counted} counted writes to check"
    ));
    ensure!(counted > 0, "no counted write");
    register::check(seen, &admins).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_or_done_twice_however_peers_are_killed() -> anyhow::Result<()> {
    let rounds = setting(ROUNDS_VARIABLE)?.map_or(Ok(ROUNDS), usize::try_from)?;
    let seed = setting(SEED_VARIABLE)?.unwrap_or_else(rand::random);
    eprintln!("{rounds} rounds with {SEED_VARIABLE}={seed}");
    let limit = stage::TEST_TIME_MAX + ROUND_TIME_MAX * u32::try_from(rounds)?;
    stage::run(limit, async {
        let mut cluster = Cluster::start().await?;
        let mut random = StdRng::seed_from_u64(seed);
        let mut seen = Vec::new();
        for first in (0..rounds).step_by(CHAPTER) {
            let last = rounds.min(first + CHAPTER);
            seen.extend(chapter(&mut cluster, first..last, &mut random).await?);
        }
        // What was written long ago is there too.
        let keys: std::collections::BTreeSet<String> =
            seen.iter().map(|it| it.key.clone()).collect();
        let keys: Vec<String> = keys.into_iter().collect();
        seen.extend(register::read_all(&stage::admins(&cluster), &keys).await?);
        register::check_operations(&seen)?;
        stage::agree(&cluster).await?;
        cluster.note(&format!(
            "{rounds} rounds, {} calls: all is well",
            seen.len()
        ));
        cluster.pass();
        Ok(())
    })
    .await
    .with_context(|| format!("again with {SEED_VARIABLE}={seed} {ROUNDS_VARIABLE}={rounds}"))
}
