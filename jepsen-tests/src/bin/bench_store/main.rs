//! Writes and reads per second, their latency and what they cost, beside etcd on the same disk; and writes while peers
//! take snapshots of a large state.

mod crowd;
mod grpc;
mod load;
mod raw;
mod report;
mod snapshots;
mod system;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use load::{Operation, Step};
use report::Report;
use system::{Running, System};

/// The load generator shares the processors with what it measures, so it is to cost little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Measures linearizable writes and reads of a cluster of three on loopback, beside those of etcd (Debian's
package etcd-server) on the same disk, with one load generator for both. Systems take turns, and each turn
begins with an empty cluster.

Usage: bench_store [--rounds N] [--seconds N] [--systems etcd,grpc,raw] [--clients 1,16,128]
                   [--raw PATH]
       bench_store --sessions N [--snapshots N] [--rate N]

  etcd  three etcd members, gRPC
  grpc  three peers of raftserve, gRPC (raftserve.v1.KeyValue)
  raw   three peers' log and state behind bare frames instead of gRPC: the program raw_frames, at PATH

With --sessions it measures three peers of raftserve alone, whose state has 10,000 replicas and so many sessions:
the latency of writes over gRPC, so many a second (2,000), while snapshots are taken, and while none is, until there
were so many snapshots.";

/// Connections of the load generator, if it has as many clients: the same number to every system.
const CONNECTIONS: usize = 16;

/// Requests before a measurement begins, so that connections are open and buffers grown.
const WARM_UP: Duration = Duration::from_millis(700);

struct Args {
    rounds: usize,
    seconds: u64,
    systems: Vec<String>,
    clients: Vec<usize>,
    raw: Option<PathBuf>,
    sessions: Option<u64>,
    snapshots: usize,
    rate: u32,
}

fn parse() -> anyhow::Result<Option<Args>> {
    let mut args = Args {
        rounds: 3,
        seconds: 5,
        systems: ["etcd", "grpc", "raw"].map(str::to_owned).to_vec(),
        clients: vec![1, 16, 128],
        raw: None,
        sessions: None,
        snapshots: 15,
        rate: 2_000,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if matches!(word.as_str(), "-h" | "--help") {
            return Ok(None);
        }
        let value = words.next();
        let value = value.with_context(|| format!("{word} lacks its value\n\n{USAGE}"))?;
        let list = || value.split(',').map(str::to_owned);
        match word.as_str() {
            "--rounds" => args.rounds = value.parse().context("--rounds takes a number")?,
            "--seconds" => args.seconds = value.parse().context("--seconds takes a number")?,
            "--systems" => args.systems = list().collect(),
            "--clients" => {
                let numbers: Result<_, _> = list().map(|number| number.parse()).collect();
                args.clients = numbers.context("--clients takes numbers")?;
            }
            "--sessions" => {
                args.sessions = Some(value.parse().context("--sessions takes a number")?)
            }
            "--snapshots" => {
                args.snapshots = value.parse().context("--snapshots takes a number")?
            }
            "--rate" => args.rate = value.parse().context("--rate takes a number")?,
            "--raw" => args.raw = Some(PathBuf::from(value)),
            _ => bail!("unknown argument {word}\n\n{USAGE}"),
        }
    }
    let some = args.rounds > 0 && args.seconds > 0 && args.snapshots > 0 && args.rate > 0;
    if !some || args.clients.contains(&0) {
        bail!("numbers must be at least 1\n\n{USAGE}");
    }
    Ok(Some(args))
}

fn systems(args: &Args) -> anyhow::Result<Vec<System>> {
    let system = |name: &String| match name.as_str() {
        "etcd" => Ok(System::Etcd),
        "grpc" => Ok(System::Grpc),
        "raw" => {
            let path = args.raw.clone();
            path.map(System::Raw).context("raw needs --raw PATH")
        }
        _ => bail!("unknown system {name}\n\n{USAGE}"),
    };
    args.systems.iter().map(system).collect()
}

fn main() -> anyhow::Result<()> {
    let Some(args) = parse()? else {
        println!("{USAGE}");
        return Ok(());
    };
    // Clients have threads of their own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(&args))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(sessions) = args.sessions {
        return snapshots::run(sessions, args.snapshots, args.rate).await;
    }
    let systems = systems(args)?;
    let mut steps: Vec<Step> = args
        .clients
        .iter()
        .map(|clients| Step::new(Operation::Put, *clients))
        .collect();
    steps.extend(
        args.clients
            .iter()
            .max()
            .map(|most| Step::new(Operation::Get, *most)),
    );
    let mut report = Report::default();
    for round in 1..=args.rounds {
        for system in &systems {
            let running = Running::start(system).await?;
            for step in &steps {
                let seconds = Duration::from_secs(args.seconds);
                let figures = load::measure(&running, *step, CONNECTIONS, WARM_UP, seconds)
                    .await
                    .with_context(|| format!("{} of {}", step, system.name()))?;
                eprintln!("round {round}, {}, {step}: {figures}", system.name());
                report.add(system.name(), *step, figures);
            }
            running.stop().await?;
        }
    }
    if args.systems.iter().any(|name| name == "etcd") {
        println!("{}", jepsen_tests::etcd::Etcd::version()?);
    }
    println!("{}", report.render());
    Ok(())
}
