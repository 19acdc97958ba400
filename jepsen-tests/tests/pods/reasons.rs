//! Why a replica does not run is told where its status is asked for.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jepsen_tests::admin::v1::ReplicaStatus;
use jepsen_tests::kube::Namespace;
use jepsen_tests::wait;
use serde_json::{Value, json};

use crate::stage::{SETTLE, on_namespace, peers, ready, service};

/// How soon after the API server knows of it a reason is to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Brings up a service whose resources cannot be had, and waits for words of the pod and of the replica.
async fn told(
    test: &str,
    resources: &str,
    in_pod: &str,
    in_status: &str,
    status: ReplicaStatus,
) -> anyhow::Result<()> {
    let yaml = service("web", 1).replace("{ports: 8080}", &format!("{{ports: 8080, {resources}}}"));
    held_up_told(test, &yaml, in_pod, in_status, status).await
}

/// Brings up a service that cannot run, and waits for words of the pod and of the replica.
async fn held_up_told(
    test: &str,
    yaml: &str,
    in_pod: &str,
    in_status: &str,
    status: ReplicaStatus,
) -> anyhow::Result<()> {
    on_namespace(test, async |namespace| {
        let cluster = peers(namespace, 1).await?;
        cluster.admin(0).apply(yaml).await?;
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
        ensure_soon(known.elapsed())?;
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

/// Brings up a service whose pod ends, and waits until that is told of a replica, which has to be soon after the API server
/// has told it. A pod that has ended is deleted at once, so the API server is watched; until it is gone, the replica shuts down.
async fn end_told(
    test: &str,
    yaml: &str,
    in_pod: &'static str,
    in_status: &[&str],
    status: ReplicaStatus,
) -> anyhow::Result<()> {
    on_namespace(test, async |namespace| {
        let cluster = peers(namespace, 1).await?;
        let mut known = namespace.watch_for(in_pod)?;
        cluster.admin(0).apply(yaml).await?;
        let told = async |statuses: &[ReplicaStatus]| {
            wait::until("the replica's reason", SETTLE, async || {
                let replicas = cluster.admin(0).replicas().await?;
                let right = |it: &jepsen_tests::admin::v1::Replica| {
                    statuses.contains(&it.status())
                        && in_status.iter().all(|words| it.reason.contains(words))
                };
                ensure!(replicas.iter().any(right), "{replicas:?}");
                Ok(Instant::now())
            })
            .await
        };
        let first = told(&[ReplicaStatus::ShuttingDown, status]).await?;
        ensure_soon(known.until(first).await?)?;
        told(&[status]).await?;
        cluster.pass();
        Ok(())
    })
    .await
}

fn ensure_soon(after: Duration) -> anyhow::Result<()> {
    ensure!(after <= TOLD_WITHIN, "told after {after:?}");
    Ok(())
}

/// A service of one replica that runs `program`, with a part of its pod.
fn ending(program: &str, pod: &str) -> String {
    format!(
        "name: web\nservice: {{readiness_probe: /, replicas: 1}}\nresources: {{ports: 8080}}\n\
         config: {{kubernetes: {{pod_config: {{spec: {pod}}}}}}}\nrun: {program}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_it_used_more_memory_than_it_may_is_told() -> anyhow::Result<()> {
    let limits = "{containers: [{resources: {limits: {memory: 32Mi}}}]}";
    let yaml = ending("exec python3 -c 'bytearray(1 << 28)'", limits);
    let words = ["more memory than it may", "raise resources.memory"];
    end_told("memory", &yaml, "OOMKilled", &words, ReplicaStatus::Failed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_its_node_evicted_it_is_told() -> anyhow::Result<()> {
    let scratch = "{containers: [{volumeMounts: [{name: scratch, mountPath: /scratch}]}], \
                   volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]}";
    let program = "head -c 8M /dev/zero > /scratch/it && exec sleep 300";
    let words = ["the node evicted its pod", "scratch"];
    let yaml = ending(program, scratch);
    // It took more than its own pod allows, wherever it runs.
    end_told("evicted", &yaml, "Evicted", &words, ReplicaStatus::Failed).await
}

/// What only one node has, and only one of.
const SLOT: &str = "raftserve.io/test-slot";

/// The class of the pod that takes the replica's place.
const FIRST: &str = "raftserve-test-first";

fn patch_slots(op: &str) -> String {
    let path = SLOT.replace('/', "~1");
    let patch = json!([{ "op": op, "path": format!("/status/capacity/{path}"), "value": "1" }]);
    patch.to_string()
}

/// A pod of higher priority that wants the slot, too.
fn first() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "first" }, "spec": {
        "priorityClassName": FIRST,
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "main", "image": "docker.io/library/python:3.11-slim", "command": ["sleep", "600"],
            "resources": { "requests": { SLOT: "1" }, "limits": { SLOT: "1" } },
        }],
    } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_pod_of_higher_priority_took_its_place_is_told() -> anyhow::Result<()> {
    on_namespace("preempted", async |namespace| {
        let kube = namespace.kube();
        if !kube.disruptive {
            eprintln!("skipped: nodes are not to be changed here");
            return Ok(());
        }
        let nodes = kube.nodes().await?;
        let node = &nodes.first().context("no node")?.0;
        let slots = async |op| {
            let patch = patch_slots(op);
            let patch = [
                "patch",
                "node",
                node,
                "--subresource=status",
                "--type=json",
                "-p",
                &patch,
            ];
            kube.kubectl(&patch).await
        };
        slots("add").await?;
        namespace
            .apply(&json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": { "name": FIRST }, "value": 1_000,
            }))
            .await?;
        let preempted = preempted(namespace).await;
        // Whatever came of it, they are not the namespace's.
        kube.kubectl(&["delete", "priorityclass", FIRST]).await?;
        slots("remove").await?;
        preempted
    })
    .await
}

async fn preempted(namespace: &Namespace) -> anyhow::Result<()> {
    let cluster = peers(namespace, 1).await?;
    let slot = format!(
        "{{terminationGracePeriodSeconds: 5, containers: [{{resources: {{requests: {{{SLOT}: 1}}, limits: {{{SLOT}: 1}}}}}}]}}"
    );
    let program = "exec python3 -m http.server 8080";
    cluster.admin(0).apply(&ending(program, &slot)).await?;
    ready(&cluster, 1).await?;
    let mut known = namespace.watch_for("PreemptionByScheduler")?;
    namespace.apply(&first()).await?;
    let told = wait::until("word of the preemption", SETTLE, async || {
        let replicas = cluster.admin(0).replicas().await?;
        let told = replicas.iter().any(|it| {
            it.status() == ReplicaStatus::Preempted && it.reason.contains("higher priority")
        });
        ensure!(told, "{replicas:?}");
        Ok(Instant::now())
    })
    .await?;
    ensure_soon(known.until(told).await?)?;
    cluster.pass();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_its_program_ends_is_told_with_its_last_line() -> anyhow::Result<()> {
    let program = "echo no model here; exit 7";
    let words = ["run exited with code 7", "no model here"];
    let (yaml, code) = (ending(program, "{}"), "\"exitCode\":7");
    end_told("crash", &yaml, code, &words, ReplicaStatus::Failed).await
}

/// The replica's own program is not started again by its node; one beside it may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_container_beside_it_ends_again_and_again_is_told() -> anyhow::Result<()> {
    // What has no such probe may count as started in the instant before it ends.
    let beside = "{initContainers: [{name: beside, image: 'docker.io/library/python:3.11-slim', \
                  command: ['false'], restartPolicy: Always, startupProbe: {exec: {command: ['false']}}}]}";
    let yaml = ending("exec sleep 300", beside);
    let words = ("CrashLoopBackOff", "container beside ends again and again");
    let status = ReplicaStatus::Provisioning;
    held_up_told("loop", &yaml, words.0, words.1, status).await
}
