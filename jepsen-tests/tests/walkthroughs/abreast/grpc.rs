//! gRPC, east to west: every call goes through raftserve, and new servers and new peers get their share while the client
//! notices nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::stage::{PATIENCE, Walk, walk_abreast};

/// How many calls may be made after new servers are ready until they are spread evenly: some ten rounds, in a second.
const CALLS_UNTIL_SHARED: usize = 100;

/// How many calls are looked at.
const CALLS: usize = 200;

/// How long all these calls may take, at the most: the client makes its calls, and its log is read, as fast as the machine
/// lets them. What is judged is counted in calls.
const SPREAD_WITHIN: Duration = Duration::from_secs(90);

/// By how much one server may have more or fewer calls than its share.
const UNEVEN_MAX: f64 = 0.1;

impl Walk {
    /// All answers so far, as servers. None failed.
    async fn answers(&self) -> anyhow::Result<Vec<String>> {
        let log = self
            .kubectl(&["logs", "-l", "app=client", "--tail=-1"])
            .await?;
        let mut servers = Vec::new();
        for line in log.lines() {
            // A panic, since a wait would only look again.
            assert!(!line.starts_with("FAILED"), "{line}");
            let (server, _) = line.split_once(": ").with_context(|| line.to_owned())?;
            servers.push(server.to_owned());
        }
        Ok(servers)
    }

    /// Looks whether calls are spread evenly over so many servers, soon after `from` calls.
    async fn ensure_spread(&self, servers: usize, from: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        let from = from + CALLS_UNTIL_SHARED;
        let answers = wait::until("so many calls", SPREAD_WITHIN, async || {
            let answers = self.answers().await?;
            let calls = answers.get(from..from + CALLS);
            let calls = calls.with_context(|| format!("{} of {from}", answers.len()))?;
            Ok(calls.to_vec())
        })
        .await?;
        let mut spread: BTreeMap<String, usize> = BTreeMap::new();
        for server in answers {
            *spread.entry(server).or_default() += 1;
        }
        let share = CALLS as f64 / servers as f64;
        let even = |count: &usize| (*count as f64 - share).abs() <= share * UNEVEN_MAX;
        ensure!(
            spread.len() == servers && spread.values().all(even),
            "after {from} calls: {spread:?}"
        );
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
        wait::until("a first call", PATIENCE, async || {
            ensure!(!walk.answers().await?.is_empty(), "none yet");
            Ok(())
        })
        .await?;
        walk.ensure_spread(3, 0).await?;
        let before = walk.namespace.pods("app=client").await?;

        let five = r#"{"spec": {"replicas": 5}}"#;
        walk.kubectl(&["patch", "deployment", "server", "-p", five])
            .await?;
        walk.await_servers(5).await?;
        let ready = walk.answers().await?.len();
        walk.ensure_spread(5, ready).await?;

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
        let ready = walk.answers().await?.len();
        walk.ensure_spread(5, ready).await?;
        let after = walk.namespace.pods("app=client").await?;
        ensure!(after == before && after[0].restarts == 0, "{after:?}");
        Ok(())
    })
    .await
}
