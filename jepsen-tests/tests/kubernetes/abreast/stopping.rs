//! All peers stop, or cannot agree on who is to: that changes no membership, and whoever comes back goes on.

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::served::KEPT;
use crate::stage::{PATIENCE, RELEASE, Release, on_release_abreast};

/// How long the peers of a case that waits for its end may take to stop: the shortest that the chart takes.
const GRACE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaled_to_none_and_back_the_same_peers_go_on() -> anyhow::Result<()> {
    on_release_abreast("none", &[], async |release| {
        let cluster = release.cluster().await?;
        release.scale(0).await?;
        release.await_ready(0).await?;
        release.scale(3).await?;
        release.await_ready(3).await?;
        release.await_members(3, 0).await?;
        ensure!(release.cluster().await? == cluster, "another cluster");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_whose_removal_cannot_be_agreed_on_stay_members_and_come_back() -> anyhow::Result<()>
{
    let grace = format!("terminationGracePeriodSeconds={}", GRACE.as_secs());
    on_release_abreast("stuck", &[&grace], async |release| {
        let served = release.serve().await?;
        served.keep("before").await?;
        // The one peer that is to be kept is gone, and cannot start.
        release.replace_image("localhost/no-such-image:1").await?;
        let kept = format!("{RELEASE}-0");
        let kill = ["delete", "pod", &kept, "--grace-period=0", "--force"];
        release.namespace.kubectl(&kill).await?;
        release.scale(1).await?;
        let condemned = wait::until("pods that are to go", PATIENCE, async || {
            let pods = release.pods().await?;
            let condemned: Vec<_> = pods.into_iter().filter(|pod| pod.going).collect();
            ensure!(condemned.len() == 2, "{condemned:?}");
            Ok(condemned)
        })
        .await?;
        // They are the quorum until they end, and go on as one.
        let address = condemned[0].address.context("a pod without address")?;
        let admin = served.admin_at(address);
        wait::until("a write", GRACE / 2, async || {
            Ok(admin.put_key(KEPT, "while going", None, None).await?)
        })
        .await?;
        wait::until("their end", 2 * GRACE, async || {
            let pods = release.pods().await?;
            ensure!(pods.iter().all(|pod| pod.name == kept), "{pods:?}");
            Ok(())
        })
        .await?;

        release.replace_image(&release.kube.image).await?;
        release.scale(3).await?;
        release.namespace.kubectl(&kill).await?;
        release.await_ready(3).await?;
        release.await_members(3, 0).await?;
        served.ensure_kept("while going").await?;
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Has pods that are made from now on run another image; those that are there stay.
    async fn replace_image(&self, image: &str) -> anyhow::Result<()> {
        let patch = serde_json::json!({ "spec": {
            "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
            "template": { "spec": { "containers": [{ "name": "raftserve", "image": image }] } },
        } });
        let patch = patch.to_string();
        let patch = ["patch", "statefulset", RELEASE, "-p", &patch];
        self.namespace.kubectl(&patch).await.map(drop)
    }
}
