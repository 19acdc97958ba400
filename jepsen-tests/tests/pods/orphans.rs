//! What a paused old leader might leave behind.

use anyhow::ensure;
use jepsen_tests::wait;
use serde_json::json;

use crate::stage::{SETTLE, on_namespace, peers, ready, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_the_log_does_not_want_never_starts_and_is_reaped() -> anyhow::Result<()> {
    on_namespace("orphan", async |namespace| {
        let cluster = peers(namespace, 1).await?;
        cluster.admin(0).apply(&service("web", 1)).await?;
        ready(&cluster, 1).await?;
        // The late request of a leader that was paused: as the pod that there is, under a number that was stopped.
        let mut late = namespace.objects("pods", "").await?.remove(0);
        late["metadata"] = json!({
            "name": "web-late",
            "labels": late["metadata"]["labels"],
            "annotations": late["metadata"]["annotations"],
        });
        late["metadata"]["labels"]["raftserve.io/replica"] = "77".into();
        late["spec"]["schedulingGates"] = json!([{ "name": "raftserve.io/agreed" }]);
        for set_since in ["nodeName", "tolerations"] {
            late["spec"]
                .as_object_mut()
                .expect("a spec")
                .remove(set_since);
        }
        late.as_object_mut().expect("a pod").remove("status");
        namespace.apply(&late).await?;
        wait::until("the orphan's end", SETTLE, async || {
            let pods = namespace.objects("pods", "").await?;
            let orphan = pods
                .iter()
                .find(|pod| pod["metadata"]["name"] == "web-late");
            if let Some(orphan) = orphan {
                assert!(
                    orphan["spec"]["nodeName"].is_null(),
                    "it was let run: {orphan}"
                );
            }
            ensure!(orphan.is_none(), "still there");
            Ok(())
        })
        .await?;
        ensure!(
            ready(&cluster, 1).await?.contains(&1),
            "the right one is left"
        );
        cluster.pass();
        Ok(())
    })
    .await
}
