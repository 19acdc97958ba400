//! A service over pods that somebody else runs, as the EndpointSlices of their Service tell.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use jepsen_tests::kube::Namespace;
use jepsen_tests::wait;
use serde_json::json;

use crate::stage::{SETTLE, ask, on_namespace, peers, ready};

/// How soon a new pod is to get traffic after its Service has it, and one that goes none any more.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);

const STATIC: &str = "\
name: theirs
service: SERVICE
_metadata: {raftserve: {drain_timeout_seconds: 1, provider: {static: UPSTREAMS}}}
";

/// Pods that answer with their names, and a Service for those that are ready.
fn objects(replicas: u32) -> serde_json::Value {
    let program = "echo $HOSTNAME > /tmp/index.html; cd /tmp; exec python3 -m http.server 8080";
    let labels = json!({ "app": "theirs" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "theirs" }, "spec": {
            "clusterIP": "None", "selector": labels, "ports": [{ "port": 8080 }],
        } },
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "theirs" }, "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main", "image": "docker.io/library/python:3.11-slim",
                    "command": ["/bin/sh", "-c", program],
                    "lifecycle": { "preStop": { "sleep": { "seconds": 4 } } },
                    "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 },
                }],
            } },
        } },
    ] })
}

/// The addresses that the Service has ready.
async fn endpoints(namespace: &Namespace) -> anyhow::Result<usize> {
    let of = "kubernetes.io/service-name=theirs";
    let slices = namespace.objects("endpointslices", of).await?;
    let ready = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    Ok(ready.filter(|it| it["conditions"]["ready"] == true).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_follows_the_ready_endpoints_of_a_service() -> anyhow::Result<()> {
    follows("endpoints", "{}", "{kubernetes_service: theirs.NAMESPACE}").await
}

/// No resolver of this host knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_follows_the_ready_pods_behind_a_headless_name() -> anyhow::Result<()> {
    let name = "{addresses: ['theirs.NAMESPACE.svc.cluster.local:8080']}";
    follows("headless", "{readiness_probe: /}", name).await
}

async fn follows(test: &str, service: &str, upstreams: &str) -> anyhow::Result<()> {
    on_namespace(test, async |namespace| {
        let cluster = peers(namespace, 1).await?;
        namespace.apply(&objects(1)).await?;
        let upstreams = upstreams.replace("NAMESPACE", &namespace.name);
        let yaml = STATIC.replace("SERVICE", service);
        let yaml = yaml.replace("UPSTREAMS", &upstreams);
        cluster.admin(0).apply(&yaml).await?;
        ready(&cluster, 1).await?;
        ask(&cluster, 0).await?;
        for replicas in [3, 1] {
            let scale = format!("--replicas={replicas}");
            namespace
                .kubectl(&["scale", "deployment", "theirs", &scale])
                .await?;
            wait::until("the Service's endpoints", SETTLE, async || {
                // Whatever the Service goes through, nobody's request fails.
                let answered = ask(&cluster, 0).await;
                assert!(answered.is_ok(), "{answered:?}");
                let endpoints = endpoints(namespace).await?;
                ensure!(endpoints == replicas, "{endpoints}");
                Ok(())
            })
            .await?;
            let told = Instant::now();
            let mut last: Vec<String> = Vec::new();
            wait::until("as many that answer", SETTLE, async || {
                last.push(ask(&cluster, 0).await?);
                // A new one has fewer requests than its share at first; one that goes is to have none.
                let newest = match replicas {
                    1 => last.len().saturating_sub(10),
                    _ => 0,
                };
                let answering: BTreeSet<&String> = last[newest..].iter().collect();
                ensure!(
                    answering.len() == replicas && (replicas > 1 || last.len() >= 10),
                    "{answering:?}"
                );
                Ok(())
            })
            .await?;
            ensure!(
                told.elapsed() <= FOLLOWED_WITHIN,
                "after {:?}",
                told.elapsed()
            );
        }
        cluster.pass();
        Ok(())
    })
    .await
}
