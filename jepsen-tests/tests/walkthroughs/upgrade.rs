//! A release that an earlier chart made, or an earlier program, with what is in it, goes over to this one.

use anyhow::{Context, bail, ensure};
use jepsen_tests::kube::{IMAGE_BEFORE_VARIABLE, Pod, chart};
use jepsen_tests::steady::Running;
use jepsen_tests::wait;

use crate::stage::{PATIENCE, RELEASE, Walk, walk_as};

const SERVICE: &str = "sky-lb-ha";

/// What the version of the chart from before ends with, which is renewed at a release only.
const EARLIER: &str = "-previous";

/// How often a peer that cannot follow has been started again, at least, when it is clear that nothing comes of it.
const RESTARTS: u64 = 2;

/// What `raftserve cluster status` tells of versions.
#[derive(Debug)]
struct Versions {
    /// The cluster's.
    cluster: u64,
    /// The newest that each member supports, as far as they were heard.
    newest: Vec<u64>,
}

impl Walk {
    /// Brings the service up and writes a value; then its replicas, and a steady load on it.
    async fn serve(&self) -> anyhow::Result<(Vec<Pod>, Running)> {
        let service = self.file("http_server.yaml")?;
        self.raftserve(&["up", "-n", SERVICE, &service, "-y"])
            .await?;
        self.put("config/limit", "20").await?;
        let replicas = self.replicas(SERVICE).await?;
        let load = self.load(50, &format!("/{SERVICE}/")).await?;
        Ok((replicas, load))
    }

    /// What `helm list` says of the release.
    async fn chart_in_use(&self) -> anyhow::Result<String> {
        let listed = self.namespace.helm(&["list", "--output", "json"]).await?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let chart = listed[0]["chart"].as_str();
        chart.map(str::to_owned).with_context(|| listed.to_string())
    }

    async fn roll_out(&self) -> anyhow::Result<()> {
        let set = format!("statefulset/{RELEASE}");
        self.kubectl(&["rollout", "status", &set, "--timeout=180s"])
            .await?;
        self.await_peers(3).await
    }

    async fn versions(&self) -> anyhow::Result<Versions> {
        wait::until("the versions", PATIENCE, async || {
            let status = ["cluster", "status", "--output", "json"];
            let status: serde_json::Value = serde_json::from_str(&self.raftserve(&status).await?)?;
            let releases = status["releases"].as_array().context("no releases")?;
            let newest = releases.iter().map(|it| it["newest"].as_u64());
            Ok(Versions {
                cluster: status["cluster_version"].as_u64().context("no version")?,
                newest: newest.flatten().collect(),
            })
        })
        .await
    }

    /// Has states compared, once every peer is heard. Why not, if the cluster's version does not allow it yet.
    async fn compare(&self) -> anyhow::Result<Option<String>> {
        wait::until("equal states", PATIENCE, async || {
            match self.raftserve(&["cluster", "compare"]).await {
                Ok(_) => Ok(None),
                Err(error) => {
                    let said = format!("{error:#}");
                    let is_early = said.contains("needs cluster version");
                    is_early.then_some(Some(said)).ok_or(error)
                }
            }
        })
        .await
    }

    /// Waits, while peers are replaced, for one of the newer release and one of the older, and tries to finalize.
    async fn ensure_not_final_half_way(&self) -> anyhow::Result<()> {
        wait::until("peers of both releases", PATIENCE, async || {
            let status = self.raftserve(&["cluster", "status"]).await?;
            ensure!(status.contains("once it is supported by peer"), "{status}");
            Ok(())
        })
        .await?;
        match self.raftserve(&["cluster", "finalize", "-y"]).await {
            Ok(said) => bail!("half-way: {said}"),
            Err(error) => eprintln!("half-way: {error:#}"),
        }
        Ok(())
    }

    /// Waits until the first peer that is taken back ends with the reason, again and again, while the `others` stay as they are.
    async fn ensure_refused(&self, before: &[Pod], version: u64) -> anyhow::Result<()> {
        let why = format!("the cluster is at version {version}");
        wait::until("the older peer's end", PATIENCE, async || {
            let pods = self.peers().await?;
            let last = pods.last().context("no peer")?;
            ensure!(pods.len() == before.len(), "{pods:?}");
            for (pod, before) in pods[..pods.len() - 1].iter().zip(before) {
                // Not a matter of time.
                assert!(pod.uid == before.uid, "{pods:?}");
                ensure!(pod.ready, "{pod:?}");
            }
            ensure!(last.restarts >= RESTARTS && !last.ready, "{last:?}");
            let said = self.kubectl(&["logs", &last.name, "--previous"]).await?;
            let line = said.lines().rfind(|line| line.contains(&why));
            eprintln!("{}: {}", last.name, line.with_context(|| said.clone())?);
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_of_an_earlier_chart_goes_over_to_this_one_and_back_with_what_is_in_it()
-> anyhow::Result<()> {
    walk_as("upgrade", "ha-load-balancer", async |walk| {
        let earlier = chart().join("tests/previous");
        walk.helm_of(&earlier, "install", &[]).await?;
        walk.await_peers(3).await?;
        ensure!(walk.chart_in_use().await?.ends_with(EARLIER));
        let (replicas, load) = walk.serve().await?;
        let kept = async || {
            walk.roll_out().await?;
            let now = walk.replicas(SERVICE).await?;
            ensure!(now == replicas, "{now:?} instead of {replicas:?}");
            let value = walk.raftserve(&["kv", "get", "config/limit"]).await?;
            ensure!(value.contains("20"), "{value}");
            Ok(())
        };

        walk.helm("upgrade", &[]).await?;
        kept().await?;
        ensure!(!walk.chart_in_use().await?.ends_with(EARLIER));
        eprintln!("upgraded after {:.1?}", load.elapsed());

        walk.namespace.helm(&["rollback", RELEASE, "1"]).await?;
        kept().await?;
        ensure!(walk.chart_in_use().await?.ends_with(EARLIER));
        eprintln!("rolled back after {:.1?}", load.elapsed());

        walk.helm("upgrade", &[]).await?;
        kept().await?;
        // No pod is another one for this, so nobody is rolled.
        let peers = walk.peers().await?;
        walk.helm("upgrade", &[]).await?;
        kept().await?;
        ensure!(walk.peers().await? == peers, "{peers:?}");
        let said = walk.raftserve(&["cluster", "finalize", "-y"]).await?;
        ensure!(said.contains("The cluster is at version"), "{said}");

        let tally = load.finish(1_000).await?;
        eprintln!("upgrade from an earlier chart: {}", tally.line());
        tally.all_good()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_release_before_goes_over_to_this_one_and_back_until_that_is_final()
-> anyhow::Result<()> {
    walk_as("releases", "ha-load-balancer", async |walk| {
        let Some(before) = walk.namespace.kube().image_before.clone() else {
            eprintln!("skipped: {IMAGE_BEFORE_VARIABLE} names no image of the release before");
            return Ok(());
        };
        let earlier = chart().join("tests/previous");
        walk.helm_with(&earlier, &before, "install", &[]).await?;
        walk.await_peers(3).await?;
        let (replicas, load) = walk.serve().await?;
        let told = |what: &str| eprintln!("{what} after {:.1?}", load.elapsed());
        let kept = async |limit: &str| {
            let now = walk.replicas(SERVICE).await?;
            ensure!(now == replicas, "{now:?} instead of {replicas:?}");
            let value = walk.raftserve(&["kv", "get", "config/limit"]).await?;
            ensure!(value.contains(limit), "{value}");
            Ok(())
        };
        let old = walk.versions().await?.cluster;

        walk.helm("upgrade", &[]).await?;
        walk.roll_out().await?;
        kept("20").await?;
        told("upgraded");
        let versions = walk.versions().await?;
        let newest = versions.newest.iter().copied().max().context("no version")?;
        ensure!(versions.cluster == old, "{versions:?}");
        let early = walk.compare().await?;
        early.iter().for_each(|said| eprintln!("too early: {said}"));

        walk.namespace.helm(&["rollback", RELEASE, "1"]).await?;
        walk.roll_out().await?;
        kept("20").await?;
        ensure!(walk.versions().await?.cluster == old);
        told("taken back");

        walk.helm("upgrade", &[]).await?;
        if newest > old {
            walk.ensure_not_final_half_way().await?;
        }
        walk.roll_out().await?;
        kept("20").await?;
        told("upgraded again");
        let said = walk.raftserve(&["cluster", "finalize", "-y"]).await?;
        ensure!(said.contains("The cluster is at version"), "{said}");
        let versions = walk.versions().await?;
        ensure!(versions.cluster == newest, "{versions:?}");
        let early = walk.compare().await?;
        ensure!(early.is_none(), "{early:?}");
        told(&format!("at version {newest}, which was {old}"));

        if newest > old {
            let peers = walk.peers().await?;
            walk.namespace.helm(&["rollback", RELEASE, "1"]).await?;
            walk.ensure_refused(&peers, newest).await?;
            walk.put("config/limit", "30").await?;
            told("refused");
            walk.helm("upgrade", &[]).await?;
            walk.roll_out().await?;
            kept("30").await?;
            ensure!(walk.compare().await?.is_none());
            told("mended");
        } else {
            eprintln!("not played: a way back after `cluster finalize`; both releases are at version {newest}");
        }

        let tally = load.finish(1_000).await?;
        eprintln!("between two releases: {}", tally.line());
        tally.all_good()
    })
    .await
}
