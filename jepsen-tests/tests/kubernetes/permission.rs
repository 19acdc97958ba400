//! The peers may not touch pods of replicas any more, and then they may again.

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::served::{PODS, REPLICAS};
use crate::stage::{PATIENCE, RELEASE, on_release};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_permission_traffic_goes_on_and_status_says_what_is_missing()
-> anyhow::Result<()> {
    on_release("forbidden", &[], async |release| {
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        let binding = format!("{RELEASE}-replicas");
        let delete = ["delete", "rolebinding", &binding];
        release.namespace.kubectl(&delete).await?;
        let pods = release.namespace.pods(PODS).await?;
        let victim = pods.first().context("no replica")?;
        let delete = ["delete", "pod", &victim.name];
        release.namespace.kubectl(&delete).await?;
        wait::until("word of it", PATIENCE, async || {
            let told = served.hindrance().await?;
            ensure!(
                told.contains("grant this peer's service account"),
                "{told:?}"
            );
            Ok(())
        })
        .await?;
        let pods = release.namespace.pods(PODS).await?;
        ensure!(pods.len() == REPLICAS - 1, "{pods:?}");
        let answered = load.progress().done;
        wait::until("more answers", PATIENCE, async || {
            let now = load.progress().done;
            ensure!(now > answered + release.kube.requests / 4, "{now}");
            Ok(())
        })
        .await?;

        // What is missing is made anew.
        release.upgrade(&[]).await?;
        served.await_ready().await?;
        wait::until("no word of it any more", PATIENCE, async || {
            let told = served.hindrance().await?;
            ensure!(told.is_empty(), "{told:?}");
            Ok(())
        })
        .await?;
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("without permission: {}", tally.line());
        tally.all_good()?;
        served.finish(1).await
    })
    .await
}
