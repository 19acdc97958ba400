//! Names and labels of what belongs to a replica.

use k8s_openapi::api::core::v1::Pod;
use raftserve_model::{ClusterId, ReplicaId, ServiceId};

use crate::provider::ReplicaKey;

/// Tells the peers of a release from its other pods, as the chart has it. No replica bears it.
pub(super) const COMPONENT: &str = "app.kubernetes.io/component";

/// The cluster that a pod belongs to.
pub(super) const CLUSTER: &str = "raftserve.io/cluster";
/// The service's id.
pub(super) const SERVICE_ID: &str = "raftserve.io/service-id";
/// The service's name, for people.
pub(super) const SERVICE: &str = "raftserve.io/service";
/// The version that the replica was launched from.
pub(super) const VERSION: &str = "raftserve.io/version";
/// The replica's number within its service.
pub(super) const REPLICA: &str = "raftserve.io/replica";
/// An annotation: where the replica listens.
pub(super) const PORT: &str = "raftserve.io/port";
/// An annotation: the Secret with the replica's secrets, after which that with its files is named.
pub(super) const SECRET: &str = "raftserve.io/secret";
/// The scheduling gate behind which a pod is created.
pub(super) const GATE: &str = "raftserve.io/agreed";
/// What no pod configuration may set.
pub(super) const OURS: &str = "raftserve.io/";
/// The container that is the replica.
pub(super) const CONTAINER: &str = "replica";

/// Which label says that a pod is the cluster's.
pub(super) fn selector(cluster: ClusterId) -> String {
    format!("{CLUSTER}={cluster}")
}

/// `NAME-CLUSTER-SERVICE-NUMBER`, where the name is shortened to what Kubernetes allows, and eight digits of the
/// cluster's id keep clusters of one namespace apart. At most 63 characters, so that it can be the host name too.
pub(super) fn pod_name(cluster: ClusterId, replica: &ReplicaKey) -> String {
    /// What is left beside `-01234567-`, two numbers and a dash, for all but absurd numbers.
    const NAME_MAX: usize = 30;
    let mut name: String = replica
        .name
        .as_str()
        .chars()
        .map(|c| match c {
            '_' | '.' => '-',
            c => c.to_ascii_lowercase(),
        })
        .take(NAME_MAX)
        .collect();
    while name.ends_with('-') {
        name.pop();
    }
    let cluster = cluster.to_string();
    format!("{name}-{}-{}", &cluster[..8], replica.id)
}

/// Which replica the pod is, if its labels say so.
pub(super) fn replica_of(pod: &Pod) -> Option<ReplicaKey> {
    let labels = pod.metadata.labels.as_ref()?;
    Some(ReplicaKey {
        name: labels.get(SERVICE)?.parse().ok()?,
        id: ReplicaId {
            service: ServiceId(labels.get(SERVICE_ID)?.parse().ok()?),
            number: labels.get(REPLICA)?.parse().ok()?,
        },
    })
}

/// The label of pods that another cluster has taken over from this one.
pub(super) fn taken_from(cluster: ClusterId) -> String {
    format!("{OURS}taken-from-{cluster}")
}

/// Whose the pod is, if its labels say so.
pub(super) fn cluster_of(pod: &Pod) -> Option<ClusterId> {
    pod.metadata.labels.as_ref()?.get(CLUSTER)?.parse().ok()
}

/// Whether the pod is the cluster's.
pub(super) fn is_of(pod: &Pod, cluster: ClusterId) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(CLUSTER))
        .is_some_and(|label| *label == cluster.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kubernetes_takes_whatever_the_service_is_called() {
        let replica = |name: &str| ReplicaKey {
            name: name.parse().unwrap(),
            id: ReplicaId {
                service: ServiceId(1_234_567_890),
                number: 10_000,
            },
        };
        let named = |name: &str| pod_name(ClusterId([0xab; 16]), &replica(name));
        assert_eq!(named("My_Svc.x"), "my-svc-x-abababab-1234567890-10000");
        let longest = named(&format!("{}Z", "A.".repeat(31)));
        let long = named(&format!("{}Z", "y".repeat(62)));
        for name in [longest, long] {
            assert!(name.len() <= 63, "{name}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
    }
}
