//! `provider.namespace`: peers in one namespace, and the pods of their replicas in another one.

use anyhow::ensure;
use jepsen_tests::kube::Kube;

use crate::served::PODS;
use crate::stage::{RATE, on_release_abreast};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_run_in_the_namespace_that_is_theirs_and_go_with_their_service()
-> anyhow::Result<()> {
    let Some(kube) = Kube::named().await? else {
        return Ok(());
    };
    let theirs = kube.namespace("elsewhere-replicas").await?;
    let setting = format!("provider.namespace={}", theirs.name);
    let settings = [&*setting];
    let played = on_release_abreast("elsewhere", &settings, async |release| {
        let served = release.serve_in(&theirs).await?;
        let beside = release.namespace.pods(PODS).await?;
        ensure!(beside.is_empty(), "in the peers' namespace: {beside:?}");
        let load = release.load(served.requests(0)).await?;
        load.finish(RATE as usize).await?.all_good()?;
        // A leader of its own finds them, too.
        let leader = release.leader().await?;
        let delete = ["delete", "pod", &leader.name];
        release.namespace.kubectl(&delete).await?;
        release.await_successor(&leader).await?;
        served.finish(0).await
    });
    if let Err(error) = played.await {
        theirs.give_up().await;
        return Err(error);
    }
    theirs.delete().await
}
