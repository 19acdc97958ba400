//! Services over addresses that are there already, or are not.

use std::fs;

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::wait;

use crate::stage::{self, SETTLE, Share};

fn yaml(of: &str) -> String {
    format!(
        "name: outside\nservice: {{readiness_probe: /}}\n_metadata: {{raftserve: {{provider: {{static: {{{of}}}}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_static_service_is_empty_is_told_by_every_peer() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start().await?;
        let unresolved = yaml("addresses: ['nosuch.invalid:80']");
        cluster.admin(0).apply(&unresolved).await?;
        wait::until("the reason", SETTLE, async || {
            for peer in 0..cluster.size() {
                let found = cluster.admin(peer).service("outside").await?;
                let found = found.context("no service")?;
                let said = &found.hindrance;
                ensure!(said.contains("nosuch.invalid:80"), "peer {peer}: {said:?}");
                let kinds: Vec<_> = found.hindrances.iter().map(|it| it.kind()).collect();
                ensure!(
                    kinds == [v1::HindranceKind::Addresses],
                    "peer {peer}: {found:?}"
                );
            }
            Ok(())
        })
        .await?;
        let path = cluster.path("outside.yaml");
        fs::write(&path, unresolved)?;
        let file = path.to_str().context("a path in UTF-8")?;
        let waits = ["up", file, "-n", "waits", "-y", "--timeout", "15s"];
        let ran = cluster.cli(0).run(&waits).await?;
        ensure!(ran.stderr.contains("waits: nosuch.invalid:80"), "{ran:?}");
        let mended = yaml("addresses: ['127.0.0.1:1']");
        cluster.admin(1).update("outside", &mended).await?;
        wait::until("no reason", SETTLE, async || {
            let found = cluster.admin(2).service("outside").await?;
            let said = found.context("no service")?.hindrance;
            ensure!(said.is_empty(), "{said:?}");
            let replicas = cluster.admin(2).replicas().await?;
            ensure!(
                replicas.iter().any(|it| it.service_name == "outside"),
                "no replica"
            );
            Ok(())
        })
        .await?;
        // What nobody runs nobody stops, nor knows its output.
        let stop = ["terminate-replica", "outside", "1", "-y"];
        for (verb, code) in [(&stop[..], 2), (&["logs", "outside", "1"], 3)] {
            let ran = cluster.cli(1).run(verb).await?;
            ensure!(ran.code == Some(code), "{ran:?}");
            ensure!(ran.stderr.contains("nobody here runs it"), "{ran:?}");
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubernetes_service_is_refused_by_peers_that_know_no_kubernetes() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let cluster = Cluster::start_with(Options {
            environment: vec![("KUBECONFIG".into(), "/nonexistent".into())],
            ..Options::default()
        })
        .await?;
        let path = cluster.path("outside.yaml");
        fs::write(&path, yaml("kubernetes_service: server.prod"))?;
        let file = path.to_str().context("a path in UTF-8")?;
        let ran = cluster.cli(0).run(&["up", file, "-y"]).await?;
        ensure!(ran.code == Some(2), "{ran:?}");
        for named in ["static.kubernetes_service", "KUBECONFIG"] {
            ensure!(ran.stderr.contains(named), "{ran:?}");
        }
        ensure!(cluster.admin(0).services().await?.is_empty(), "it was made");
        cluster.pass();
        Ok(())
    })
    .await
}
