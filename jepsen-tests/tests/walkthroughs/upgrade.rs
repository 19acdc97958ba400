//! A release that an earlier chart made, with what is in it, goes over to this one.

use anyhow::{Context, ensure};
use jepsen_tests::kube::chart;

use crate::stage::{RELEASE, Walk, walk_as};

const SERVICE: &str = "sky-lb-ha";

/// What the version of the chart from before ends with, which is renewed at a release only.
const EARLIER: &str = "-previous";

impl Walk {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_of_an_earlier_chart_goes_over_to_this_one_and_back_with_what_is_in_it()
-> anyhow::Result<()> {
    walk_as("upgrade", "ha-load-balancer", async |walk| {
        let earlier = chart().join("tests/previous");
        walk.helm_of(&earlier, "install", &[]).await?;
        walk.await_peers(3).await?;
        ensure!(walk.chart_in_use().await?.ends_with(EARLIER));
        let service = walk.file("http_server.yaml")?;
        walk.raftserve(&["up", "-n", SERVICE, &service, "-y"])
            .await?;
        walk.put("config/limit", "20").await?;
        let replicas = walk.replicas(SERVICE).await?;
        let load = walk.load(50, &format!("/{SERVICE}/")).await?;
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
