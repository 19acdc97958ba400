//! The leader's way to the API server is gone, and nothing says so: packets are dropped between them.

use std::time::{Duration, Instant};

use anyhow::ensure;
use jepsen_tests::wait;

use crate::served::Served;
use crate::stage::{PATIENCE, Release, on_release};

/// How soon it is told: once probes of a quiet connection have stayed without an answer for some 13 s.
const TOLD_WITHIN: Duration = Duration::from_secs(16);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_packets_to_the_api_server_are_dropped_says_so_and_serves_on()
-> anyhow::Result<()> {
    on_release("cut-off", &[], async |release| {
        let Some(lab) = release.kube.lab.clone().filter(|_| release.kube.disruptive) else {
            eprintln!("skipped: nobody says how a node's network is changed here");
            return Ok(());
        };
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let node = release.leader().await?.node;
        let number = node.trim_start_matches(|it: char| !it.is_ascii_digit());
        let server = release.api_server().await?;
        // What pods send and get, and not the node itself: it is to stay ready.
        let rules = async |verb| {
            for side in ["-d", "-s"] {
                let rule = ["iptables", verb, "FORWARD", side, &server, "-j", "DROP"];
                lab.exec(number, &rule).await?;
            }
            anyhow::Ok(())
        };
        let told = match rules("-I").await {
            Ok(()) => told(&served).await,
            Err(error) => Err(error),
        };
        // Whatever came of it, others need the node.
        rules("-D").await?;
        let told = told?;
        let mended = Instant::now();
        wait::until("no word of it any more", PATIENCE, async || {
            let told = served.hindrance().await?;
            ensure!(told.is_empty(), "{told:?}");
            Ok(())
        })
        .await?;
        eprintln!(
            "{node} cut off from the API server: told after {told:.1?}, and no more {:.1?} after it was mended",
            mended.elapsed()
        );
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("cut off from the API server: {}", tally.line());
        tally.all_good()?;
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Where the API server is, behind its Service.
    async fn api_server(&self) -> anyhow::Result<String> {
        let of = "kubernetes.io/service-name=kubernetes";
        let path = "jsonpath={.items[0].endpoints[0].addresses[0]}";
        let get = [
            "-n",
            "default",
            "get",
            "endpointslices",
            "-l",
            of,
            "-o",
            path,
        ];
        let address = self.kube.kubectl(&get).await?;
        ensure!(!address.is_empty(), "the API server has no address");
        Ok(address)
    }
}

/// Waits until it is told, and returns how long that took.
async fn told(served: &Served) -> anyhow::Result<Duration> {
    let began = Instant::now();
    wait::until("word of it", PATIENCE, async || {
        let told = served.hindrance().await?;
        ensure!(told.contains("does not answer"), "{told:?}");
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    ensure!(took <= TOLD_WITHIN, "told after {took:?}");
    Ok(took)
}
