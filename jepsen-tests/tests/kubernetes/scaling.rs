//! `kubectl scale`, up and down, under load: members follow, and nobody notices.

use anyhow::ensure;

use crate::stage::on_release;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_come_and_go_with_the_statefulset_and_no_request_fails() -> anyhow::Result<()> {
    on_release("scale", &["profile=lan"], async |release| {
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let five = ["profile=lan", "replicas=5"];
        let settled = async |peers, voters, learners| {
            release.await_ready(peers).await?;
            release.await_members(voters, learners).await?;
            eprintln!("{peers} peers after {:?}", load.progress().elapsed);
            anyhow::Ok(())
        };
        release.upgrade(&five).await?;
        settled(5, 5, 0).await?;
        // Whoever has a vote keeps it, also where that makes their number even.
        for peers in [4, 3, 1, 3] {
            release.scale(peers).await?;
            settled(peers, peers, 0).await?;
        }
        // Scaled by another tool, the number stays what it is.
        release.upgrade(&five).await?;
        ensure!(release.wanted().await? == 3, "helm upgrade scaled");
        // Of four, the last stays a learner; it is removed like the others.
        release.scale(4).await?;
        settled(4, 3, 1).await?;
        for peers in [2, 3] {
            release.scale(peers).await?;
            settled(peers, peers, 0).await?;
        }
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("kubectl scale: {}", tally.line());
        tally.all_good()?;
        served.finish(0).await
    })
    .await
}
