//! Requests that saturate every core cost no election.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::check::{clean, no_failure_through_live_peers};
use jepsen_tests::history::summary;
use jepsen_tests::program::Service;

use crate::stage::{self, Share, bring_up};

/// How long the short form lasts.
const SECONDS: u64 = 10;

/// Asks for another length, as `just saturate` does.
const SECONDS_VARIABLE: &str = "RAFTSERVE_SATURATE_SECONDS";

/// Workers without any pause: many times what two cores can serve.
const WORKERS: usize = 64;

/// Less than this part of the machine's time in use is no saturation, and proves nothing.
const BUSY_MIN: f64 = 0.9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_saturate_the_machine_cost_no_election() -> anyhow::Result<()> {
    stage::run(Share::Whole, async {
        let (cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters);
        bring_up(&cluster, &service).await?;
        let before = cluster.leader_and_term().await?;
        let cpu = CpuTimes::read()?;
        let mut load = stage::load(&cluster, &service);
        load.workers = WORKERS;
        let running = load.start();
        let start = Instant::now();
        // The time under load is what is asked for here, not a condition.
        tokio::time::sleep(Duration::from_secs(seconds()?)).await;
        let busy = CpuTimes::read()?.busy_since(&cpu);
        let took = start.elapsed();
        let history = running.stop().await?;
        let after = cluster.leader_and_term().await?;
        let rate = history.len() as f64 / took.as_secs_f64();
        eprintln!(
            "{}, {rate:.0}/s, {:.0} % busy",
            summary(&history),
            busy * 100.0
        );
        ensure!(
            before == after,
            "leader and term were {before:?}, are {after:?}"
        );
        ensure!(busy > BUSY_MIN, "only {:.0} % busy", busy * 100.0);
        clean("requests", &no_failure_through_live_peers(&history, &[]))?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test has no command line of its own"
)]
fn seconds() -> anyhow::Result<u64> {
    match std::env::var(SECONDS_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SECONDS_VARIABLE}={text}")),
        Err(_) => Ok(SECONDS),
    }
}

/// What the processors did since boot, in ticks.
#[derive(Debug)]
struct CpuTimes {
    idle: u64,
    all: u64,
}

impl CpuTimes {
    fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let line = text.lines().next().context("a line for all processors")?;
        let ticks: Vec<u64> = line
            .split_ascii_whitespace()
            .skip(1)
            .map_while(|field| field.parse().ok())
            // What guests used is counted in the first two already.
            .take(8)
            .collect();
        let idle = ticks.get(3..5).context("idle and iowait")?.iter().sum();
        Ok(Self {
            idle,
            all: ticks.iter().sum(),
        })
    }

    fn busy_since(&self, before: &Self) -> f64 {
        let all = (self.all - before.all).max(1) as f64;
        1.0 - (self.idle - before.idle) as f64 / all
    }
}
