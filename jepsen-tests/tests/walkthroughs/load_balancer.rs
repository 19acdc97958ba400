//! A highly available load balancer: scaled, updated and killed, and no request fails.

use anyhow::ensure;
use jepsen_tests::wait;

use crate::stage::{PATIENCE, walk};

const PATH: &str = "/sky-lb-ha/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_balancer_is_scaled_updated_and_killed_and_no_request_fails() -> anyhow::Result<()>
{
    walk("ha-load-balancer", async |walk| {
        walk.install(3, &[]).await?;
        let service = walk.file("http_server.yaml")?;
        walk.raftserve(&["up", "-n", "sky-lb-ha", &service, "-y"])
            .await?;
        let load = walk.load(50, PATH).await?;

        for peers in [5, 3] {
            let replicas = format!("--replicas={peers}");
            walk.kubectl(&["scale", "statefulset", "raftserve", &replicas])
                .await?;
            walk.await_peers(peers).await?;
        }
        eprintln!("scaled after {:?}", load.elapsed());

        let before = walk.replicas("sky-lb-ha").await?;
        let peers = walk.peers().await?;
        let policy = walk.file("round_robin.yaml")?;
        walk.raftserve(&["update", "sky-lb-ha", &policy, "-y"])
            .await?;
        let shown = walk.raftserve(&["status", "sky-lb-ha", "-v"]).await?;
        ensure!(shown.contains("round_robin"), "{shown}");
        ensure!(walk.replicas("sky-lb-ha").await? == before, "{before:?}");
        ensure!(walk.peers().await? == peers, "{peers:?}");

        walk.helm("upgrade", &["podAnnotations.image=v2"]).await?;
        let rollout = [
            "rollout",
            "status",
            "statefulset/raftserve",
            "--timeout=180s",
        ];
        walk.kubectl(&rollout).await?;
        walk.await_peers(3).await?;
        eprintln!("updated after {:?}", load.elapsed());

        let victim = walk.peers().await?.remove(0);
        walk.kubectl(&["delete", "pod", &victim.name]).await?;
        let entrances = walk.namespace.entrances("raftserve", "http").await?;
        wait::until("an answer", PATIENCE, async || {
            walk.curl(entrances[0], PATH).await
        })
        .await?;
        walk.await_successor(&victim, 3).await?;

        let tally = load.finish(1_000).await?;
        eprintln!("ha-load-balancer: {}", tally.line());
        tally.all_good()
    })
    .await
}
