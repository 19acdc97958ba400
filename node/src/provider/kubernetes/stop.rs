//! Deleting a replica's pod, and waiting until nothing of it runs.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Site, labels, pod, remedy};
use crate::provider::{ProviderError, ReplicaKey};

/// How much longer than its grace a pod may take to go: the kubelet's own work on a busy node.
const MARGIN: Duration = Duration::from_secs(20);

/// How long the watch may be silent before the API server is asked whether the pod is gone.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Deletes the pod that exists, whichever it is, until none does.
pub(super) async fn stop(
    site: &Site,
    replica: &ReplicaKey,
    grace: Duration,
) -> Result<(), ProviderError> {
    let name = site.name_of(replica);
    let grace_secs = pod::grace_secs(grace);
    let deadline = Instant::now() + Duration::from_secs(grace_secs) + MARGIN;
    loop {
        let found = site.pods().get_opt(&name).await;
        let found = found.map_err(|error| site.unavailable("look at a pod", &error))?;
        let Some(pod) = found.filter(|pod| is_it(site, pod, replica)) else {
            site.cache.gone(&name, uid_in_cache(site, &name).as_ref());
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(left(replica, &name, &pod));
        }
        if pod.metadata.deletion_timestamp.is_none() {
            delete(site, &name, &pod, grace_secs).await?;
        }
        // Its end comes by the watch.
        let uid = pod.metadata.uid.clone();
        site.cache.note(pod);
        let mut changes = site.cache.changes();
        let gone = async {
            while site
                .cache
                .pod(&name)
                .is_some_and(|pod| pod.metadata.uid == uid)
            {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout_at(deadline, timeout(SILENCE_MAX, gone)).await;
    }
}

fn is_it(site: &Site, pod: &Pod, replica: &ReplicaKey) -> bool {
    labels::is_of(pod, site.cluster)
        && labels::replica_of(pod).is_some_and(|it| it.id == replica.id)
}

fn uid_in_cache(site: &Site, name: &str) -> Option<String> {
    site.cache.pod(name)?.metadata.uid.clone()
}

async fn delete(site: &Site, name: &str, pod: &Pod, grace_secs: u64) -> Result<(), ProviderError> {
    let this_one = DeleteParams::default()
        .grace_period(u32::try_from(grace_secs).unwrap_or(u32::MAX))
        .preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
    match site.pods().delete(name, &this_one).await {
        Ok(_) => Ok(()),
        // Gone, or another by now: the next look tells.
        Err(error) if remedy::is_gone(&error) || remedy::is_conflict(&error) => Ok(()),
        Err(error) => Err(site.unavailable("delete a pod", &error)),
    }
}

fn left(replica: &ReplicaKey, name: &str, pod: &Pod) -> ProviderError {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    ProviderError::Stop {
        replica: replica.clone(),
        reason: format!(
            "node {} does not confirm that pod {name} has ended; if the node is gone for good, delete its Node object, \
             or the pod with: kubectl delete pod {name} --force",
            node.unwrap_or("(none)")
        ),
    }
}
