//! A highly available controller: its storage as asked for, and killed while it launches a replica.

use std::collections::BTreeMap;

use anyhow::ensure;
use jepsen_tests::wait;

use crate::stage::{PATIENCE, PEERS, walk_abreast};

const SERVICE: &str = "my-http-service";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_killed_while_it_launches_leaves_one_replica_that_serves() -> anyhow::Result<()>
{
    walk_abreast("ha-controller", async |walk| {
        let namespace = walk.namespace.name.as_str();
        walk.raftserve(&["check", "--before", "--namespace", namespace])
            .await?;
        walk.install(3, &[]).await?;
        let checked = walk.raftserve(&["check", "--output", "json"]).await?;
        ensure!(checked.contains("quorum"), "{checked}");
        let claims = walk
            .namespace
            .objects("persistentvolumeclaims", PEERS)
            .await?;
        ensure!(claims.len() == 3, "{claims:?}");
        for claim in &claims {
            ensure!(claim["spec"]["storageClassName"] == "standard", "{claim}");
            let size = &claim["spec"]["resources"]["requests"]["storage"];
            ensure!(size == "2Gi", "{claim}");
        }

        let leader = walk.leader().await?;
        let service = walk.file("http_service.yaml")?;
        let up = ["up", "-n", SERVICE, &service, "-y", "--async"];
        walk.raftserve(&up).await?;
        let kill = [
            "delete",
            "pod",
            &leader.name,
            "--grace-period=0",
            "--force",
            "--wait=false",
        ];
        walk.kubectl(&kill).await?;
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        wait::until("a service that is READY", PATIENCE, async || {
            for pod in walk.replicas(SERVICE).await? {
                seen.insert(pod.uid, pod.name);
            }
            let shown = walk.raftserve(&["status", SERVICE]).await?;
            ensure!(shown.contains(" READY "), "{shown}");
            Ok(())
        })
        .await?;
        walk.await_successor(&leader, 3).await?;
        for pod in walk.replicas(SERVICE).await? {
            seen.insert(pod.uid, pod.name);
        }
        ensure!(seen.len() == 1, "made more than once: {seen:?}");

        // The seed's own example: the controller's pod is deleted, and the endpoint stays.
        let endpoint = walk.endpoint(SERVICE).await?;
        let listing = walk.curl(endpoint, "/").await?;
        ensure!(listing.contains("Directory listing"), "{listing}");
        let leader = walk.leader().await?;
        walk.kubectl(&["delete", "pod", &leader.name, "--wait=false"])
            .await?;
        walk.curl(endpoint, "/").await?;
        walk.await_successor(&leader, 3).await?;
        walk.curl(endpoint, "/").await?;
        let replicas = walk.replicas(SERVICE).await?;
        ensure!(
            replicas.len() == 1 && seen.contains_key(&replicas[0].uid),
            "{replicas:?} instead of {seen:?}"
        );
        Ok(())
    })
    .await
}
