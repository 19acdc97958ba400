//! Most volumes are gone for good: the release is made to go on from the last one, as the run-book says.

use anyhow::ensure;
use jepsen_tests::wait;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, RELEASE, Release, on_release_abreast};

/// The pod that runs the command.
const POD: &str = "recover";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_lost_most_volumes_goes_on_from_the_last_one() -> anyhow::Result<()> {
    on_release_abreast("recovered", &[], async |release| {
        if !release.kube.disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        let served = release.serve().await?;
        served.keep("before").await?;
        let lost = release.cluster().await?;
        release.scale(0).await?;
        release.await_ready(0).await?;
        let claims = [0, 1].map(|ordinal| format!("data-{RELEASE}-{ordinal}"));
        let delete = ["delete", "pvc", "--wait", &claims[0], &claims[1]];
        release.namespace.kubectl(&delete).await?;
        release.ask_recovery(&lost).await?;
        release.recover(&["--cluster-id", &lost, "--yes"]).await?;
        release.delete_recovery().await?;
        release.scale(3).await?;
        release.await_ready(3).await?;
        release.await_members(3, 0).await?;
        served.ensure_kept("before").await?;
        wait::until("the record", PATIENCE, async || {
            let now = release.cluster().await?;
            ensure!(now != lost, "still that of the lost cluster");
            Ok(())
        })
        .await?;
        served.finish(0).await
    })
    .await
}

impl Release {
    /// Runs `cluster recover` on the volume of the last peer to its end.
    async fn recover(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let claim = format!("data-{RELEASE}-2");
        self.namespace
            .apply(&pod(&self.kube.image, &claim, arguments))
            .await?;
        let phase = ["get", "pod", POD, "-o", "jsonpath={.status.phase}"];
        let ended = wait::until("the command's end", PATIENCE, async || {
            let phase = self.namespace.kubectl(&phase).await?;
            ensure!(["Succeeded", "Failed"].contains(&phase.as_str()), "{phase}");
            Ok(phase)
        })
        .await?;
        ensure!(
            ended == "Succeeded",
            "{ended}: {:?}",
            self.namespace.kubectl(&["logs", POD]).await
        );
        Ok(())
    }

    async fn delete_recovery(&self) -> anyhow::Result<()> {
        let delete = ["delete", "pod", POD, "--wait", "--ignore-not-found"];
        self.namespace.kubectl(&delete).await.map(drop)
    }

    /// Has the command say what it would do, which must name this cluster. A kubelet may throw away the words of a pod that has
    /// ended before they are read, and then tells that it has not found them; the command changes nothing, so it is asked
    /// again then.
    async fn ask_recovery(&self, cluster: &str) -> anyhow::Result<()> {
        wait::until("what the command says", PATIENCE, async || {
            self.recover(&["--dry-run"]).await?;
            let said = self.namespace.kubectl(&["logs", POD]).await;
            self.delete_recovery().await?;
            let said = said?;
            ensure!(said.contains(cluster), "{said}");
            Ok(())
        })
        .await
    }
}

/// As docs/runbooks/lost-majority.md has it.
fn pod(image: &str, claim: &str, arguments: &[&str]) -> Value {
    let command = ["cluster", "recover", "--data-dir=/var/lib/raftserve/peer"];
    let command = [&command[..], arguments].concat();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": POD },
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 10_001,
                "runAsGroup": 10_001,
                "fsGroup": 10_001,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "recover",
                "image": image,
                "args": command,
                "env": [{ "name": "RAFTSERVE_CERT_DIR", "value": "/etc/raftserve/certificates" }],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                },
                "volumeMounts": [
                    { "name": "data", "mountPath": "/var/lib/raftserve" },
                    { "name": "certificates", "mountPath": "/etc/raftserve/certificates", "readOnly": true },
                ],
            }],
            "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": claim } },
                {
                    "name": "certificates",
                    "secret": { "secretName": format!("{RELEASE}-certificates"), "defaultMode": 0o440 },
                },
            ],
        },
    })
}
