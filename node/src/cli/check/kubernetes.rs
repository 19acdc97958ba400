//! What is asked of a Kubernetes cluster before the chart is installed, and what of it still counts afterwards.

use prost_types::Timestamp;
use serde_json::Value;

use super::super::kubectl::{self, Refused, Release};
use super::{CheckArgs, Line};
use crate::admin::v1;
use crate::clock;
use crate::kubernetes::endpoints::GATE;

/// The oldest minor version of Kubernetes 1 that the chart is made for: API servers of earlier ones refuse pods of replicas,
/// since they do not know `preStop.sleep`.
const MINOR_MIN: u32 = 30;

/// How far a node's clock may be ahead, beside the way of its word to the API server and from there.
const AHEAD_MAX_MS: i64 = 2_000;

/// How old a node's sign of life may be. It gives one every ten seconds, and is taken for lost after forty.
const AGE_MAX_MS: i64 = 40_000;

/// What the chart makes.
const MADE: [&str; 9] = [
    "statefulsets.apps",
    "services",
    "configmaps",
    "secrets",
    "serviceaccounts",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "poddisruptionbudgets.policy",
    "networkpolicies.networking.k8s.io",
];

/// What the chart makes if it is asked to, and by which value.
const MADE_IF_ASKED: [(&str, &str); 3] = [
    ("persistentvolumeclaims", "storage.volumeNames"),
    ("ingresses.networking.k8s.io", "ingress.enabled"),
    ("httproutes.gateway.networking.k8s.io", "httpRoute.enabled"),
];

/// The one thing that the chart's Roles give to peers and the role `admin` of a namespace lacks. Nobody may make a Role of
/// more than they have themselves.
const GIVEN: [&str; 3] = ["patch", "pods", "--subresource=status"];

/// The annotation of the storage class that is taken where none is named.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// The checks, as far as they can be made.
pub(super) fn check(args: &CheckArgs) -> Vec<Line> {
    let version = match asked_version() {
        Ok(line) => line,
        Err(refused) => return vec![unreached(refused)],
    };
    let permissions = permissions(&args.namespace, &|asked| may(asked, &args.namespace));
    let replicas = replicas(
        args.replica_namespace.as_deref(),
        &args.namespace,
        &is_missing,
        &|what, namespace| may(&["create", what], namespace),
    );
    let storage = asked("storage", &["storageclasses"], &|items| {
        storage(items, args.storage_class.as_deref())
    });
    let mut lines = vec![version, permissions, replicas, storage];
    lines.extend(surroundings());
    lines
}

/// The checks that still count once the chart is installed. Volumes are bound by then, and what peers may do, they
/// tell themselves.
pub(super) fn check_installed(release: &Release, status: &v1::StatusResponse) -> Vec<Line> {
    let version = asked_version().unwrap_or_else(unreached);
    let pods = kubectl::get(&release.pods());
    let endpoints =
        hindered_endpoints(status).unwrap_or_else(|| answered("endpoints", &pods, &endpoints));
    let waiting = answered("pods", &pods, &|pods| {
        let warning = |pod: Option<&str>| match pod {
            Some(pod) => release.warning_of(pod),
            None => release.warning(),
        };
        waiting(release.wanted, pods, &warning)
    });
    let mut lines = vec![version, waiting, endpoints];
    lines.extend(surroundings());
    lines
}

/// Whether as many pods of peers as are `wanted` are ready, and if not, why, as far as Kubernetes says: `warning` is its last
/// about a pod, or about those that are not made.
fn waiting(
    wanted: usize,
    pods: &[Value],
    warning: &dyn Fn(Option<&str>) -> Option<String>,
) -> Line {
    let is_ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        // Without its gate, which `endpoints` tells of.
        conditions.any(|it| it["type"] == "ContainersReady" && it["status"] == "True")
    };
    let why = |pod: &Value| {
        let status = &pod["status"];
        let containers = status["containerStatuses"].as_array();
        let waits = containers
            .into_iter()
            .flatten()
            .map(|it| &it["state"]["waiting"])
            .find(|waiting| waiting.is_object());
        let reason = match waits {
            Some(waiting) => waiting["reason"].as_str(),
            None if pod["metadata"]["deletionTimestamp"].is_string() => Some("Terminating"),
            None if status["phase"] != "Running" => status["phase"].as_str(),
            None if is_ready(pod) => return None,
            None => Some("not ready"),
        };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let reason = reason.unwrap_or("unknown");
        let told = waits.and_then(|waiting| waiting["message"].as_str());
        let told = warning(Some(name)).or_else(|| told.map(str::to_owned));
        Some(match told {
            Some(told) => format!("{name} ({reason}: {told})"),
            None => format!("{name} ({reason})"),
        })
    };
    let mut waiting: Vec<_> = pods.iter().filter_map(why).collect();
    if let missing @ 1.. = wanted.saturating_sub(pods.len()) {
        let told = warning(None).map_or_else(String::new, |told| format!(" ({told})"));
        waiting.push(format!("{missing} more that do not exist{told}"));
    }
    match waiting.is_empty() {
        true => Line::good("pods", format!("ready: {}", pods.len())),
        false => Line::failed(
            "pods",
            format!("not ready: {}", waiting.join(", ")),
            "give them what they wait for; `kubectl describe pod` tells all that Kubernetes knows, and `kubectl logs --previous` \
             what a peer that ended said last",
        ),
    }
}

/// Where the peer that was asked says that it is no endpoint, or cannot say who is one.
pub(super) fn hindered_endpoints(status: &v1::StatusResponse) -> Option<Line> {
    (!status.endpoints_hindrance.is_empty()).then(|| {
        Line::failed(
            "endpoints",
            status.endpoints_hindrance.clone(),
            "until then the client Service leads to no peer whose gate is not open, and to one that dies until Kubernetes notices",
        )
    })
}

/// Whether each peer's pod has its readiness gate open.
fn endpoints(pods: &[Value]) -> Line {
    let gate = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let gate = conditions.find(|it| it["type"] == GATE)?;
        gate["status"].as_str().map(str::to_owned)
    };
    let name = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str();
        name.unwrap_or_default().to_owned()
    };
    let (mut unset, mut closed) = (Vec::new(), Vec::new());
    for pod in pods {
        match gate(pod).as_deref() {
            Some("True") => {}
            Some(_) => closed.push(name(pod)),
            None => unset.push(name(pod)),
        }
    }
    if !unset.is_empty() {
        return Line::failed(
            "endpoints",
            format!(
                "no endpoints of the client Service, since their gate {GATE} was never set: {}",
                unset.join(", ")
            ),
            "a peer sets it when it is ready for the first time: if `raftserve cluster status` says that it is, let the peers' \
             service account patch pods/status, as the chart's Role does (rbac.create)",
        );
    }
    match closed.is_empty() {
        true => Line::good("endpoints", format!("gates open: {}", pods.len())),
        false => Line::failed(
            "endpoints",
            format!(
                "taken out of the client Service, since the leader does not hear them: {}",
                closed.join(", ")
            ),
            "if their pods run, see `raftserve cluster health`, and whether peers reach each other on port 7001",
        ),
    }
}

fn asked_version() -> Result<Line, Refused> {
    let text = kubectl::run(&["version", "--output", "json"])?;
    Ok(version(&serde_json::from_str(&text).unwrap_or_default()))
}

fn asked(check: &'static str, words: &[&str], read: &dyn Fn(&[Value]) -> Line) -> Line {
    answered(check, &kubectl::get(words), read)
}

/// The same of what `kubectl get` has answered.
fn answered(
    check: &'static str,
    answer: &Result<Value, Refused>,
    read: &dyn Fn(&[Value]) -> Line,
) -> Line {
    match answer {
        Ok(found) => read(found["items"].as_array().map_or(&[][..], Vec::as_slice)),
        Err(Refused::NoProgram) => unreached(Refused::NoProgram),
        Err(Refused::Said(said)) => Line::warning(
            check,
            format!("cannot tell: {said}"),
            "ask somebody who may look",
        ),
    }
}

/// What peers live on, whatever they are.
fn surroundings() -> [Line; 3] {
    let dns_of = [
        "endpointslices",
        "--namespace",
        "kube-system",
        "--selector",
        "kubernetes.io/service-name=kube-dns",
    ];
    let now = i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX);
    [
        asked("dns", &dns_of, &dns),
        asked("nodes", &["nodes"], &nodes),
        asked(
            "clock",
            &["leases", "--namespace", "kube-node-lease"],
            &|items| clocks(items, now),
        ),
    ]
}

fn unreached(refused: Refused) -> Line {
    match refused {
        Refused::NoProgram => Line::failed(
            "kubernetes",
            "there is no kubectl on the PATH",
            "install it, and choose a cluster with `kubectl config use-context`",
        ),
        Refused::Said(said) => Line::failed(
            "kubernetes",
            said,
            "see that `kubectl version` works: KUBECONFIG and `kubectl config use-context` choose the cluster",
        ),
    }
}

fn version(answer: &Value) -> Line {
    let server = &answer["serverVersion"];
    let shown = server["gitVersion"]
        .as_str()
        .unwrap_or("an unknown version");
    // Some clouds write `27+`.
    let minor = server["minor"].as_str().unwrap_or_default();
    let minor: u32 = minor.trim_end_matches('+').parse().unwrap_or(0);
    match minor {
        MINOR_MIN.. => Line::good("kubernetes", shown),
        _ => Line::failed(
            "kubernetes",
            format!("{shown} is too old"),
            format!("upgrade it to 1.{MINOR_MIN} or later"),
        ),
    }
}

fn permissions(namespace: &str, may: &dyn Fn(&[&str]) -> bool) -> Line {
    let missing: Vec<&str> = MADE
        .into_iter()
        .filter(|what| !may(&["create", what]))
        .collect();
    if !missing.is_empty() {
        return Line::failed(
            "permissions",
            format!("you may not create {} in {namespace}", missing.join(", ")),
            "ask for the role `admin` in that namespace, or name another one with --namespace",
        );
    }
    if !may(&GIVEN) {
        return Line::failed(
            "permissions",
            format!(
                "you may not patch pods/status in {namespace}, and so not make a Role that lets the peers"
            ),
            "the role `admin` of a namespace does not have it: let an administrator of the cluster install, or make the \
             Roles of `helm template` and say rbac.create: false",
        );
    }
    let unless_asked: Vec<String> = MADE_IF_ASKED
        .into_iter()
        .filter(|(what, _)| !may(&["create", what]))
        .map(|(what, value)| format!("{what} ({value})"))
        .collect();
    match unless_asked.is_empty() {
        true => Line::good(
            "permissions",
            format!("all that the chart makes may be made in {namespace}"),
        ),
        false => Line::warning(
            "permissions",
            format!(
                "you may make what every release has in {namespace}, but not create {}",
                unless_asked.join(", ")
            ),
            "leave those values as they come, or ask for the permission",
        ),
    }
}

fn may(asked: &[&str], namespace: &str) -> bool {
    let words = [&["auth", "can-i"][..], asked, &["--namespace", namespace]];
    kubectl::run(&words.concat()).is_ok()
}

/// Whether there is no such namespace, for sure: whoever may not look is not told so.
fn is_missing(namespace: &str) -> bool {
    match kubectl::run(&["get", "namespace", namespace, "--output", "name"]) {
        Err(Refused::Said(said)) => said.contains("NotFound"),
        Ok(_) | Err(Refused::NoProgram) => false,
    }
}

/// Where replicas are to run. A pod reads whatever Secret of its namespace its maker names.
fn replicas(
    meant: Option<&str>,
    peers: &str,
    is_missing: &dyn Fn(&str) -> bool,
    may_create: &dyn Fn(&str, &str) -> bool,
) -> Line {
    let Some(namespace) = meant.filter(|meant| *meant != peers) else {
        return Line::warning(
            "replicas",
            format!(
                "they are to run in {peers} with the peers, where whoever may bring services up can read the release's Secrets through a pod"
            ),
            "give them a namespace of their own: `kubectl create namespace NAME`, provider.namespace: NAME, and here \
             --replica-namespace NAME. Or let every operator be an admin",
        );
    };
    // Whoever may do something in all namespaces may do it in one that is not there, too.
    if is_missing(namespace) {
        return Line::failed(
            "replicas",
            format!("there is no namespace {namespace}"),
            format!("make it with `kubectl create namespace {namespace}`"),
        );
    }
    let asked = [
        "roles.rbac.authorization.k8s.io",
        "rolebindings.rbac.authorization.k8s.io",
    ];
    let missing: Vec<&str> = asked
        .into_iter()
        .filter(|what| !may_create(what, namespace))
        .collect();
    match missing.is_empty() {
        true => Line::good("replicas", format!("in {namespace}, apart from the peers")),
        false => Line::failed(
            "replicas",
            format!("you may not create {} in {namespace}", missing.join(", ")),
            "ask for the role `admin` in it",
        ),
    }
}

fn storage(items: &[Value], wanted: Option<&str>) -> Line {
    let name = |item: &Value| {
        item["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let is_default = |item: &&Value| item["metadata"]["annotations"][DEFAULT_CLASS] == "true";
    let known = || {
        let all: Vec<String> = items.iter().map(name).collect();
        match all.is_empty() {
            true => {
                "there is none; volumes can also be made by hand and named with storage.selector, with \"\" as \
                 storage.storageClassName"
                    .to_owned()
            }
            false => format!(
                "there are {}: choose one with storage.storageClassName",
                all.join(", ")
            ),
        }
    };
    match wanted {
        Some(wanted) if items.iter().any(|item| name(item) == wanted) => {
            Line::good("storage", format!("class {wanted}"))
        }
        Some(wanted) => Line::failed("storage", format!("there is no class {wanted}"), known()),
        None => match items.iter().find(is_default) {
            Some(item) => Line::good("storage", format!("class {}, the default one", name(item))),
            None => Line::failed("storage", "there is no default class", known()),
        },
    }
}

fn dns(items: &[Value]) -> Line {
    let endpoints = items.iter().filter_map(|item| item["endpoints"].as_array());
    let ready = endpoints
        .flatten()
        .filter(|it| it["conditions"]["ready"] == true);
    match ready.count() {
        0 => Line::warning(
            "dns",
            "no server of Service kube-dns is ready",
            "peers find each other by names: see that CoreDNS, or what you have instead, runs",
        ),
        count => Line::good("dns", format!("{count} ready")),
    }
}

/// The effects of a taint that keep pods away which do not tolerate it.
const REPELLING: [&str; 2] = ["NoSchedule", "NoExecute"];

fn nodes(items: &[Value]) -> Line {
    let is_ready = |item: &&Value| {
        let conditions = item["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
            && item["spec"]["unschedulable"] != true
    };
    let is_tainted = |item: &&Value| {
        let taints = item["spec"]["taints"].as_array();
        let mut effects = taints.into_iter().flatten().map(|taint| &taint["effect"]);
        effects.any(|effect| REPELLING.iter().any(|repelling| effect == repelling))
    };
    let ready = items.iter().filter(is_ready);
    let (tainted, free): (Vec<_>, Vec<_>) = ready.partition(is_tainted);
    let seen = match tainted.len() {
        0 => format!("{} take pods", free.len()),
        count => format!("{} take pods, and {count} with taints do not", free.len()),
    };
    match (free.len(), tainted.is_empty()) {
        (3.., _) => Line::good("nodes", seen),
        (_, true) => Line::warning(
            "nodes",
            seen,
            "with fewer than three, the loss of one node may take two of three peers with it",
        ),
        (_, false) => Line::warning(
            "nodes",
            seen,
            "with fewer than three, the loss of one node may take two of three peers with it; with `tolerations` that fit \
             the taints, peers run on those too",
        ),
    }
}

/// By what each node last wrote as its time, and ours.
fn clocks(items: &[Value], now_ms: i64) -> Line {
    let mut off = Vec::new();
    let mut seen = 0;
    for item in items {
        let node = item["metadata"]["name"].as_str().unwrap_or_default();
        let renewed = item["spec"]["renewTime"].as_str();
        let Some(Ok(renewed)) = renewed.map(str::parse::<Timestamp>) else {
            continue;
        };
        seen += 1;
        let renewed = renewed.seconds * 1_000 + i64::from(renewed.nanos) / 1_000_000;
        let age = now_ms - renewed;
        if !(-AHEAD_MAX_MS..=AGE_MAX_MS).contains(&age) {
            off.push(format!("{node} by {:.1} s", -age as f64 / 1_000.0));
        }
    }
    match (seen, off.is_empty()) {
        (0, _) => Line::warning(
            "clock",
            "no node tells its time",
            "see that the nodes' clocks are set by NTP",
        ),
        (_, true) => Line::good("clock", format!("{seen} nodes agree with this host")),
        (_, false) => Line::warning(
            "clock",
            format!("not as here: {}", off.join(", ")),
            "set the clocks by NTP, here too; a node that is far behind may also be down. Certificates and logins end by \
             the clock, nothing agreed does",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_class_must_be_there_or_be_the_default() {
        let classes = [
            json!({"metadata": {"name": "slow"}}),
            json!({"metadata": {"name": "fast", "annotations": {DEFAULT_CLASS: "true"}}}),
        ];
        assert_eq!(
            storage(&classes, None),
            Line::good("storage", "class fast, the default one")
        );
        assert_eq!(storage(&classes, Some("slow")).verdict, Verdict::Good);
        let missing = storage(&classes, Some("ssd"));
        assert_eq!(missing.verdict, Verdict::Failed);
        assert!(missing.remedy.unwrap().contains("slow, fast"));
        assert_eq!(storage(&classes[..1], None).verdict, Verdict::Failed);
        assert_eq!(storage(&[], None).verdict, Verdict::Failed);
    }

    #[test]
    fn who_may_not_make_the_objects_or_give_the_peers_their_role_is_told() {
        let line =
            |refused: &str| permissions("serving", &|asked| !asked.join(" ").contains(refused));
        let all = line("nothing");
        assert_eq!(all.verdict, Verdict::Good, "{all:?}");
        let objects = line("create secrets");
        assert_eq!(objects.verdict, Verdict::Failed);
        assert_eq!(objects.seen, "you may not create secrets in serving");
        // As the role `admin` of the namespace is.
        let role = line("patch pods --subresource=status");
        assert_eq!(role.verdict, Verdict::Failed);
        assert!(role.seen.contains("pods/status in serving"), "{role:?}");
        assert!(role.remedy.unwrap().contains("rbac.create"));
        let if_asked = line("create ingresses");
        assert_eq!(if_asked.verdict, Verdict::Warning);
        let value = "create ingresses.networking.k8s.io (ingress.enabled)";
        assert!(if_asked.seen.ends_with(value), "{if_asked:?}");
    }

    #[test]
    fn replicas_beside_the_peers_are_warned_of() {
        let all = |_: &str, _: &str| true;
        let there = |_: &str| false;
        for beside in [None, Some("serving")] {
            let line = replicas(beside, "serving", &there, &all);
            assert_eq!(line.verdict, Verdict::Warning);
            assert!(line.remedy.unwrap().contains("provider.namespace"));
        }
        let apart = replicas(Some("models"), "serving", &there, &all);
        assert_eq!(apart.verdict, Verdict::Good, "{apart:?}");
        let refused = replicas(Some("models"), "serving", &there, &|what, namespace| {
            namespace != "models" || !what.starts_with("roles.")
        });
        assert_eq!(refused.verdict, Verdict::Failed, "{refused:?}");
        let missing = replicas(Some("models"), "serving", &|name| name == "models", &all);
        assert_eq!(missing.verdict, Verdict::Failed, "{missing:?}");
        assert!(missing.remedy.unwrap().contains("create namespace models"));
    }

    #[test]
    fn a_peer_whose_gate_is_not_open_is_told_with_what_to_do() {
        let pod = |name: &str, gate: Option<&str>| {
            let gate = gate.map(|status| json!({"type": GATE, "status": status}));
            let ready = json!({"type": "Ready", "status": "True"});
            let conditions: Vec<_> = [ready].into_iter().chain(gate).collect();
            json!({"metadata": {"name": name}, "status": {"conditions": conditions}})
        };
        let open = pod("rs-0", Some("True"));
        let well = endpoints(std::slice::from_ref(&open));
        assert_eq!(well, Line::good("endpoints", "gates open: 1"));
        let unset = endpoints(&[open.clone(), pod("rs-1", None)]);
        assert_eq!(unset.verdict, Verdict::Failed);
        assert!(unset.seen.ends_with("never set: rs-1"), "{unset:?}");
        assert!(unset.remedy.unwrap().contains("rbac.create"));
        let closed = endpoints(&[open, pod("rs-2", Some("False"))]);
        assert_eq!(closed.verdict, Verdict::Failed);
        assert!(closed.seen.ends_with("hear them: rs-2"), "{closed:?}");
    }

    #[test]
    fn why_a_peers_pod_does_not_run_is_told() {
        let pod = |phase: &str, state: Value| json!({"metadata": {"name": "rs-2"}, "status": {"phase": phase, "containerStatuses": [{"state": state}]}});
        let starts = pod("Running", json!({"running": {}}));
        let mut runs = starts.clone();
        runs["status"]["conditions"] = json!([{"type": "ContainersReady", "status": "True"}]);
        let unplaced = json!({"metadata": {"name": "rs-1"}, "status": {"phase": "Pending"}});
        let silent = |_: Option<&str>| None;
        let well = waiting(1, std::slice::from_ref(&runs), &silent);
        assert_eq!(well, Line::good("pods", "ready: 1"));
        // As on a node that is gone: for Kubernetes they run.
        let mut ends = runs.clone();
        ends["metadata"]["deletionTimestamp"] = json!("2026-12-01T00:00:00Z");
        let gone = waiting(2, &[starts, ends], &silent);
        assert_eq!(gone.seen, "not ready: rs-2 (not ready), rs-2 (Terminating)");
        let refused = |pod: Option<&str>| {
            assert_eq!(pod, None);
            Some("exceeded quota: small".to_owned())
        };
        let few = waiting(3, std::slice::from_ref(&runs), &refused);
        assert_eq!(few.verdict, Verdict::Failed);
        let told = "not ready: 2 more that do not exist (exceeded quota: small)";
        assert_eq!(few.seen, told);
        assert_eq!(waiting(1, &[], &silent).verdict, Verdict::Failed);
        let creating = pod(
            "Pending",
            json!({"waiting": {"reason": "ContainerCreating"}}),
        );
        let warned = |pod: Option<&str>| {
            (pod == Some("rs-2")).then(|| "secret \"nosuch\" not found".to_owned())
        };
        let ill = waiting(3, &[runs, creating, unplaced], &warned);
        assert_eq!(ill.verdict, Verdict::Failed);
        let told =
            "not ready: rs-2 (ContainerCreating: secret \"nosuch\" not found), rs-1 (Pending)";
        assert_eq!(ill.seen, told);
        let backs_off =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let ill = waiting(1, &[pod("Running", backs_off)], &silent);
        assert_eq!(ill.seen, "not ready: rs-2 (CrashLoopBackOff: back-off 10s)");
    }

    #[test]
    fn what_the_peer_says_of_endpoints_is_told() {
        let mut status = v1::StatusResponse::default();
        assert_eq!(hindered_endpoints(&status), None);
        status.endpoints_hindrance = "pod rs-0 cannot be put among them".to_owned();
        let line = hindered_endpoints(&status).unwrap();
        assert_eq!((line.check, line.verdict), ("endpoints", Verdict::Failed));
        assert_eq!(line.seen, status.endpoints_hindrance);
    }

    #[test]
    fn versions_from_clouds_are_read() {
        let of = |minor: &str| {
            let answer = json!({"serverVersion": {"gitVersion": "v1", "minor": minor}});
            version(&answer).verdict
        };
        assert_eq!(of("33"), Verdict::Good);
        assert_eq!(of("30+"), Verdict::Good);
        assert_eq!(of("29"), Verdict::Failed);
        assert_eq!(of(""), Verdict::Failed);
    }

    #[test]
    fn the_chart_asks_for_the_same_version() {
        let chart = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../chart/Chart.yaml"));
        let asked = format!("kubeVersion: \">=1.{MINOR_MIN}.0-0\"\n");
        assert!(chart.contains(&asked), "{asked}");
    }

    #[test]
    fn clocks_are_compared_with_what_nodes_wrote() {
        let lease = |time: &str| json!({"metadata": {"name": "n1"}, "spec": {"renewTime": time}});
        // 2026-01-01T00:00:00Z.
        let now = 1_767_225_600_000;
        let good = clocks(&[lease("2025-12-31T23:59:52.500000Z")], now);
        assert_eq!(good.verdict, Verdict::Good, "{good:?}");
        let ahead = clocks(&[lease("2026-01-01T00:00:05.000000Z")], now);
        assert_eq!(ahead.seen, "not as here: n1 by 5.0 s");
        let behind = clocks(&[lease("2025-12-31T23:58:00.000000Z")], now);
        assert_eq!(behind.seen, "not as here: n1 by -120.0 s");
        assert_eq!(clocks(&[], now).verdict, Verdict::Warning);
    }

    #[test]
    fn servers_and_nodes_that_are_ready_count() {
        let slices = [json!({"endpoints": [
            {"conditions": {"ready": true}}, {"conditions": {"ready": false}},
        ]})];
        assert_eq!(dns(&slices), Line::good("dns", "1 ready"));
        assert_eq!(dns(&[]).verdict, Verdict::Warning);
        let node = |ready: &str, cordoned: bool| {
            json!({
                "spec": {"unschedulable": cordoned},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let all = [
            node("True", false),
            node("True", true),
            node("False", false),
        ];
        assert_eq!(nodes(&all).seen, "1 take pods");
        let three = [
            node("True", false),
            node("True", false),
            node("True", false),
        ];
        assert_eq!(nodes(&three).verdict, Verdict::Good);
    }

    #[test]
    fn nodes_with_taints_that_keep_pods_away_do_not_count() {
        let node = |effects: &[&str]| {
            let taints: Vec<_> = effects
                .iter()
                .map(|effect| json!({"key": "k", "effect": effect}))
                .collect();
            json!({
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            })
        };
        let control = node(&["PreferNoSchedule", "NoSchedule"]);
        let two = nodes(&[control.clone(), node(&[]), node(&["PreferNoSchedule"])]);
        assert_eq!(two.verdict, Verdict::Warning);
        assert_eq!(two.seen, "2 take pods, and 1 with taints do not");
        assert!(two.remedy.unwrap().contains("`tolerations`"));
        let three = nodes(&[
            control,
            node(&["NoExecute"]),
            node(&[]),
            node(&[]),
            node(&[]),
        ]);
        assert_eq!(
            three,
            Line::good("nodes", "3 take pods, and 2 with taints do not")
        );
    }
}
