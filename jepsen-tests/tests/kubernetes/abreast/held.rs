//! A rolling update goes from the highest ordinal down, whether or not lower ones are well (kubernetes#96218): a peer whose going
//! would cost the quorum holds itself.

use anyhow::ensure;
use jepsen_tests::kube::Pod;
use jepsen_tests::wait;

use crate::stage::{PATIENCE, RELEASE, Release, on_release_abreast};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_while_a_lower_peer_is_down_waits_for_it_and_keeps_the_quorum()
-> anyhow::Result<()> {
    on_release_abreast("held", &[], async |release| {
        let served = release.serve().await?;
        served.keep("before").await?;
        let before = release.pods().await?;
        let [broken, _, last] = &before[..] else {
            anyhow::bail!("not three: {before:?}");
        };
        let image = release.kube.image.clone();
        release
            .set_image(broken, "localhost/no-such-image:1")
            .await?;
        wait::until("a peer that is down", PATIENCE, async || {
            let pods = release.pods().await?;
            ensure!(pods.iter().any(|pod| pod.uid == broken.uid && !pod.ready));
            let up = release.metric(&broken.name, "raft_is_leader").await;
            ensure!(up.is_err(), "it still answers");
            Ok(())
        })
        .await?;
        let current = release.revision().await?;
        release.upgrade(&["podAnnotations.touched=once"]).await?;
        wait::until("the update's start", PATIENCE, async || {
            ensure!(release.revision().await? != current, "not seen yet");
            Ok(())
        })
        .await?;
        // Kubernetes since 1.35 may wait by itself. Those before take the last pod down, as is done here.
        let going = release.pods().await?;
        if going.iter().any(|pod| pod.uid == last.uid && !pod.going) {
            eprintln!("held: the cluster has not taken {} down itself", last.name);
            let delete = ["delete", "pod", &last.name, "--wait=false"];
            release.namespace.kubectl(&delete).await?;
        }
        wait::until("word of the wait", PATIENCE, async || {
            let said = release.namespace.kubectl(&["logs", &last.name]).await?;
            ensure!(said.contains("without this peer there would be no quorum"));
            Ok(())
        })
        .await?;
        served.keep("while held").await?;
        let held = release.pods().await?;
        ensure!(
            held.iter().any(|pod| pod.uid == last.uid && pod.going),
            "{} was not held: {held:?}",
            last.name
        );

        release.set_image(broken, &image).await?;
        release.await_rollout().await?;
        release.await_ready(3).await?;
        release.await_members(3, 0).await?;
        for (old, new) in before.iter().zip(&release.pods().await?) {
            ensure!(old.uid != new.uid, "{} was not updated", old.name);
        }
        served.ensure_kept("while held").await?;
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Has the container of a pod that is there run another image.
    async fn set_image(&self, pod: &Pod, image: &str) -> anyhow::Result<()> {
        let (pod, image) = (format!("pod/{}", pod.name), format!("raftserve={image}"));
        let set = ["set", "image", &pod, &image];
        self.namespace.kubectl(&set).await.map(drop)
    }

    /// Of the pods that its StatefulSet would make now.
    async fn revision(&self) -> anyhow::Result<String> {
        let path = [
            "get",
            "statefulset",
            RELEASE,
            "-o",
            "jsonpath={.status.updateRevision}",
        ];
        self.namespace.kubectl(&path).await
    }
}
