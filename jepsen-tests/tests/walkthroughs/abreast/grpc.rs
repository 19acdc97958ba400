//! gRPC, east to west: every call goes through raftserve, and new servers and new peers get their share while the client
//! notices nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::stage::{PATIENCE, Walk, walk_abreast};

/// How many calls may be made after new servers are ready until each of them has had one: some ten rounds, in a second.
const CALLS_UNTIL_SHARED: usize = 100;

/// How many calls are looked at.
const CALLS: usize = 200;

/// By how much one server may have more or fewer calls than its share.
const UNEVEN_MAX: f64 = 0.1;

impl Walk {
    /// The client's last answers, as servers and how many each gave. None failed.
    async fn answered_by(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let tail = format!("--tail={CALLS}");
        let log = self.kubectl(&["logs", "-l", "app=client", &tail]).await?;
        let mut servers = BTreeMap::new();
        for line in log.lines() {
            assert!(!line.starts_with("FAILED"), "{line}");
            let (server, _) = line.split_once(": ").with_context(|| line.to_owned())?;
            *servers.entry(server.to_owned()).or_default() += 1;
        }
        Ok(servers)
    }

    /// All answers so far, as servers.
    async fn answers(&self) -> anyhow::Result<Vec<String>> {
        let log = self
            .kubectl(&["logs", "-l", "app=client", "--tail=-1"])
            .await?;
        let servers = log.lines().filter_map(|line| line.split_once(": "));
        Ok(servers.map(|(server, _)| server.to_owned()).collect())
    }

    /// Waits until calls are spread evenly over so many servers.
    async fn await_spread(&self, servers: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        let spread = wait::until("an even spread", PATIENCE, async || {
            let answers = self.answered_by().await?;
            let total: usize = answers.values().sum();
            let share = total as f64 / servers as f64;
            let even = |count: &usize| (*count as f64 - share).abs() <= share * UNEVEN_MAX;
            ensure!(
                total == CALLS && answers.len() == servers && answers.values().all(even),
                "{answers:?}"
            );
            Ok(answers)
        })
        .await?;
        eprintln!("{servers} servers after {:?}: {spread:?}", began.elapsed());
        Ok(())
    }

    async fn await_servers(&self, count: usize) -> anyhow::Result<()> {
        wait::until("servers", PATIENCE, async || {
            let pods = self.namespace.pods("app=server").await?;
            let ready = pods.iter().filter(|pod| pod.ready && !pod.going).count();
            ensure!(ready == count && pods.len() == count, "{pods:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_servers_and_new_peers_get_their_share_and_the_client_notices_nothing()
-> anyhow::Result<()> {
    walk_abreast("grpc", async |walk| {
        let program = format!("--from-file={}", walk.file("hello.py")?);
        walk.kubectl(&["create", "configmap", "hello", &program])
            .await?;
        let servers = walk.file("servers.yaml")?;
        walk.kubectl(&["apply", "-f", &servers]).await?;
        walk.install(1, &[]).await?;
        walk.await_servers(3).await?;
        let hello = walk.file("hello.yaml")?;
        walk.raftserve(&["up", &hello, "-y"]).await?;
        let client = walk.file("client.yaml")?;
        walk.kubectl(&["apply", "-f", &client]).await?;
        walk.await_spread(3).await?;
        let before = walk.namespace.pods("app=client").await?;

        let five = r#"{"spec": {"replicas": 5}}"#;
        walk.kubectl(&["patch", "deployment", "server", "-p", five])
            .await?;
        walk.await_servers(5).await?;
        let ready = walk.answers().await?.len();
        walk.await_spread(5).await?;
        let answers = walk.answers().await?;
        let servers: BTreeSet<&String> = answers.iter().collect();
        for server in &servers {
            let first = answers.iter().position(|answer| answer == *server);
            let first = first.context("it answered")?;
            ensure!(
                first <= ready + CALLS_UNTIL_SHARED,
                "{server} at {first} of {ready}"
            );
        }
        ensure!(servers.len() == 5, "{servers:?}");

        walk.kubectl(&["scale", "statefulset", "raftserve", "--replicas=3"])
            .await?;
        walk.await_peers(3).await?;
        let ready = Instant::now();
        wait::until("calls through every peer", PATIENCE, async || {
            let mut calls = Vec::new();
            for peer in walk.peers().await? {
                let metric = "raftserve_proxy_requests_total";
                calls.push(walk.metric(&peer.name, metric).await?);
            }
            ensure!(calls.iter().all(|calls| *calls > 0.0), "{calls:?}");
            Ok(())
        })
        .await?;
        eprintln!("calls through three peers after {:?}", ready.elapsed());
        // Three that each go round in turn are even as well.
        walk.await_spread(5).await?;
        let after = walk.namespace.pods("app=client").await?;
        ensure!(after == before && after[0].restarts == 0, "{after:?}");
        Ok(())
    })
    .await
}
