//! A Kubernetes cluster is lost with all that is in it but the volumes; on another, the same services go on.

use anyhow::{Context, ensure};
use jepsen_tests::wait;

use crate::stage::{PATIENCE, PEERS, Walk, walk_abreast};

/// As `htpasswd -nb skypilot yourpassword` prints it.
const AUTH_STRING: &str = "skypilot:$apr1$serving1$L2SX10hn6.s.FF0HGEHlA/";

impl Walk {
    async fn log_in(&self) -> anyhow::Result<()> {
        let login = ["login", "--user", "skypilot", "--password-stdin"];
        self.raftserve_reading("yourpassword\n", &login)
            .await
            .map(drop)
    }

    /// The volumes of the peers, in the peers' order.
    async fn volumes(&self) -> anyhow::Result<Vec<String>> {
        let claims = self
            .namespace
            .objects("persistentvolumeclaims", PEERS)
            .await?;
        let volume =
            |claim: &serde_json::Value| claim["spec"]["volumeName"].as_str().map(str::to_owned);
        let volumes: Option<Vec<_>> = claims.iter().map(volume).collect();
        volumes.context("a claim without a volume")
    }

    async fn reclaim(&self, volume: &str, policy: &str) -> anyhow::Result<()> {
        let patch = format!(r#"{{"spec": {{"persistentVolumeReclaimPolicy": "{policy}"}}}}"#);
        self.kubectl(&["patch", "pv", volume, "-p", &patch])
            .await
            .map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kubernetes_cluster_with_the_same_volumes_serves_the_same() -> anyhow::Result<()> {
    walk_abreast("lost-cluster", async |lost| {
        if !lost.namespace.kube().disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        let credentials = format!("ingress.authCredentials={AUTH_STRING}");
        lost.install(3, &[&credentials]).await?;
        let refused = lost.raftserve(&["status"]).await;
        ensure!(refused.is_err(), "without a login: {refused:?}");
        lost.log_in().await?;
        let service = lost.file("chat.yaml")?;
        lost.raftserve(&["up", &service, "-y"]).await?;
        lost.raftserve(&["kv", "put", "config/limit", "20"]).await?;
        let volumes = lost.volumes().await?;
        ensure!(volumes.len() == 3, "{volumes:?}");
        for volume in &volumes {
            lost.reclaim(volume, "Retain").await?;
        }

        // All that was in the cluster is gone, its record of what was founded there too. The volumes are released.
        let args = ["delete", "namespace", &lost.namespace.name, "--wait"];
        lost.namespace.kube().kubectl(&args).await?;
        for volume in &volumes {
            let unclaim = r#"[{"op": "remove", "path": "/spec/claimRef"}]"#;
            lost.kubectl(&["patch", "pv", volume, "--type=json", "-p", unclaim])
                .await?;
        }

        // Neither the release's name nor its namespace is what it was.
        let found = lost
            .elsewhere("lost-cluster", "walk-found-cluster", "raftserve-again")
            .await?;
        let same = format!("storage.volumeNames={{{}}}", volumes.join(","));
        found.install(3, &[&credentials, &same]).await?;
        ensure!(found.volumes().await? == volumes);
        found.log_in().await?;
        let kept = found.raftserve(&["kv", "get", "config/limit"]).await?;
        ensure!(kept.contains("20"), "{kept}");
        wait::until("the service's replicas", PATIENCE, async || {
            let shown = found.raftserve(&["status", "chat"]).await?;
            ensure!(
                shown.contains(" READY ") && shown.contains("2/2"),
                "{shown}"
            );
            Ok(())
        })
        .await?;
        let endpoint = found.endpoint("chat").await?;
        found.curl(endpoint, "/").await?;

        for volume in &volumes {
            found.reclaim(volume, "Delete").await?;
        }
        found.namespace.delete().await?;
        // Not needed any more, but a walk-through ends with its namespace.
        lost.namespace
            .kube()
            .kubectl(&["create", "namespace", &lost.namespace.name])
            .await
            .map(drop)
    })
    .await
}
