//! Five replicas behind a port of all nodes: everything is answered, and by each as often as by the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use jepsen_tests::{binary, http, wait};
use tokio::process::Command;

use crate::stage::{OPS, PATIENCE, Walk, walk};

/// The port of all nodes that the example's values name.
const PORT: u16 = 32_000;

/// Clients at a time, as the example's `siege` has them.
const CLIENTS: usize = 10;

/// How long they ask where `siege` cannot.
const TIME: Duration = Duration::from_secs(30);

/// What a peer tells of the requests that it has sent to a replica begins so.
const SENT: &str = "raftserve_proxy_replica_requests_total{service=\"ml-app\"";

/// By how much the busiest may have more than the idlest, of what each should have.
const SPREAD_MAX: f64 = 0.05;

/// More than turns that are taken exactly explain: from here on the peers are asked why.
const SPREAD_TOLD: f64 = 0.01;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_clients_are_all_answered_and_by_each_replica_alike() -> anyhow::Result<()> {
    walk("five-replicas", async |walk| {
        // The cluster may have drawn it for a Service of an earlier case, which is about to go.
        wait::until("the port of all nodes", PATIENCE, async || {
            let ports = "jsonpath={.items[*].spec.ports[*].nodePort}";
            let taken = walk
                .kubectl(&["get", "services", "-A", "-o", ports])
                .await?;
            let mut taken = taken.split_whitespace();
            ensure!(!taken.any(|port| port == PORT.to_string()), "it is taken");
            Ok(())
        })
        .await?;
        walk.install(3, &[]).await?;
        let service = walk.file("ml-app.yaml")?;
        walk.raftserve(&["up", &service, "-y"]).await?;
        ensure!(walk.replicas("ml-app").await?.len() == 5);
        let nodes = walk.namespace.kube().nodes().await?;
        let node = nodes.first().context("no node")?.1;
        let at = SocketAddr::new(node, PORT);
        wait::until("the Service", PATIENCE, async || {
            walk.curl(at, "/test").await
        })
        .await?;

        let requests = match binary::may_have("siege") {
            true => besiege(walk, at).await?,
            false => ask(at).await?,
        };
        ensure_even(walk, &requests).await
    })
    .await
}

/// How many requests of `siege` each replica was sent.
async fn besiege(walk: &Walk, at: SocketAddr) -> anyhow::Result<BTreeMap<String, usize>> {
    let before = sent(walk).await?;
    let hits = siege(at).await?;
    let mut requests = sent(walk).await?;
    for (replica, count) in &mut requests {
        *count -= before.get(replica).copied().unwrap_or_default();
    }
    eprintln!("five-replicas: {hits} of siege: {requests:?}");
    let sum: usize = requests.values().sum();
    ensure!(sum >= hits, "{hits} answered, {sum} sent");
    Ok(requests)
}

/// As many clients by themselves, which see who answers.
async fn ask(at: SocketAddr) -> anyhow::Result<BTreeMap<String, usize>> {
    let end = Instant::now() + TIME;
    let clients = (0..CLIENTS).map(|_| async {
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        while Instant::now() < end {
            // A connection each, as siege makes them.
            let reply = http::get(at, "/test").await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            ensure!(reply.status == 200, "{}", reply.status);
            let answer = String::from_utf8_lossy(&reply.body).trim().to_owned();
            *answers.entry(answer).or_default() += 1;
        }
        anyhow::Ok(answers)
    });
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for (answer, count) in try_join_all(clients).await?.into_iter().flatten() {
        *answers.entry(answer).or_default() += count;
    }
    eprintln!("five-replicas: {answers:?}");
    Ok(answers)
}

/// Looks whether each of the five has had about as much as the others.
async fn ensure_even(walk: &Walk, requests: &BTreeMap<String, usize>) -> anyhow::Result<()> {
    ensure!(requests.len() == 5, "{requests:?}");
    let most = requests.values().max().copied().unwrap_or_default();
    let least = requests.values().min().copied().unwrap_or_default();
    let each = requests.values().sum::<usize>() as f64 / 5.0;
    let spread = (most - least) as f64 / each;
    if spread > SPREAD_TOLD {
        tell_of_replicas(walk).await?;
    }
    ensure!(spread <= SPREAD_MAX, "{spread:.3}: {requests:?}");
    Ok(())
}

/// How many requests the peers have sent to each replica so far.
async fn sent(walk: &Walk) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut sent: BTreeMap<String, usize> = BTreeMap::new();
    for peer in walk.peers().await? {
        let text = walk.namespace.pod_path(&peer.name, OPS, "/metrics").await?;
        let lines = text.lines();
        for line in lines.filter_map(|line| line.strip_prefix(SENT)) {
            let (labels, count) = line.rsplit_once(' ').context("no value")?;
            *sent.entry(labels.to_owned()).or_default() += count.parse::<usize>()?;
        }
    }
    Ok(sent)
}

/// Why some got less than others, as far as the peers know.
async fn tell_of_replicas(walk: &Walk) -> anyhow::Result<()> {
    for peer in walk.peers().await? {
        let text = walk.namespace.pod_path(&peer.name, OPS, "/metrics").await?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let telling = ["ejections", "failures", "retries", "replica_requests_total"];
        for line in lines.filter(|line| telling.iter().any(|what| line.contains(what))) {
            eprintln!("{}: {line}", peer.name);
        }
    }
    Ok(())
}

/// Runs the example's own command: how many requests were answered.
async fn siege(at: SocketAddr) -> anyhow::Result<usize> {
    let url = format!("http://{at}/test");
    let ran = Command::new("siege")
        .args(["-c", "10", "-t", "30s", &url])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(Duration::from_secs(60), ran).await??;
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    let availability = said
        .lines()
        .find(|line| line.to_lowercase().contains("availability"));
    eprintln!("siege: {}", availability.unwrap_or(&said));
    ensure!(
        availability.is_some_and(|line| line.contains("100.00")),
        "{said}"
    );
    let hits = said.lines().find_map(|line| {
        let (what, count) = line.split_once(':')?;
        let transactions = what.trim().to_lowercase().contains("transactions");
        transactions.then(|| count.trim().split(|it: char| !it.is_ascii_digit()).next())?
    });
    let hits: usize = hits.with_context(|| said.to_string())?.parse()?;
    ensure!(hits > 0, "{said}");
    Ok(hits)
}
