//! The volume of one peer is gone for good: the peer takes its own place under a new id.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1;

use crate::stage::on_release;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_volume_is_lost_takes_its_own_place_and_no_request_fails() -> anyhow::Result<()>
{
    on_release("replaced", &[], async |release| {
        if !release.kube.disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        let served = release.serve().await?;
        let load = release.load(served.requests(0)).await?;
        served.keep("before").await?;
        let before = served.admin().await?.members().await?;
        let pods = release.pods().await?;
        let pod = pods.iter().find(|pod| pod.name.ends_with("-1"));
        let pod = pod.context("there is no second pod")?;
        // The claim goes once its pod is gone, and so does the volume.
        let claim = format!("data-{}", pod.name);
        let claim_uid = async || {
            let uid = ["get", "pvc", &claim, "-o", "jsonpath={.metadata.uid}"];
            release.namespace.kubectl(&uid).await
        };
        let lost = claim_uid().await?;
        let delete = ["delete", "pvc", &claim, "--wait=false"];
        release.namespace.kubectl(&delete).await?;
        // Until then the peer has it, and goes on.
        release.await_ready(3).await?;
        release.await_members(3, 0).await?;
        ensure!(claim_uid().await? == lost, "the claim went before its pod");
        release
            .namespace
            .kubectl(&["delete", "pod", &pod.name])
            .await?;
        release.await_successor(pod).await?;
        release.await_members(3, 0).await?;
        ensure!(
            claim_uid().await? != lost,
            "the volume is the one that was lost"
        );
        let after = served.admin().await?.members().await?;
        let ids = |members: &[v1::Member]| members.iter().map(|it| it.id).collect::<BTreeSet<_>>();
        let (before, after) = (ids(&before), ids(&after));
        ensure!(
            before.intersection(&after).count() == 2,
            "{before:?}, {after:?}"
        );
        served.ensure_kept("before").await?;
        let tally = load.finish(release.kube.requests).await?;
        eprintln!("a lost volume: {}", tally.line());
        tally.all_good()?;
        served.finish(0).await
    })
    .await
}
