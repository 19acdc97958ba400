use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use raftserve_model::spec::{
    Accelerators, Destination, FileMount, MountContent, MountedFile, Placement,
};
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};
use rustix::process::{Signal, kill_process, kill_process_group};

use super::*;
use crate::provider::ReplicaKey;

fn launch() -> ReplicaLaunch {
    ReplicaLaunch {
        replica: ReplicaKey {
            name: "Svc".parse().unwrap(),
            id: ReplicaId {
                service: ServiceId(7),
                number: 3,
            },
        },
        version: ServiceVersion(2),
        setup: None,
        run: "serve 8080 $HOME".to_owned(),
        envs: BTreeMap::from([("A".to_owned(), "$(B)".to_owned())]),
        secrets: BTreeMap::new(),
        port: 8080,
        resources: BTreeMap::new(),
        placement: Placement::default(),
        file_mounts: Vec::new(),
        stop_grace: Duration::from_millis(9_500),
        lifeline: None,
    }
}

fn made(launch: &ReplicaLaunch) -> Value {
    pod(
        "svc-name",
        "svc-secret",
        ClusterId([0x0a; 16]),
        launch,
        "default:1",
    )
}

#[test]
fn the_smallest_pod_is_this() {
    let mut pod = made(&launch());
    assert_eq!(pod["spec"]["containers"][0]["command"][2], literal(SCRIPT));
    pod["spec"]["containers"][0]["command"][2] = "SCRIPT".into();
    let golden: Value = serde_json::from_str(include_str!("smallest.json")).unwrap();
    assert_eq!(pod, golden, "{pod:#}");
}

#[test]
fn all_that_is_asked_for_is_in_the_pod() {
    let mut launch = launch();
    launch.setup = Some("pip install x".to_owned());
    launch.secrets.insert("A".to_owned(), "hush".to_owned());
    for (name, amount) in [("cpus", "2+"), ("memory", "8x")] {
        launch.resources.insert(name.to_owned(), amount.to_owned());
    }
    launch.placement = Placement {
        image: Some("model:2".to_owned()),
        accelerators: Some(Accelerators {
            kind: "A100".to_owned(),
            count: 4,
        }),
        use_spot: true,
        labels: BTreeMap::from([("team".to_owned(), "x".to_owned())]),
        volumes: BTreeMap::from([("/models".to_owned(), "claim".to_owned())]),
        pod_config: None,
    };
    let pod = made(&launch);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "model:2");
    assert_eq!(container["command"][4], "pip install x");
    assert_eq!(
        container["resources"],
        json!({
            "requests": {"cpu": "2", "memory": "16G", "nvidia.com/gpu": "4"},
            "limits": {"nvidia.com/gpu": "4"},
        })
    );
    assert_eq!(container["volumeMounts"][1]["mountPath"], "/models");
    assert_eq!(container["envFrom"][0]["secretRef"]["name"], "svc-secret");
    assert_eq!(
        container["startupProbe"]["exec"]["command"],
        json!(["/bin/sh", "-c", "[ -e /run/raftserve/set-up ]"])
    );
    assert_eq!(pod["metadata"]["labels"]["team"], "x");
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    let by_both = ACCELERATOR_LABELS.len() * SPOT.len();
    assert_eq!(terms.as_array().unwrap().len(), by_both);
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 5);
    // A secret takes the place of an environment variable, and stands nowhere in the pod.
    for secret in ["hush", "aHVzaA"] {
        assert!(!pod.to_string().contains(secret), "{pod}");
    }
    let env = container["env"].as_array().unwrap();
    assert!(env.iter().all(|it| it["name"] != "A"));
    let secret = secret(
        "svc-secret",
        ("svc-name", "uid-1"),
        ClusterId([0x0a; 16]),
        &launch,
    );
    assert_eq!(pod["metadata"]["annotations"][labels::SECRET], "svc-secret");
    assert_eq!(secret["metadata"]["name"], "svc-secret");
    assert_eq!(secret["stringData"], json!({"A": "hush"}));
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "uid-1");
}

/// A pod that asks for one accelerator of that kind.
fn accelerated(kind: &str) -> Value {
    let mut launch = launch();
    launch.placement.accelerators = Some(Accelerators {
        kind: kind.to_owned(),
        count: 1,
    });
    made(&launch)
}

#[test]
fn accelerators_are_found_by_the_label_of_whoever_runs_the_nodes() {
    for (kind, label, value) in [
        ("H100", "skypilot.co/accelerator", "h100"),
        (
            "H100",
            "cloud.google.com/gke-accelerator",
            "nvidia-h100-80gb",
        ),
        ("T4", "cloud.google.com/gke-accelerator", "nvidia-tesla-t4"),
        ("l4", "cloud.google.com/gke-accelerator", "nvidia-l4"),
        (
            "A100-80GB",
            "cloud.google.com/gke-accelerator",
            "nvidia-a100-80gb",
        ),
        ("V100", "k8s.amazonaws.com/accelerator", "nvidia-tesla-v100"),
        ("A10G", "karpenter.k8s.aws/instance-gpu-name", "a10g"),
        ("H100", "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"),
        (
            "a100-80gb",
            "nvidia.com/gpu.product",
            "NVIDIA-A100-SXM4-80GB",
        ),
        ("T4", "nvidia.com/gpu.product", "Tesla-T4"),
        ("l40s", "nvidia.com/gpu.product", "NVIDIA-L40S"),
    ] {
        let pod = accelerated(kind);
        let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"];
        // Each term is an alternative of its own.
        let found = terms.as_array().unwrap().iter().any(|term| {
            let all = term["matchExpressions"].as_array().unwrap();
            let [only] = &all[..] else { return false };
            let values = only["values"].as_array().unwrap();
            only["key"] == label && values.iter().any(|it| it == value)
        });
        assert!(found, "{kind} {label}={value}: {terms:#}");
    }
    let smaller = accelerated("A100").to_string();
    assert!(!smaller.contains("80GB"), "{smaller}");
}

#[test]
fn that_no_node_has_the_label_of_its_accelerator_is_told_with_the_labels() {
    let pod = |made: Value| serde_json::from_value::<Pod>(made).unwrap();
    let unlabelled =
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.";
    let told = unschedulable_remedy(&pod(accelerated("A100")), unlabelled);
    for word in ACCELERATOR_LABELS
        .into_iter()
        .chain(["config.kubernetes.pod_config"])
    {
        assert!(told.contains(word), "{told}");
    }
    let too_few = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node affinity/selector.";
    let plain = "ask for less in resources, or add nodes";
    for (made, said) in [
        (accelerated("A100"), too_few),
        (made(&launch()), unlabelled),
    ] {
        assert_eq!(unschedulable_remedy(&pod(made), said), plain);
    }
}

#[test]
fn files_are_mounted_and_stand_nowhere_in_the_pod() {
    let mount = |destination| FileMount {
        destination,
        content: MountContent::File(MountedFile {
            mode: 0o600,
            bytes: b"hush".as_slice().into(),
        }),
    };
    let mut launch = launch();
    launch.file_mounts = vec![mount(Destination::Absolute("/etc/x".to_owned()))];
    let pod = made(&launch);
    let spec = &pod["spec"];
    assert_eq!(
        spec["volumes"][1]["secret"]["secretName"],
        "svc-secret-files"
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"][1]["mountPath"],
        "/etc/x"
    );
    assert_eq!(pod["metadata"]["annotations"][labels::SECRET], "svc-secret");
    let command = |pod: &Value| pod["spec"]["containers"][0]["command"].clone();
    assert_eq!(command(&pod), command(&made(&self::launch())));

    launch
        .file_mounts
        .push(mount(Destination::Home("x".to_owned())));
    let pod = made(&launch);
    let told = command(&pod);
    assert_eq!(told[6], "/run/raftserve-files");
    assert_eq!(told[2], literal(&format!("{}{SCRIPT}", files::PLACE)));
    assert!(!pod.to_string().contains("hush"));
}

#[test]
fn files_that_cannot_be_put_in_place_end_the_replica_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifest"), "no-such\n600\nx/y\n").unwrap();
    let script = format!("{}{SCRIPT}", files::PLACE).replace("/dev/termination-log", "\"$OUT\"");
    let out = dir.path().join("out");
    let ended = std::process::Command::new("/bin/sh")
        .args(["-c", &script, "raftserve", "", "echo it runs"])
        .arg(dir.path())
        .env("OUT", &out)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(
        (ended.status.code(), &ended.stdout[..]),
        (Some(1), &b""[..])
    );
    let said = std::fs::read_to_string(out).unwrap();
    assert!(
        said.starts_with("file_mounts.x/y cannot be put in place"),
        "{said}"
    );
    assert_eq!(said, String::from_utf8(ended.stderr).unwrap());
}

#[test]
fn a_pod_configuration_changes_all_but_what_makes_it_a_replica() {
    let mut launch = launch();
    launch.placement.pod_config = Some(json!({
        "metadata": {
            "name": "mine", "namespace": "other", "finalizers": ["x"],
            "labels": {
                "raftserve.io/cluster": "stolen", "app.kubernetes.io/component": "peer", "kept": "yes",
            },
        },
        "spec": {
            "restartPolicy": "Always", "schedulingGates": [{"name": "theirs"}], "nodeName": "node1",
            "runtimeClassName": "nvidia",
            "containers": [{"name": "other-name-is-beside", "image": "side"}, {"imagePullPolicy": "Always"}],
        },
    }));
    let pod = made(&launch);
    let plain = made(&self::launch());
    assert_eq!(pod["metadata"]["name"], "svc-name");
    assert_eq!(pod["metadata"]["labels"]["kept"], "yes");
    assert_eq!(
        pod["metadata"]["labels"]["raftserve.io/cluster"],
        plain["metadata"]["labels"]["raftserve.io/cluster"]
    );
    let component = pod["metadata"]["labels"].get(labels::COMPONENT);
    assert!(
        component.is_none(),
        "the peers' Services would send requests here"
    );
    for gone in ["namespace", "finalizers"] {
        assert!(pod["metadata"].get(gone).is_none(), "{gone}");
    }
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert!(spec.get("nodeName").is_none());
    assert_eq!(
        spec["schedulingGates"],
        json!([{"name": labels::GATE}, {"name": "theirs"}])
    );
    assert_eq!(spec["runtimeClassName"], "nvidia");
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(spec["containers"][0]["name"], "replica");
    assert_eq!(spec["containers"][1]["image"], "side");
}

/// Of the script, `kill` is told apart: where the script is wrong, nobody is to be killed but who is meant.
const NO_KILL_OF_ALL: &str = r#"
kill() { case "$*" in "-TERM -1") echo all >>"$OUT";; *) command kill "$@";; esac; }
"#;

#[test]
fn where_it_is_not_the_first_process_only_its_own_group_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = r#"trap 'echo told >>"$OUT"; exit 7' TERM; echo ready >>"$OUT"; while :; do sleep 0.05; done"#;
    let mut shell = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            &format!("{NO_KILL_OF_ALL}{SCRIPT}"),
            "raftserve",
            "",
            run,
        ])
        .env("OUT", &out)
        .process_group(0)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    let pid = rustix::process::Pid::from_child(&shell);
    let begun = std::time::Instant::now();
    let await_that = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        while !is_so() {
            if begun.elapsed() > Duration::from_secs(20) {
                let _ = kill_process_group(pid, Signal::KILL);
                panic!("{what}: {:?}", said());
            }
            std::thread::yield_now();
        }
    };
    await_that("it does not start", &mut || said() == "ready\n");
    kill_process(pid, Signal::TERM).unwrap();
    let mut ended = None;
    await_that("it does not end", &mut || {
        ended = shell.try_wait().unwrap();
        ended.is_some()
    });
    let code = ended.and_then(|ended| ended.code());
    assert_eq!((said().as_str(), code), ("ready\ntold\n", Some(7)));
}

#[test]
fn a_replica_that_is_told_to_stop_while_its_files_are_put_in_place_ends_without_setup() {
    for place_ends_by in [0, 1] {
        // The shell is told while `place` is at work, and looks when that has ended.
        let place = format!(
            "place() {{ command kill -TERM $$; echo why; return {place_ends_by}; }}\n{NO_KILL}{SCRIPT}"
        );
        let ended = std::process::Command::new("/bin/sh")
            .args(["-c", &place, "raftserve", "echo sets up", "echo runs", "x"])
            .output()
            .unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert_eq!((ended.status.code(), said.as_str()), (Some(143), ""));
    }
}

/// Of the script, which is not to tell whoever runs the tests.
const NO_KILL: &str = "kill() { [ \"$1\" = -TERM ] || command kill \"$@\"; }\n";
