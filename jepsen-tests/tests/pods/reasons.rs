//! Why a replica does not run is told where its status is asked for.

use std::time::{Duration, Instant};

use anyhow::ensure;
use jepsen_tests::admin::v1::ReplicaStatus;
use jepsen_tests::wait;

use crate::stage::{SETTLE, on_namespace, peers, service};

/// How soon after the API server knows of it a reason is to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Brings up a service that cannot run, and waits for words of the pod and of the replica.
async fn told(
    test: &str,
    resources: &str,
    in_pod: &str,
    in_status: &str,
    status: ReplicaStatus,
) -> anyhow::Result<()> {
    on_namespace(test, async |namespace| {
        let cluster = peers(namespace, 1).await?;
        let yaml =
            service("web", 1).replace("{ports: 8080}", &format!("{{ports: 8080, {resources}}}"));
        cluster.admin(0).apply(&yaml).await?;
        wait::until("the API server's word", SETTLE, async || {
            let pods = serde_json::to_string(&namespace.objects("pods", "").await?)?;
            ensure!(pods.contains(in_pod), "{pods}");
            Ok(())
        })
        .await?;
        let known = Instant::now();
        wait::until("the replica's reason", SETTLE, async || {
            let replicas = cluster.admin(0).replicas().await?;
            let right = |it: &jepsen_tests::admin::v1::Replica| {
                it.status() == status && it.reason.contains(in_status)
            };
            ensure!(replicas.iter().any(right), "{replicas:?}");
            Ok(())
        })
        .await?;
        ensure!(
            known.elapsed() <= TOLD_WITHIN,
            "told after {:?}",
            known.elapsed()
        );
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_pod_security_refuses_it_is_told_and_it_comes_up_once_it_may() -> anyhow::Result<()> {
    on_namespace("security", async |namespace| {
        let level = "pod-security.kubernetes.io/enforce";
        let kube = namespace.kube();
        let restricted = format!("{level}=restricted");
        kube.kubectl(&["label", "namespace", &namespace.name, &restricted])
            .await?;
        let cluster = peers(namespace, 1).await?;
        cluster.admin(0).apply(&service("web", 1)).await?;
        wait::until("the refusal", SETTLE, async || {
            let replicas = cluster.admin(0).replicas().await?;
            let told = |it: &jepsen_tests::admin::v1::Replica| {
                it.status() == ReplicaStatus::FailedProvision
                    && it.reason.contains("violates PodSecurity")
                    && it.reason.contains("provider.namespace")
            };
            ensure!(replicas.iter().any(told), "{replicas:?}");
            Ok(())
        })
        .await?;
        let unlabel = format!("{level}-");
        kube.kubectl(&["label", "namespace", &namespace.name, &unlabel])
            .await?;
        wait::until("a ready replica", SETTLE, async || {
            let replicas = cluster.admin(0).replicas().await?;
            let ready = |it: &jepsen_tests::admin::v1::Replica| it.status() == ReplicaStatus::Ready;
            ensure!(replicas.iter().any(ready), "{replicas:?}");
            Ok(())
        })
        .await?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_no_node_can_take_it_is_told() -> anyhow::Result<()> {
    let words = ("Insufficient cpu", "ask for less in resources");
    told(
        "unschedulable",
        "cpus: 1000",
        words.0,
        words.1,
        ReplicaStatus::Provisioning,
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_its_image_cannot_be_pulled_is_told() -> anyhow::Result<()> {
    let image = "image_id: 'docker:127.0.0.1:1/no/image:v1'";
    let words = ("ErrImagePull", "check resources.image_id");
    told(
        "image",
        image,
        words.0,
        words.1,
        ReplicaStatus::Provisioning,
    )
    .await
}
