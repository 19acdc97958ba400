//! How long writes fail when the leader is killed: from SIGKILL until a write succeeds on a survivor.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::etcd::{Etcd, Timing, pb};
use jepsen_tests::wait;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const USAGE: &str = "\
Kills the leader of three peers on loopback again and again, and measures the time until a write succeeds
on a survivor. With --etcd the same is done to three etcd members in turn, at equal settings (heartbeat
100 ms, election 1 s; the profile is `etcd` then).

Usage: bench_failover [--kills N] [--profile fast|lan|wan|etcd] [--etcd]";

/// How long one failover may take before the run is given up.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

/// A write is begun so often, on one survivor after the other, until one succeeds: what is lost on the way to
/// the dead leader then does not hide when the next one leads.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// A write that has no answer for so long is given up.
const TRY_MAX: Duration = Duration::from_secs(2);

struct Args {
    kills: usize,
    profile: Option<String>,
    etcd: bool,
}

fn parse() -> anyhow::Result<Option<Args>> {
    let mut args = Args {
        kills: 10,
        profile: None,
        etcd: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--etcd" => {
                args.etcd = true;
                continue;
            }
            _ => {}
        }
        let value = words.next();
        let value = value.with_context(|| format!("{word} lacks its value\n\n{USAGE}"))?;
        match word.as_str() {
            "--kills" => args.kills = value.parse().context("--kills takes a number")?,
            "--profile" => args.profile = Some(value),
            _ => bail!("unknown argument {word}\n\n{USAGE}"),
        }
    }
    if args.kills == 0 {
        bail!("--kills must be at least 1");
    }
    Ok(Some(args))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let Some(args) = parse()? else {
        println!("{USAGE}");
        return Ok(());
    };
    let default = if args.etcd { "etcd" } else { "fast" };
    let profile = args.profile.unwrap_or_else(|| default.to_owned());
    let options = Options {
        profile: profile.clone(),
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(options).await?;
    let mut etcd = match args.etcd {
        true => Some(Etcd::start(Timing::default()).await?),
        false => None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for kill in 1..=args.kills {
        let time = fail_over(&mut cluster).await?;
        eprintln!("kill {kill}: {} ms", time.as_millis());
        ours.push(time);
        if let Some(etcd) = &mut etcd {
            let time = fail_over_etcd(etcd).await?;
            eprintln!("kill {kill}, etcd: {} ms", time.as_millis());
            theirs.push(time);
        }
    }
    report(&format!("profile {profile}"), &mut ours);
    if etcd.is_some() {
        report(&Etcd::version()?, &mut theirs);
        let ratio = quantile(&ours, 0.5).as_secs_f64() / quantile(&theirs, 0.5).as_secs_f64();
        println!("ratio of medians {ratio:.2}");
    }
    cluster.pass();
    Ok(())
}

/// The time from now until a write succeeds. `write` begins one on a survivor, given by its place.
async fn first_write<F, W>(survivors: usize, write: W) -> anyhow::Result<Duration>
where
    F: Future<Output = bool> + Send + 'static,
    W: Fn(usize) -> F,
{
    let begun = Instant::now();
    let mut tries = JoinSet::new();
    let mut clock = interval(TRY_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut next = 0;
    loop {
        tokio::select! {
            Some(ended) = tries.join_next() => {
                if matches!(ended, Ok(Ok(true))) {
                    return Ok(begun.elapsed());
                }
            }
            _ = clock.tick() => {
                tries.spawn(tokio::time::timeout(TRY_MAX, write(next % survivors)));
                next += 1;
            }
        }
        if begun.elapsed() > FAILOVER_MAX {
            bail!("no write succeeded within {FAILOVER_MAX:?}");
        }
    }
}

/// Kills the leader, measures, and brings it back.
async fn fail_over(cluster: &mut Cluster) -> anyhow::Result<Duration> {
    let (leader, _) = cluster.leader_and_term().await?;
    let survivors: Vec<_> = cluster
        .started()
        .into_iter()
        .filter(|index| *index != leader)
        .map(|index| cluster.admin(index))
        .collect();
    for survivor in &survivors {
        // Connected before the clock starts, as a client that is at work would be.
        survivor.status().await?;
    }
    cluster.kill(leader)?;
    let took = first_write(survivors.len(), |at| {
        let survivor = survivors[at].clone();
        async move { survivor.put_key("bench", "v", None, None).await.is_ok() }
    })
    .await?;
    cluster.restart(leader).await?;
    wait::until("the killed peer to catch up", PATIENCE, async || {
        let (now, _) = cluster.leader_and_term().await?;
        let goal = cluster.admin(now).status().await?.applied_index;
        let applied = cluster.admin(leader).status().await?.applied_index;
        anyhow::ensure!(applied >= goal, "{applied} of {goal}");
        Ok(())
    })
    .await?;
    Ok(took)
}

/// As `fail_over`.
async fn fail_over_etcd(etcd: &mut Etcd) -> anyhow::Result<Duration> {
    let put = || pb::PutRequest {
        key: b"bench".to_vec(),
        value: b"v".to_vec(),
    };
    let leader = etcd.leader().await?;
    let mut survivors = Vec::new();
    for index in etcd.running().into_iter().filter(|index| *index != leader) {
        let mut client = etcd.client(index).await?;
        client.put(put()).await?;
        survivors.push(client);
    }
    etcd.kill(leader)?;
    let took = first_write(survivors.len(), |at| {
        let mut client = survivors[at].clone();
        async move { client.put(put()).await.is_ok() }
    })
    .await?;
    etcd.start_member(leader)?;
    etcd.leader().await?;
    // Its own word that it has caught up: a linearizable read.
    let mut client = etcd.client(leader).await?;
    let read = pb::RangeRequest {
        key: b"bench".to_vec(),
        range_end: Vec::new(),
    };
    client.range(read).await?;
    Ok(took)
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let all: Vec<String> = times
        .iter()
        .map(|time| time.as_millis().to_string())
        .collect();
    println!("{name}, {} kills, ms: {}", times.len(), all.join(" "));
    println!(
        "median {} ms, p99 {} ms, max {} ms",
        quantile(times, 0.5).as_millis(),
        quantile(times, 0.99).as_millis(),
        quantile(times, 1.0).as_millis()
    );
}

/// The least time that at least this part of the sorted times does not exceed; for a median of an even
/// number, the mean of the middle two.
fn quantile(sorted: &[Duration], part: f64) -> Duration {
    if part == 0.5 && sorted.len().is_multiple_of(2) {
        return (sorted[sorted.len() / 2 - 1] + sorted[sorted.len() / 2]) / 2;
    }
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_many() {
        let ms = |list: &[u64]| -> Vec<Duration> {
            list.iter().copied().map(Duration::from_millis).collect()
        };
        let ten = ms(&[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]);
        assert_eq!(quantile(&ten, 0.5), Duration::from_millis(6));
        assert_eq!(quantile(&ten, 0.99), Duration::from_millis(11));
        assert_eq!(quantile(&ms(&[3]), 0.5), Duration::from_millis(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_ends_does_not_hold_up_the_next() {
        let write = |at| async move {
            match at {
                0 => std::future::pending().await,
                _ => true,
            }
        };
        assert!(first_write(2, write).await.is_ok());
    }
}
