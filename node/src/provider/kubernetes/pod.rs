//! The pod of a replica, as JSON: pure.

use k8s_openapi::api::core::v1::Pod;
use raftserve_model::ClusterId;
use serde_json::{Map, Value, json};

use super::{files, labels, merge, quantity};
use crate::provider::ReplicaLaunch;

/// How long, in seconds, a pod that is being deleted goes on before it is told to stop: what it takes until every
/// peer has taken it out of rotation, many times over.
pub(super) const PRE_STOP_SECS: u64 = 2;

/// Where `setup` leaves word that it is done.
const STATE_DIR: &str = "/run/raftserve";

/// Runs `$1`, if there is any, and then `$2`, each by the best shell there is, once the files in `$3`, if that is given,
/// are [in place](files::PLACE). As the first process of its container it
/// hands SIGTERM to all others, and waits for what it started. Where it is not the first of all processes that it sees,
/// which may then be those of other containers or of the whole node, it tells its own group only.
const SCRIPT: &str = r#"sh=/bin/sh; [ -x /bin/bash ] && sh=/bin/bash
told=; all=-1; [ $$ = 1 ] || all=0
trap 'told=1; trap "" TERM INT; kill -TERM "$all" 2>/dev/null' TERM INT
step() {
  "$sh" -c "$1" & child=$!
  while :; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || return "$code"; done
}
if [ -n "$3" ]; then
  said=$(place "$3"); code=$?
  [ -z "$told" ] || exit 143
  [ "$code" = 0 ] || { printf '%s\n' "$said" >&2; printf '%s\n' "$said" >/dev/termination-log; exit 1; }
fi
if [ -n "$1" ]; then
  step "$1" || { echo "setup exited with code $code" >/dev/termination-log; exit "$code"; }
  : >/run/raftserve/set-up
fi
[ -z "$told" ] || exit 143
step "$2"
exit "$code""#;

/// The pod of a replica, behind its gate. Its secrets are to be in the Secret `secret`, and its files in one that is named
/// after that.
pub(super) fn pod(
    name: &str,
    secret: &str,
    cluster: ClusterId,
    launch: &ReplicaLaunch,
    default_image: &str,
) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "containers": [container(secret, launch, default_image)],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": grace_secs(launch.stop_grace),
            "topologySpreadConstraints": [spread(cluster, launch)],
        },
    });
    place(&mut pod["spec"], secret, launch);
    for (label, value) in &launch.placement.labels {
        pod["metadata"]["labels"][label] = value.clone().into();
    }
    if let (Value::Object(pod), Some(Value::Object(over))) =
        (&mut pod, &launch.placement.pod_config)
    {
        merge::merge(pod, over, labels::CONTAINER);
    }
    claim(&mut pod, name, cluster, launch);
    if !launch.secrets.is_empty() || !launch.file_mounts.is_empty() {
        pod["metadata"]["annotations"][labels::SECRET] = secret.into();
    }
    pod
}

/// What of a stop's time a pod gets in all.
pub(super) fn grace_secs(grace: std::time::Duration) -> u64 {
    PRE_STOP_SECS + grace.as_secs() + u64::from(grace.subsec_nanos() > 0)
}

fn container(secret: &str, launch: &ReplicaLaunch, default_image: &str) -> Value {
    let setup = launch.setup.as_deref().unwrap_or_default();
    let mut command = vec![
        "/bin/sh".to_owned(),
        "-c".to_owned(),
        literal(SCRIPT),
        "raftserve".to_owned(),
        literal(setup),
        literal(&launch.run),
    ];
    if files::are_to_copy(&launch.file_mounts) {
        command[2] = literal(&[files::PLACE, SCRIPT].concat());
        command.push(files::TO_COPY_DIR.to_owned());
    }
    let mut env: Vec<Value> = launch
        .envs
        .iter()
        .filter(|(name, _)| !launch.secrets.contains_key(*name))
        .map(|(name, value)| json!({ "name": name, "value": literal(value) }))
        .collect();
    env.push(json!({ "name": "SKYPILOT_SERVE_REPLICA_ID", "value": launch.replica.id.number.to_string() }));
    env.push(json!({ "name": "PORT", "value": launch.port.to_string() }));
    let mut container = json!({
        "name": labels::CONTAINER,
        "image": launch.placement.image.as_deref().unwrap_or(default_image),
        "command": command,
        "env": env,
        "ports": [{ "name": "serve", "containerPort": launch.port }],
        "lifecycle": { "preStop": { "sleep": { "seconds": PRE_STOP_SECS } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": "raftserve", "mountPath": STATE_DIR }],
    });
    if !launch.secrets.is_empty() {
        container["envFrom"] = json!([{ "secretRef": { "name": secret } }]);
    }
    if !setup.is_empty() {
        // Told by its `started`, it starts only when `run` does. Setup may take as long as it wants.
        container["startupProbe"] = json!({
            // With what the image has to have in any case.
            "exec": { "command": ["/bin/sh", "-c", format!("[ -e {STATE_DIR}/set-up ]")] },
            "periodSeconds": 1,
            "failureThreshold": i32::MAX,
        });
    }
    let requests = quantity::requests(&launch.resources);
    if !requests.is_empty() {
        container["resources"]["requests"] = json!(requests);
    }
    if let Some(accelerators) = &launch.placement.accelerators {
        let count = accelerators.count.to_string();
        container["resources"]["requests"]["nvidia.com/gpu"] = count.clone().into();
        container["resources"]["limits"]["nvidia.com/gpu"] = count.into();
    }
    container
}

/// Kubernetes puts variables in place of `$(NAME)`; this text is meant as it stands.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Replicas of a service go to different nodes where they can.
fn spread(cluster: ClusterId, launch: &ReplicaLaunch) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": {
            labels::CLUSTER: cluster.to_string(),
            labels::SERVICE_ID: launch.replica.id.service.to_string(),
        } },
    })
}

/// Volumes, and what nodes it may run on.
fn place(spec: &mut Value, secret: &str, launch: &ReplicaLaunch) {
    let placement = &launch.placement;
    let mut volumes = vec![json!({ "name": "raftserve", "emptyDir": { "sizeLimit": "1Mi" } })];
    let mut mounts = spec["containers"][0]["volumeMounts"].take();
    for (at, (path, claim)) in placement.volumes.iter().enumerate() {
        let name = format!("volume-{at}");
        volumes.push(json!({ "name": name, "persistentVolumeClaim": { "claimName": claim } }));
        if let Value::Array(mounts) = &mut mounts {
            mounts.push(json!({ "name": name, "mountPath": path }));
        }
    }
    if !launch.file_mounts.is_empty() {
        volumes.push(files::volume(secret, &launch.file_mounts));
        if let Value::Array(mounts) = &mut mounts {
            mounts.extend(files::volume_mounts(&launch.file_mounts));
        }
    }
    spec["volumes"] = volumes.into();
    spec["containers"][0]["volumeMounts"] = mounts;
    let mut choices: Vec<Vec<Value>> = Vec::new();
    let mut tolerations = Vec::new();
    if let Some(accelerators) = &placement.accelerators {
        choices.push(accelerator_nodes(&accelerators.kind));
        tolerations.push(json!({ "key": "nvidia.com/gpu", "operator": "Exists" }));
    }
    if placement.use_spot {
        choices.push(
            SPOT.iter()
                .map(|(label, value)| node_with(label, &[(*value).to_owned()]))
                .collect(),
        );
        for (label, value) in SPOT {
            tolerations.push(json!({ "key": label, "operator": "Equal", "value": value }));
        }
    }
    if choices.is_empty() {
        return;
    }
    let terms: Vec<Value> = all_combinations(&choices)
        .into_iter()
        .map(|expressions| json!({ "matchExpressions": expressions }))
        .collect();
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({ "nodeSelectorTerms": terms });
    spec["tolerations"] = tolerations.into();
}

/// By which labels, and taints alike, nodes say that they may be taken away.
const SPOT: [(&str, &str); 4] = [
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
];

/// By which labels nodes say what accelerators they have: SkyPilot's own, GKE's, EKS's, Karpenter's on AWS, and that of the NVIDIA
/// GPU operator.
const ACCELERATOR_LABELS: [&str; 5] = [
    "skypilot.co/accelerator",
    "cloud.google.com/gke-accelerator",
    "k8s.amazonaws.com/accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "nvidia.com/gpu.product",
];

/// Kinds that GKE names with the only size of memory that they have.
const GKE_NAMES: [(&str, &str); 3] = [
    ("H100", "nvidia-h100-80gb"),
    ("H100-MEGA", "nvidia-h100-mega-80gb"),
    ("H200", "nvidia-h200-141gb"),
];

/// The GPU operator's names of kinds that have more to them than `NVIDIA-KIND` or `Tesla-KIND`.
const PRODUCTS: [(&str, &[&str]); 9] = [
    ("P100", &["Tesla-P100-PCIE-12GB", "Tesla-P100-PCIE-16GB"]),
    ("V100", &["Tesla-V100-PCIE-16GB", "Tesla-V100-SXM2-16GB"]),
    (
        "V100-32GB",
        &[
            "Tesla-V100-PCIE-32GB",
            "Tesla-V100-SXM2-32GB",
            "Tesla-V100-SXM3-32GB",
        ],
    ),
    ("A100", &["NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-SXM4-40GB"]),
    (
        "A100-80GB",
        &["NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-SXM4-80GB"],
    ),
    (
        "H100",
        &[
            "NVIDIA-H100-80GB-HBM3",
            "NVIDIA-H100-NVL",
            "NVIDIA-H100-PCIe",
        ],
    ),
    ("H200", &["NVIDIA-H200-NVL"]),
    ("GH200", &["NVIDIA-GH200-480GB"]),
    ("RTX6000-ADA", &["NVIDIA-RTX-6000-Ada-Generation"]),
];

/// Nodes with accelerators of that kind, by any of [`ACCELERATOR_LABELS`].
fn accelerator_nodes(kind: &str) -> Vec<Value> {
    let (lower, upper) = (kind.to_ascii_lowercase(), kind.to_ascii_uppercase());
    let aws = ["nvidia-", "nvidia-tesla-"].map(|maker| format!("{maker}{lower}"));
    let named = GKE_NAMES.iter().filter(|(kind, _)| *kind == upper);
    let mut gke = aws.to_vec();
    gke.extend(named.map(|(_, name)| (*name).to_owned()));
    let mut products = ["NVIDIA-", "Tesla-"]
        .map(|maker| format!("{maker}{upper}"))
        .to_vec();
    let named = PRODUCTS.iter().filter(|(kind, _)| *kind == upper);
    products.extend(
        named
            .flat_map(|(_, names)| *names)
            .map(|it| (*it).to_owned()),
    );
    let plain = [lower];
    let values: [&[String]; ACCELERATOR_LABELS.len()] = [&plain, &gke, &aws, &plain, &products];
    let labelled = ACCELERATOR_LABELS.iter().zip(values);
    labelled
        .map(|(label, values)| node_with(label, values))
        .collect()
}

/// Whether the pod looks for a node by [`ACCELERATOR_LABELS`].
fn wants_accelerator(pod: &Pod) -> bool {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let required = nodes.and_then(|nodes| {
        nodes
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let terms = required.iter().flat_map(|it| &it.node_selector_terms);
    let mut expressions = terms.flat_map(|term| term.match_expressions.iter().flatten());
    expressions.any(|it| ACCELERATOR_LABELS.contains(&&it.key[..]))
}

/// What to do about a pod that no node can take, as the scheduler `said`.
pub(super) fn unschedulable_remedy(pod: &Pod, said: &str) -> String {
    // What a node has too little of is told only where its labels are right.
    let none_matches = said.contains("node affinity") && !said.contains("Insufficient");
    if !none_matches || !wants_accelerator(pod) {
        return "ask for less in resources, or add nodes".to_owned();
    }
    format!(
        "nodes tell their accelerators by {}: label them, name another label by affinity in config.kubernetes.pod_config, or \
         add nodes",
        ACCELERATOR_LABELS.join(", ")
    )
}

fn node_with(label: &str, values: &[String]) -> Value {
    json!({ "key": label, "operator": "In", "values": values })
}

/// One of each list, in every way.
fn all_combinations(choices: &[Vec<Value>]) -> Vec<Vec<Value>> {
    choices.iter().fold(vec![Vec::new()], |begun, choice| {
        begun
            .iter()
            .flat_map(|begun| {
                choice.iter().map(move |one| {
                    let mut longer = begun.clone();
                    longer.push(one.clone());
                    longer
                })
            })
            .collect()
    })
}

/// What makes the pod a replica, whatever a pod configuration says.
fn claim(pod: &mut Value, name: &str, cluster: ClusterId, launch: &ReplicaLaunch) {
    for part in ["metadata", "spec"] {
        if !pod[part].is_object() {
            pod[part] = json!({});
        }
    }
    let metadata = &mut pod["metadata"];
    metadata["name"] = name.into();
    if let Value::Object(metadata) = metadata {
        for other in ["namespace", "generateName", "ownerReferences", "finalizers"] {
            metadata.remove(other);
        }
        for texts in ["labels", "annotations"] {
            match metadata.get_mut(texts) {
                Some(Value::Object(texts)) => {
                    // With the peers' own label it would be an endpoint of their Services.
                    texts.retain(|key, _| {
                        !key.starts_with(labels::OURS) && key != labels::COMPONENT
                    });
                }
                _ => drop(metadata.insert(texts.to_owned(), json!({}))),
            }
        }
    }
    let replica = &launch.replica;
    for (label, value) in [
        ("app.kubernetes.io/managed-by", "raftserve".to_owned()),
        (labels::CLUSTER, cluster.to_string()),
        (labels::SERVICE, replica.name.to_string()),
        (labels::SERVICE_ID, replica.id.service.to_string()),
        (labels::VERSION, launch.version.to_string()),
        (labels::REPLICA, replica.id.number.to_string()),
    ] {
        metadata["labels"][label] = value.into();
    }
    metadata["annotations"][labels::PORT] = launch.port.to_string().into();
    let spec = &mut pod["spec"];
    spec["restartPolicy"] = "Never".into();
    let gate = json!({ "name": labels::GATE });
    match spec.get_mut("schedulingGates") {
        Some(Value::Array(gates)) => gates.insert(0, gate),
        _ => spec["schedulingGates"] = json!([gate]),
    }
    if let Value::Object(spec) = spec {
        spec.remove("nodeName");
    }
}

/// The Secret `name` with the replica's secrets.
pub(super) fn secret(
    name: &str,
    of_pod: (&str, &str),
    cluster: ClusterId,
    launch: &ReplicaLaunch,
) -> Value {
    let data: Map<String, Value> = launch
        .secrets
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let mut secret = owned_secret(name, of_pod, cluster);
    secret["stringData"] = data.into();
    secret
}

/// A Secret without anything in it, which goes when the pod does, which is this one.
pub(super) fn owned_secret(name: &str, (pod, uid): (&str, &str), cluster: ClusterId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": { labels::CLUSTER: cluster.to_string() },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid }],
        },
        "immutable": true,
    })
}

#[cfg(test)]
mod tests;
