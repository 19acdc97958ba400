use serde_json::{Value, json};

use super::*;

fn shown(metadata: Value, spec: Value, status: Value) -> Seen {
    let mut pod = json!({"metadata": {"annotations": {"raftserve.io/port": "8080"}}, "spec": {"containers": []}});
    for (part, over) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in over.as_object().unwrap() {
            pod[part][key] = value.clone();
        }
    }
    pod["status"] = status;
    seen(&serde_json::from_value(pod).unwrap())
}

fn with(status: Value) -> Seen {
    shown(json!({}), json!({}), status)
}

fn container(state: Value) -> Value {
    json!([{
        "name": "replica", "image": "img:1", "imageID": "", "ready": false, "restartCount": 0,
        "started": true, "state": state,
    }])
}

fn exit_of(seen: Seen) -> Exit {
    match seen.state {
        ReplicaState::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_passes_through_gate_start_setup_and_run() {
    let gated = shown(
        json!({}),
        json!({"schedulingGates": [{"name": labels::GATE}]}),
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
        ]}),
    );
    assert_eq!(gated.state, ReplicaState::Prepared);
    let starting = with(json!({"phase": "Pending"}));
    assert_eq!(starting, Seen::plain(ReplicaState::SettingUp));
    let mut running = json!({
        "phase": "Running", "podIP": "10.0.0.7",
        "containerStatuses": container(json!({"running": {}})),
    });
    let address = "10.0.0.7:8080".to_owned();
    assert_eq!(
        with(running.clone()).state,
        ReplicaState::Running { address }
    );
    running["podIP"] = "fd00::7".into();
    let address = "[fd00::7]:8080".to_owned();
    assert_eq!(
        with(running.clone()).state,
        ReplicaState::Running { address }
    );
    running["containerStatuses"][0]["started"] = false.into();
    assert_eq!(with(running).state, ReplicaState::SettingUp);
}

#[test]
fn what_holds_a_pod_up_is_told_with_a_remedy() {
    let unschedulable = with(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 Insufficient cpu."}
    ]}));
    assert_eq!(unschedulable.state, ReplicaState::SettingUp);
    let note = unschedulable.note.unwrap();
    assert!(
        note.contains("Insufficient cpu") && note.contains("add nodes"),
        "{note}"
    );
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        // However much the kubelet says.
        let waiting = json!({"waiting": {"reason": reason, "message": "not found ".repeat(100)}});
        let held = with(json!({"phase": "Pending", "containerStatuses": container(waiting)}));
        assert_eq!(held.state, ReplicaState::SettingUp);
        let note = held.note.unwrap();
        assert!(
            note.contains("img:1") && note.contains("imagePullSecrets"),
            "{note}"
        );
    }
}

#[test]
fn that_no_node_has_a_label_of_the_accelerator_is_told_to_the_end_of_the_remedy() {
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{
            "key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"],
        }]}],
    }}});
    let said = "1 node(s) didn't match Pod's node affinity/selector, ".repeat(20);
    let status = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said},
    ]});
    let note = shown(json!({}), json!({"affinity": affinity}), status).note;
    let note = note.unwrap();
    assert!(note.contains("config.kubernetes.pod_config"), "{note}");
    assert!(note.ends_with("add nodes"), "{note}");
}

#[test]
fn each_reason_to_wait_has_its_state_and_its_remedy() {
    let pod_of = |kind: &str, reason: &str| {
        let waiting = json!({"waiting": {"reason": reason, "message": "said so"}});
        with(json!({"phase": "Pending", kind: container(waiting)}))
    };
    // Whatever container it is that waits: the replica's, one beside it, or one before it.
    for kind in ["containerStatuses", "initContainerStatuses"] {
        for (reason, words) in [
            ("ImageInspectError", "check resources.image_id"),
            ("RegistryUnavailable", "check resources.image_id"),
            ("CrashLoopBackOff", "ends again and again"),
            ("CreateContainerConfigError", "correct pod_config"),
            ("CreateContainerError", "correct pod_config"),
            ("RunContainerError", "correct pod_config"),
        ] {
            let seen = pod_of(kind, reason);
            assert_eq!(seen.state, ReplicaState::SettingUp, "{reason}");
            let note = seen.note.unwrap();
            assert!(note.contains(words) && note.contains("said so"), "{note}");
        }
        // With these, no later try will be better.
        for (reason, words) in [
            ("InvalidImageName", "correct resources.image_id"),
            ("ErrImageNeverPull", "imagePullPolicy is Never"),
        ] {
            let exit = exit_of(pod_of(kind, reason));
            assert_eq!((exit.step, exit.end), (Step::Setup, End::NotStarted));
            assert!(exit.message.contains(words), "{}", exit.message);
        }
        for usual in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(pod_of(kind, usual), Seen::plain(ReplicaState::SettingUp));
        }
    }
}

#[test]
fn a_container_before_the_replica_that_fails_is_told_by_its_name() {
    let mut inits = container(json!({
        "terminated": {"exitCode": 3, "message": "downloading\nno such model\n"},
    }));
    inits[0]["name"] = "fetch".into();
    let exit = exit_of(with(
        json!({"phase": "Failed", "initContainerStatuses": inits}),
    ));
    assert_eq!((exit.step, exit.end), (Step::Setup, End::NotStarted));
    assert_eq!(
        exit.message,
        "its init container fetch exited with code 3: no such model; see kubectl logs of the pod with -c fetch, and correct \
         pod_config"
    );
}

#[test]
fn an_end_tells_its_step_and_its_last_words() {
    let ended = |terminated: Value| {
        exit_of(with(json!({
            "phase": "Failed", "containerStatuses": container(json!({"terminated": terminated})),
        })))
    };
    let crash = ended(
        json!({"exitCode": 3, "reason": "Error", "message": "Traceback\nValueError: no model\n"}),
    );
    assert_eq!((crash.step, crash.end), (Step::Run, End::Code(3)));
    assert_eq!(
        crash.message,
        "run exited with code 3: ValueError: no model; see raftserve logs"
    );
    let setup = ended(json!({"exitCode": 1, "message": "setup exited with code 1\n"}));
    assert_eq!(setup.step, Step::Setup);
    let oom = ended(json!({"exitCode": 137, "reason": "OOMKilled"}));
    assert!(oom.message.contains("resources.memory"));
    let done = ended(json!({"exitCode": 0, "reason": "Completed"}));
    assert!(
        done.message.starts_with("run exited with code 0; run must"),
        "{done:?}"
    );
    let refused = ended(json!({"exitCode": 128, "reason": "StartError", "message": "no /bin/sh"}));
    assert_eq!((refused.step, refused.end), (Step::Setup, End::NotStarted));
    let place = "file_mounts.~/x cannot be put in place (HOME is /, and it starts in /): no";
    let place = ended(json!({"exitCode": 1, "message": place}));
    assert_eq!(place.step, Step::Setup);
    let own = ended(json!({"exitCode": 1, "message": "file_mounts.x is not what I expected"}));
    assert_eq!(own.step, Step::Run);
}

#[test]
fn a_container_that_cannot_start_is_told_of_the_files_that_are_mounted_over_its_image() {
    let long = "not a directory ".repeat(40);
    for reason in ["StartError", "ContainerCannotRun"] {
        let told = |container: &str, path: &str| {
            let mounts = json!([{"name": "raftserve-files", "mountPath": path}]);
            let spec = json!({"containers": [{"name": container, "volumeMounts": mounts}]});
            let terminated = json!({"exitCode": 128, "reason": reason, "message": long});
            let status = json!({
                "phase": "Failed", "containerStatuses": self::container(json!({"terminated": terminated})),
            });
            exit_of(shown(json!({}), spec, status)).message
        };
        let with = told(labels::CONTAINER, "/etc/app");
        let said = "the image needs /bin/sh, and a destination of file_mounts";
        assert!(with.contains(said) && with.ends_with("way round"), "{with}");
        for without in [
            told("other", "/etc/app"),
            told(labels::CONTAINER, "/run/raftserve-files"),
        ] {
            assert!(without.ends_with("/bin/sh"), "{without}");
        }
    }
}

#[test]
fn an_eviction_is_told_with_what_helps_against_this_one() {
    for (said, remedy) in [
        (
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 92Mi.",
            "resources.memory",
        ),
        (
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 900Mi.",
            "limits of ephemeral-storage",
        ),
        (
            "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ",
            "limits of ephemeral-storage",
        ),
        (
            "Container replica exceeded its local ephemeral storage limit \"4Mi\". ",
            "limits of ephemeral-storage",
        ),
        (
            "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ",
            "sizeLimit",
        ),
        ("The node was low on resource: inodes. ", "more disk"),
        ("The node was low on resource: pids. ", "fewer processes"),
    ] {
        let status = json!({"phase": "Failed", "reason": "Evicted", "message": said});
        let exit = exit_of(with(status));
        let own = !said.contains("low on resource");
        assert_eq!(exit.end != End::Preempted, own, "{exit:?}");
        let told = exit.message;
        let one_line = said.trim();
        assert!(told.contains(one_line) && told.contains(remedy), "{told}");
        let of_memory = said.contains("memory");
        assert_eq!(told.contains("resources.memory"), of_memory, "{told}");
    }
}

#[test]
fn what_takes_a_pod_away_is_told() {
    let evicted = exit_of(with(json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
    })));
    assert_eq!(evicted.end, End::Preempted);
    assert!(evicted.message.contains("low on resource"));
    for (reason, words) in [
        ("NodeShutdown", "its node was shut down"),
        ("OutOfcpu", "its node refused the pod (OutOfcpu)"),
        ("OutOfpods", "its node refused the pod (OutOfpods)"),
        ("DeadlineExceeded", "its pod failed (DeadlineExceeded)"),
    ] {
        let status = json!({"phase": "Failed", "reason": reason, "message": "said so"});
        let exit = exit_of(with(status));
        assert_eq!(exit.end, End::Preempted);
        assert!(exit.message.starts_with(words), "{}", exit.message);
    }
    let preempted = exit_of(with(json!({"phase": "Failed", "conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "x"}
    ]})));
    assert!(preempted.message.contains("higher priority"));
    assert_eq!(preempted.end, End::Preempted);
    for (reason, words) in [
        ("PreemptionByScheduler", "a pod of higher priority"),
        ("DeletionByTaintManager", "its node is lost"),
        ("EvictionByEvictionAPI", "its node is drained"),
        ("DeletionByPodGC", "its node is gone"),
        ("TerminationByKubelet", "its node shuts down"),
        ("Another", "its pod was disrupted (Another)"),
    ] {
        let deleted = shown(
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            json!({}),
            json!({"phase": "Running", "podIP": "10.0.0.7", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "y"}
            ], "containerStatuses": container(json!({"running": {}}))}),
        );
        assert_eq!(deleted.state, ReplicaState::Preempted);
        let note = deleted.note.unwrap();
        assert!(note.starts_with(words), "{note}");
    }
    let deleted = shown(
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        json!({}),
        json!({"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": container(json!({"running": {}}))}),
    );
    assert_eq!(deleted.state, ReplicaState::Stopping, "by somebody");
}

#[test]
fn every_reason_says_what_to_do_however_much_was_said_before_it() {
    let said = "so it was said ".repeat(60);
    let failed = |reason: &str| json!({"phase": "Failed", "reason": reason, "message": said});
    let target = |reason: &str| {
        json!({"phase": "Failed", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": said},
        ]})
    };
    let ended = |terminated: Value| json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": terminated}))});
    let waits = |reason: &str| {
        let state = json!({"waiting": {"reason": reason, "message": said}});
        json!({"phase": "Pending", "containerStatuses": container(state)})
    };
    let init = |message: &str| {
        let state = json!({"terminated": {"exitCode": 1, "message": message}});
        json!({"phase": "Failed", "initContainerStatuses": container(state)})
    };
    let unschedulable = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said},
    ]});
    let place =
        format!("file_mounts.x cannot be put in place (HOME is /, and it starts in /): {said}");
    let status = [
        (failed("Evicted"), "request what it needs"),
        (failed("NodeLost"), REPLACED),
        (failed("NodeShutdown"), REPLACED),
        (failed("Terminated"), REPLACED),
        (failed("UnexpectedAdmissionError"), "kubectl describe node"),
        (failed("OutOfcpu"), "ask for less in resources"),
        (failed("OutOfnvidia.com/gpu"), "ask for less in resources"),
        (failed("NodeAffinity"), "nodeSelector and affinity"),
        (failed("DeadlineExceeded"), "kubectl describe pod"),
        (
            target("DeletionByTaintManager"),
            "Tolerations in pod_config",
        ),
        (target("PreemptionByScheduler"), "priorityClassName"),
        (target("EvictionByEvictionAPI"), "on a node that takes pods"),
        (target("DeletionByPodGC"), REPLACED),
        (target("TerminationByKubelet"), "Request what it needs"),
        (target("Another"), "kubectl describe pod"),
        (ended(json!({"exitCode": 3, "message": said})), SEE_LOGS),
        (ended(json!({"exitCode": 3})), SEE_LOGS),
        (ended(json!({"exitCode": 139, "signal": 11})), SEE_LOGS),
        (ended(json!({"exitCode": 0})), "run must go on"),
        (
            ended(json!({"exitCode": 1, "message": "setup exited with code 1"})),
            SEE_LOGS,
        ),
        (
            ended(json!({"exitCode": 1, "message": place})),
            "another destination in file_mounts",
        ),
        (
            ended(json!({"exitCode": 137, "reason": "OOMKilled"})),
            "raise resources.memory",
        ),
        (
            ended(json!({"exitCode": 128, "reason": "StartError", "message": said})),
            "needs /bin/sh",
        ),
        (init(&said), "-c replica, and correct pod_config"),
        (json!({"phase": "Failed"}), "kubectl describe pod"),
        (unschedulable, "add nodes"),
        (waits("ErrImagePull"), "check resources.image_id"),
        (waits("InvalidImageName"), "correct resources.image_id"),
        (waits("ErrImageNeverPull"), "let it be pulled"),
        (waits("CrashLoopBackOff"), "see kubectl logs"),
        (waits("CreateContainerError"), "correct pod_config"),
    ];
    for (status, remedy) in status {
        let seen = with(status.clone());
        let told = match seen.state {
            ReplicaState::Exited(exit) => exit.message,
            _ => seen.note.expect("a reason"),
        };
        let (_, after) = told
            .split_once(';')
            .or_else(|| told.split_once(','))
            .expect(&told);
        assert!(after.contains(remedy), "{told}");
    }
    let gone = shown(
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        json!({}),
        json!({"phase": "Running"}),
    );
    assert!(gone.note.unwrap().contains(REPLACED));
}

#[test]
fn a_running_pod_whose_node_is_not_heard_is_told_with_its_node() {
    let seen = |ready: Value, containers_ready: &str| {
        let status = json!({
            "phase": "Running", "podIP": "10.0.0.7",
            "conditions": [ready, {"type": "ContainersReady", "status": containers_ready}],
            "containerStatuses": container(json!({"running": {}})),
        });
        let seen = shown(json!({}), json!({"nodeName": "n-2"}), status);
        // Whether it serves, nobody has said.
        let address = "10.0.0.7:8080".to_owned();
        assert_eq!(seen.state, ReplicaState::Running { address });
        seen.note
    };
    // As the node controller leaves it: only the status is changed.
    let lost = seen(json!({"type": "Ready", "status": "False"}), "True").unwrap();
    assert!(lost.starts_with("node n-2 is lost"), "{lost}");
    for (ready, containers_ready) in [
        (json!({"type": "Ready", "status": "True"}), "True"),
        // The kubelet's own word on a probe of pod_config, or on a gate.
        (
            json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady"}),
            "False",
        ),
        (
            json!({"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}),
            "True",
        ),
        (json!({"type": "Ready", "status": "False"}), "False"),
    ] {
        assert_eq!(seen(ready, containers_ready), None);
    }
}

#[test]
fn what_is_cut_off_says_so() {
    let said = "é".repeat(QUOTE_CHARS_MAX);
    assert_eq!(quote(Some(&said)), said);
    assert_eq!(quote(Some(&format!("{said}x"))), format!("{said}…"));
    assert_eq!(quote(None), "");
}
