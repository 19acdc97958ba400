//! Two of three peers are gone.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::check::{clean, every_request_answered};
use jepsen_tests::cluster::PATIENCE;
use jepsen_tests::http;
use jepsen_tests::load::Load;
use jepsen_tests::program::Service;
use jepsen_tests::wait;
use tonic::Code;

use crate::stage::{self, SETTLE, Share, bring_up};

/// A peer answers within two seconds that there is no quorum; the rest is for a loaded machine.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The exit code of the command line for it, as `raftserve --help` says.
const EXIT_UNAVAILABLE: i32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_are_refused_soon_and_traffic_flows() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let (mut cluster, counters) = stage::three_peers().await?;
        let service = Service::new("web", 2, &counters);
        bring_up(&cluster, &service).await?;
        let leader = cluster.leader().await?;
        let survivor = cluster.another(leader)?;
        let third = 3 - leader - survivor;
        cluster.kill(leader)?;
        cluster.kill(third)?;

        let mut load = Load::new(vec![cluster.peer(survivor).target()], "/web/");
        load.pace = Duration::from_millis(5);
        let running = load.start();
        let admin = cluster.admin(survivor);
        let file = cluster.path("update.yaml");
        std::fs::write(&file, service.clone().with_note(1).yaml())?;
        for _ in 0..3 {
            let start = Instant::now();
            let refused = admin
                .update(&service.name, &service.clone().with_note(1).yaml())
                .await
                .err()
                .context("a write without a quorum was acknowledged")?;
            let took = start.elapsed();
            ensure!(refused.code() == Code::Unavailable, "{refused:?}");
            ensure!(took < ANSWER_MAX, "{refused:?} after {took:?}");
            let read = admin.service(&service.name).await;
            ensure!(read.is_err(), "a confirmed read without a quorum: {read:?}");
        }
        let file = file.to_str().context("a path in UTF-8")?;
        let cli = cluster.cli(survivor);
        let ran = cli.run(&["update", "web", file, "-y", "--async"]).await?;
        ensure!(ran.code == Some(EXIT_UNAVAILABLE), "{ran:?}");
        ensure!(ran.stderr.contains("error:"), "{ran:?}");
        let read = cli.run(&["status", "web", "--output", "json"]).await?;
        let told: serde_json::Value = serde_json::from_str(&read.stderr)?;
        ensure!(
            read.code == Some(EXIT_UNAVAILABLE)
                && told["error"]["exit_code"] == EXIT_UNAVAILABLE
                && told["error"]["reason"] == "NO_QUORUM",
            "{read:?}"
        );
        let message = told["error"]["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("cannot be told") && !message.contains("changed"),
            "a read changes nothing: {message}"
        );
        let stale = cli.json(&["status", "web", "--stale"]).await?;
        ensure!(stale["services"][0]["name"] == "web", "{stale}");
        let status = cli.json(&["cluster", "status"]).await?;
        ensure!(status["quorum"] == false, "{status}");
        let ops = cluster.peer(survivor).setup.ports.ops;
        for (path, expected) in [("/healthz/ready", true), ("/healthz/quorum", false)] {
            let reply = http::get(ops, path).await;
            let is_ok = matches!(&reply, Ok(reply) if reply.status == 200);
            ensure!(is_ok == expected, "{path}: {reply:?}");
        }
        let history = running.stop().await?;
        ensure!(history.len() > 100, "{} requests", history.len());
        clean("traffic", &every_request_answered(&history))?;

        cluster.restart(leader).await?;
        cluster.restart(third).await?;
        let version = wait::until("a write", PATIENCE, async || {
            let yaml = service.clone().with_note(2).yaml();
            Ok(admin.update(&service.name, &yaml).await?.version)
        })
        .await?;
        // The refused ones may have been carried out after all, once the quorum was back.
        ensure!((2..=6).contains(&version), "version {version}");
        cluster.settled(&service.name, SETTLE).await?;
        cluster.pass();
        Ok(())
    })
    .await
}
