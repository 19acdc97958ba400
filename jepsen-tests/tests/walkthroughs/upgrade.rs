//! A release that an earlier chart made, with what is in it, goes over to this one.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use jepsen_tests::folders;
use jepsen_tests::kube::chart;

use crate::stage::{RELEASE, Walk, walk_as};

const VERSION: &str = "0.0.9";

const SERVICE: &str = "sky-lb-ha";

/// This chart as it was before it remembered what the values said of the number of peers, under a version of its own.
fn earlier_chart(folder: &Path) -> anyhow::Result<()> {
    folders::copy(&chart(), folder)?;
    edit(&folder.join("Chart.yaml"), |text| {
        let lines = text.lines().map(|line| match line.split_once(": ") {
            Some(("version", _)) => format!("version: {VERSION}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    })?;
    edit(&folder.join("templates/statefulset.yaml"), |text| {
        let of_today = r#"{{ include "raftserve.replicas" . }}"#;
        let text = text.replace(of_today, "{{ .Values.replicas }}");
        text.replace("raftserve.io/replicas:", "raftserve.io/earlier:")
    })
}

fn edit(file: &Path, change: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)?;
    let changed = change(&text);
    ensure!(changed != text, "nothing to change in {}", file.display());
    fs::write(file, changed).with_context(|| file.display().to_string())
}

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
        let folder = tempfile::tempdir()?;
        let earlier = folder.path().join("raftserve");
        earlier_chart(&earlier)?;
        walk.helm_of(&earlier, "install", &[]).await?;
        walk.await_peers(3).await?;
        ensure!(walk.chart_in_use().await?.ends_with(VERSION));
        let service = walk.file("http_server.yaml")?;
        walk.raftserve(&["up", "-n", SERVICE, &service, "-y"])
            .await?;
        walk.raftserve(&["kv", "put", "config/limit", "20"]).await?;
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

        walk.helm("upgrade", &["podAnnotations.touched=once"])
            .await?;
        kept().await?;
        ensure!(!walk.chart_in_use().await?.ends_with(VERSION));
        eprintln!("upgraded after {:.1?}", load.elapsed());

        walk.namespace.helm(&["rollback", RELEASE, "1"]).await?;
        kept().await?;
        ensure!(walk.chart_in_use().await?.ends_with(VERSION));
        eprintln!("rolled back after {:.1?}", load.elapsed());

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
