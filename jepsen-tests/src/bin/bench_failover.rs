//! How long writes fail when the leader is killed: from SIGKILL until a write succeeds on a survivor.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::program::{Counters, Service};
use jepsen_tests::wait;

const USAGE: &str = "\
Kills the leader of three peers on loopback again and again, and measures the time until a write succeeds
on a survivor.

Usage: bench_failover [--kills N] [--profile fast|lan|wan]";

/// How long one failover may take before the run is given up.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

struct Args {
    kills: usize,
    profile: String,
}

fn parse() -> anyhow::Result<Option<Args>> {
    let mut args = Args {
        kills: 10,
        profile: "fast".to_owned(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if matches!(word.as_str(), "-h" | "--help") {
            return Ok(None);
        }
        let value = words.next();
        let value = value.with_context(|| format!("{word} lacks its value\n\n{USAGE}"))?;
        match word.as_str() {
            "--kills" => args.kills = value.parse().context("--kills takes a number")?,
            "--profile" => args.profile = value,
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
    let options = Options {
        profile: args.profile.clone(),
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(options).await?;
    let counters = Counters::create(cluster.path("count"))?;
    // Without replicas a write is a write and nothing else.
    let service = Service::new("bench", 0, &counters);
    cluster.admin(0).apply(&service.yaml()).await?;
    let mut times = Vec::with_capacity(args.kills);
    for kill in 1..=args.kills {
        let time = fail_over(&mut cluster, &service, u64::try_from(kill)?).await?;
        eprintln!("kill {kill}: {} ms", time.as_millis());
        times.push(time);
    }
    report(&args, &mut times);
    cluster.pass();
    Ok(())
}

/// Kills the leader, measures, and brings it back.
async fn fail_over(
    cluster: &mut Cluster,
    service: &Service,
    note: u64,
) -> anyhow::Result<Duration> {
    let (leader, _) = cluster.leader_and_term().await?;
    let yaml = service.clone().with_note(note).yaml();
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
    let killed = Instant::now();
    for survivor in survivors.iter().cycle() {
        if survivor.update(&service.name, &yaml).await.is_ok() {
            break;
        }
        if killed.elapsed() > FAILOVER_MAX {
            bail!("no write succeeded within {FAILOVER_MAX:?} of kill {note}");
        }
    }
    let took = killed.elapsed();
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

fn report(args: &Args, times: &mut [Duration]) {
    times.sort_unstable();
    let all: Vec<String> = times
        .iter()
        .map(|time| time.as_millis().to_string())
        .collect();
    println!(
        "profile {}, {} kills, ms: {}",
        args.profile,
        args.kills,
        all.join(" ")
    );
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
}
