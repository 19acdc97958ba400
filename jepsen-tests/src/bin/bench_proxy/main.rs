//! What the data plane costs, beside HAProxy, nginx and Envoy in the same run.

mod client;
mod node;
mod peers;
mod report;
mod scenario;
mod upstream;

use std::path::PathBuf;

use anyhow::{Context, bail};

use peers::{Peer, Programs, Replicas};
use report::Report;
use scenario::Scenario;

const USAGE: &str = "\
Measures the processor time that a proxy takes for each request, beside other proxies in the same run. The
proxy has core 0 and one worker; clients and replicas have core 1. Programs that are not installed are left out.

Usage: bench_proxy --forward PATH [--node PATH] [--envoy PATH] [--rounds N] [--seconds N]
                   [--scenarios h1,h2c,sse,big,idle,beside,workers]
                   [--peers raftserve,hyper,node,node-hyper,haproxy,nginx,envoy,two-workers,
                            hyper-two-workers,node-two-workers,node-hyper-two-workers]

  --forward  the data plane by itself: the example `forward` of raftserve-proxy
  --node     the binary raftserve: measured as a cluster of one peer
  raftserve  the data plane as it is; hyper: with the HTTP library carrying every request
  node       the whole peer, Raft, admin API and all; node-hyper likewise
  beside     how long a small request takes while 200 answers of 64 MiB are taken
  two-workers and those that end so: the same with two workers on the core, compared with one";

struct Args {
    programs: Programs,
    rounds: usize,
    seconds: u64,
    scenarios: Vec<Scenario>,
    peers: Vec<Peer>,
}

fn parse(words: &[String]) -> anyhow::Result<Args> {
    let mut args = Args {
        programs: Programs {
            forward: PathBuf::new(),
            node: None,
            envoy: PathBuf::from("envoy"),
        },
        rounds: 3,
        seconds: 3,
        scenarios: Scenario::ALL.to_vec(),
        peers: Peer::ALL.to_vec(),
    };
    for pair in words.chunks(2) {
        let [word, value] = pair else {
            bail!("{} lacks its value\n\n{USAGE}", pair[0]);
        };
        match word.as_str() {
            "--forward" => args.programs.forward = PathBuf::from(value),
            "--node" => args.programs.node = Some(PathBuf::from(value)),
            "--envoy" => args.programs.envoy = PathBuf::from(value),
            "--rounds" => args.rounds = value.parse().context("--rounds takes a number")?,
            "--seconds" => args.seconds = value.parse().context("--seconds takes a number")?,
            "--scenarios" => {
                let named = value.split(',').map(Scenario::named);
                args.scenarios = named.collect::<Option<_>>().context(USAGE)?;
            }
            "--peers" => {
                let named = value.split(',').map(Peer::named);
                args.peers = named.collect::<Option<_>>().context(USAGE)?;
            }
            _ => bail!("unknown argument {word}\n\n{USAGE}"),
        }
    }
    if args.rounds == 0 || args.seconds == 0 || !args.programs.forward.is_file() {
        bail!("{USAGE}");
    }
    Ok(args)
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // The program is also its own replicas and its own clients, as processes of their own.
    match words.first().map(String::as_str) {
        Some("upstream") => return upstream::run(&words[1..]),
        Some("sse") => return client::sse(&words[1..]),
        Some("idle") => return client::idle(&words[1..]),
        _ => {}
    }
    if words.iter().any(|word| word == "-h" || word == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let args = parse(&words)?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let replicas = Replicas::start(folder.path())?;
    let mut report = Report::default();
    for scenario in args.scenarios {
        for round in 0..args.rounds {
            for &peer in &args.peers {
                if !scenario.concerns(peer) || (scenario == Scenario::Idle && round > 0) {
                    continue;
                }
                let started = peer.start(&args.programs, folder.path(), scenario)?;
                let Some(running) = started else {
                    report.left_out(peer);
                    continue;
                };
                let measured = scenario.measure(&running, args.seconds, folder.path())?;
                report.add(scenario, peer, measured);
            }
        }
        report.print(scenario);
        if let Some(note) = scenario.direct()? {
            println!("  without a proxy: {note}");
        }
    }
    drop(replicas);
    Ok(())
}
