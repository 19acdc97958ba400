//! What a pod's status means for its replica, and what to tell people about it: pure.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use super::{files, labels, pod};
use crate::provider::{End, Exit, ReplicaState, Step};

/// The longest that one reason may be.
const REASON_CHARS_MAX: usize = 600;

/// The most that is quoted of what somebody else said, so that the remedy after it is not cut off.
const QUOTE_CHARS_MAX: usize = 300;

/// What comes of a pod whose place was taken: nobody has to do anything.
const REPLACED: &str = "another replica takes its place";

/// What to do about a program that ended.
const SEE_LOGS: &str = "see raftserve logs";

/// What a pod shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) state: ReplicaState,
    /// Why it does not run yet, or is not to be counted on, and what to do.
    pub(super) note: Option<String>,
}

impl Seen {
    fn plain(state: ReplicaState) -> Self {
        Self { state, note: None }
    }

    /// On its way, and here is what holds it up.
    fn held_up(note: impl AsRef<str>) -> Self {
        Self {
            state: ReplicaState::SettingUp,
            note: Some(one_line(note.as_ref())),
        }
    }

    fn exited(step: Step, end: End, message: impl AsRef<str>) -> Self {
        let message = one_line(message.as_ref());
        Self::plain(ReplicaState::Exited(Exit { step, end, message }))
    }
}

/// What the pod shows.
pub(super) fn seen(pod: &Pod) -> Seen {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    if pod.metadata.deletion_timestamp.is_some() {
        let disruption = disruption(status);
        return Seen {
            state: match disruption {
                Some(_) => ReplicaState::Preempted,
                None => ReplicaState::Stopping,
            },
            note: Some(one_line(
                disruption
                    .as_deref()
                    .unwrap_or("its pod was deleted; another replica takes its place"),
            )),
        };
    }
    let container = container_of(status);
    let ended = container.and_then(|it| it.state.as_ref()?.terminated.as_ref());
    if let Some(over) = over(pod, status, ended) {
        return over;
    }
    if gated(pod) {
        return Seen::plain(ReplicaState::Prepared);
    }
    if let Some(held_up) = held_up(pod, status) {
        return held_up;
    }
    let running = container.is_some_and(|it| {
        let running = it.state.as_ref().is_some_and(|it| it.running.is_some());
        running && it.started != Some(false)
    });
    match address(pod, status).filter(|_| running) {
        Some(address) => Seen {
            state: ReplicaState::Running { address },
            note: lost_node(pod, status),
        },
        None => Seen::plain(ReplicaState::SettingUp),
    }
}

/// Whether the pod waits behind our gate.
pub(super) fn gated(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_ref());
    gates.is_some_and(|gates| gates.iter().any(|gate| gate.name == labels::GATE))
}

fn container_of(status: &PodStatus) -> Option<&ContainerStatus> {
    let all = status.container_statuses.as_ref()?;
    all.iter().find(|it| it.name == labels::CONTAINER)
}

fn address(pod: &Pod, status: &PodStatus) -> Option<String> {
    let ip: IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
    let port = pod.metadata.annotations.as_ref()?.get(labels::PORT)?;
    Some(SocketAddr::new(ip, port.parse().ok()?).to_string())
}

/// What to say of a pod whose node Kubernetes does not hear any more. Its containers are as they were heard last, and so
/// ready; that the pod is not was said by somebody else than its kubelet, who would have given a reason.
///
/// It may well serve on, as far as anybody knows: whether it does, probes tell.
fn lost_node(pod: &Pod, status: &PodStatus) -> Option<String> {
    let condition = |type_: &str| {
        let mut all = status.conditions.iter().flatten();
        all.find(|it| it.type_ == type_)
    };
    let unready = condition("Ready").filter(|it| it.status == "False")?;
    let explained = unready.reason.as_deref().is_some_and(|it| !it.is_empty());
    if explained || condition("ContainersReady")?.status != "True" {
        return None;
    }
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    Some(format!(
        "node {node} is lost: Kubernetes does not hear it any more; see kubectl describe node {node}. A replica that answers no probes is replaced in time"
    ))
}

/// The end of a pod that will do nothing more.
fn over(pod: &Pod, status: &PodStatus, ended: Option<&ContainerStateTerminated>) -> Option<Seen> {
    let failed = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if failed && let Some(reason) = status.reason.as_deref() {
        let message = quote(status.message.as_ref());
        let said = status.message.as_deref().unwrap_or_default();
        let told = match reason {
            "Evicted" => {
                let remedy = eviction_remedy(said);
                format!("the node evicted its pod: {message}; {remedy}")
            }
            "NodeLost" | "NodeShutdown" | "Terminated" => {
                format!("its node was shut down: {message}; {REPLACED}")
            }
            "NodeAffinity" | "NodeSelectorMismatching" => {
                format!(
                    "its node refused the pod ({reason}): {message}; {REPLACED}, where nodeSelector and affinity in pod_config allow it"
                )
            }
            "UnexpectedAdmissionError" => {
                format!(
                    "its node refused the pod ({reason}): {message}; {REPLACED}. See kubectl describe node if it happens again"
                )
            }
            refused if refused.starts_with("OutOf") => {
                format!(
                    "its node refused the pod ({reason}): {message}; {REPLACED}. If it happens again, ask for less in resources, \
                     or add nodes"
                )
            }
            other => format!("its pod failed ({other}): {message}; see kubectl describe pod"),
        };
        let end = match reason {
            "Evicted" if exceeded_its_own(said) => End::Signal(9), // As its kubelet ends it.
            _ => End::Preempted,
        };
        return Some(Seen::exited(Step::Run, end, told));
    }
    if failed && let Some(disruption) = disruption(status) {
        return Some(Seen::exited(Step::Run, End::Preempted, disruption));
    }
    if let Some(ended) = ended {
        return Some(exit(ended, pod));
    }
    failed.then(|| {
        let told = init_failure(status).unwrap_or_else(|| {
            "its pod failed before the replica was started; see kubectl describe pod".to_owned()
        });
        Seen::exited(Step::Setup, End::NotStarted, told)
    })
}

/// What to do about an eviction of which the kubelet says `message`: it names the resource that it lacked, or the limit
/// that the pod went beyond.
fn eviction_remedy(message: &str) -> &'static str {
    if message.contains("EmptyDir") {
        "raise the sizeLimit of that emptyDir in pod_config, or write less to it"
    } else if message.contains("phemeral") || message.contains("inodes") {
        "request the disk that it needs by its container's requests and limits of ephemeral-storage in pod_config, \
         write to volumes, or give nodes more disk"
    } else if message.contains("pids") {
        "let it run fewer processes, or give nodes more process ids"
    } else {
        "request what it needs by resources.memory, or give nodes more room"
    }
}

/// Whether an eviction of which the kubelet says `message` is because the pod took more than its own limits allow, wherever it
/// runs: that its node lacks something is said in other words.
fn exceeded_its_own(message: &str) -> bool {
    message.contains("exceeds the") || message.contains("exceeded its")
}

fn exit(ended: &ContainerStateTerminated, pod: &Pod) -> Seen {
    let code = ended.exit_code;
    let end = match ended.signal {
        Some(signal) => End::Signal(signal),
        None => End::Code(code),
    };
    let last = last_line(ended.message.as_deref().unwrap_or_default());
    match ended.reason.as_deref() {
        Some("OOMKilled") => Seen::exited(
            Step::Run,
            end,
            "it was killed because it used more memory than it may; raise resources.memory, or its container's \
             limits.memory in pod_config",
        ),
        Some(reason @ ("ContainerCannotRun" | "StartError")) => Seen::exited(
            Step::Setup,
            End::NotStarted,
            format!(
                "its container cannot be started ({reason}): {}; the image needs /bin/sh{}",
                quote(Some(&last.to_owned())),
                match files::are_mounted(pod) {
                    true =>
                        ", and a destination of file_mounts that is a file must be no directory in it, nor the other way round",
                    false => "",
                }
            ),
        ),
        _ if files::is_of_place(last) => Seen::exited(
            Step::Setup,
            end,
            format!(
                "{}; choose another destination in file_mounts, or an image whose user may write there",
                quote(Some(&last.to_owned()))
            ),
        ),
        _ if last.starts_with("setup exited with code") => {
            Seen::exited(Step::Setup, end, format!("{last}; {SEE_LOGS}"))
        }
        _ => {
            let last = quote(Some(&last.to_owned()));
            let said = if last.is_empty() { "" } else { ": " };
            let remedy = match (ended.signal, code) {
                (None, 0) => "run must go on for as long as the replica is to serve",
                _ => SEE_LOGS,
            };
            let told = format!("run exited with code {code}{said}{last}; {remedy}");
            Seen::exited(Step::Run, end, told)
        }
    }
}

fn init_failure(status: &PodStatus) -> Option<String> {
    let inits = status.init_container_statuses.as_ref()?;
    inits.iter().find_map(|it| {
        let ended = it.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| {
            let last = last_line(ended.message.as_deref().unwrap_or_default());
            let (name, code) = (&it.name, ended.exit_code);
            let said = quote(Some(&last.to_owned()));
            format!(
                "its init container {name} exited with code {code}: {said}; see kubectl logs of the pod with -c {name}, and \
                 correct pod_config"
            )
        })
    })
}

/// What keeps the pod from running, if something does.
fn held_up(pod: &Pod, status: &PodStatus) -> Option<Seen> {
    let conditions = status.conditions.iter().flatten();
    let unschedulable = conditions
        .filter(|it| it.type_ == "PodScheduled" && it.status == "False")
        .find(|it| it.reason.as_deref() == Some("Unschedulable"));
    if let Some(condition) = unschedulable {
        let message = condition.message.as_deref().unwrap_or_default();
        let remedy = pod::unschedulable_remedy(pod, message);
        let said = quote(condition.message.as_ref());
        return Some(Seen::held_up(format!(
            "no node can take it: {said}; {remedy}"
        )));
    }
    let mains = status.container_statuses.iter().flatten();
    let inits = status.init_container_statuses.iter().flatten();
    inits.chain(mains).find_map(waiting)
}

fn waiting(container: &ContainerStatus) -> Option<Seen> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = quote(waiting.message.as_ref());
    let image = &container.image;
    let pull = "check resources.image_id, and imagePullSecrets in pod_config if the registry asks for credentials";
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            Some(Seen::held_up(format!(
                "the image {image} cannot be pulled: {said}; {pull}"
            )))
        }
        "InvalidImageName" => Some(Seen::exited(
            Step::Setup,
            End::NotStarted,
            format!("{image} is no name of an image: {said}; correct resources.image_id"),
        )),
        "ErrImageNeverPull" => Some(Seen::exited(
            Step::Setup,
            End::NotStarted,
            format!(
                "the image {image} is not on the node, and imagePullPolicy is Never; load it, or let it be pulled"
            ),
        )),
        "CrashLoopBackOff" => Some(Seen::held_up(format!(
            "container {} ends again and again: {said}; see kubectl logs",
            container.name
        ))),
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            Some(Seen::held_up(format!(
                "container {} cannot be made ({reason}): {said}; correct pod_config",
                container.name
            )))
        }
        _ => None,
    }
}

/// Who takes the pod's place from it and why, where somebody does: a pod that is only deleted says nothing of it.
fn disruption(status: &PodStatus) -> Option<String> {
    let mut conditions = status.conditions.iter().flatten();
    let target = conditions.find(|it| it.type_ == "DisruptionTarget" && it.status == "True")?;
    let said = quote(target.message.as_ref());
    Some(match target.reason.as_deref().unwrap_or_default() {
        "DeletionByTaintManager" => {
            format!(
                "its node is lost or was tainted: {said}; {REPLACED}. Tolerations in pod_config keep it there in spite of a taint"
            )
        }
        "PreemptionByScheduler" => {
            format!(
                "a pod of higher priority took its place: {said}; add nodes, or set priorityClassName in pod_config"
            )
        }
        "EvictionByEvictionAPI" => {
            format!("its node is drained: {said}; {REPLACED} on a node that takes pods")
        }
        "DeletionByPodGC" => format!("its node is gone: {said}; {REPLACED}"),
        "TerminationByKubelet" => {
            format!(
                "its node shuts down or lacks room: {said}; {REPLACED}. Request what it needs by resources, if it was for room"
            )
        }
        reason => format!("its pod was disrupted ({reason}): {said}; see kubectl describe pod"),
    })
}

fn last_line(text: &str) -> &str {
    let mut lines = text.lines().rev().map(str::trim);
    lines.find(|line| !line.is_empty()).unwrap_or_default()
}

/// What somebody else said, as far as there is room for it.
fn quote(said: Option<&String>) -> String {
    let line = one_line(said.map_or("", String::as_str));
    clipped(&line, QUOTE_CHARS_MAX)
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    clipped(&words.join(" "), REASON_CHARS_MAX)
}

/// As much of a text as there is room for, and a mark where it is not all.
fn clipped(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
