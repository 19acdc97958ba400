//! What the API server's refusals mean, and what to do about them.

use kube::runtime::watcher;

/// One line for people: what was said, and the remedy if there is one.
pub(super) fn of_api(error: &kube::Error, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) => of_status(status.code, &status.message, namespace),
        other => format!(
            "the Kubernetes API server does not answer: {}; traffic goes on, and it is asked again",
            crate::controller::chain(other)
        ),
    }
}

/// As [`of_api`], of a watch.
pub(super) fn of_watch(error: &watcher::Error, namespace: &str) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => of_api(error, namespace),
        watcher::Error::WatchError(status) => of_status(status.code, &status.message, namespace),
        other @ watcher::Error::NoResourceVersion => other.to_string(),
    }
}

fn of_status(code: u16, message: &str, namespace: &str) -> String {
    match code {
        401 => {
            format!("{message}; this peer's service account or kubeconfig is not valid any more")
        }
        403 if message.contains("exceeded quota") => {
            format!("{message}; raise the quota of namespace {namespace}, or run fewer replicas")
        }
        403 => format!(
            "{message}; grant this peer's service account get, list, watch, create, patch and delete on pods, get on \
             pods/log, and create, get and delete on secrets in namespace {namespace}"
        ),
        404 if message.contains("namespaces") => {
            format!("{message}; make it with: kubectl create namespace {namespace}")
        }
        _ => message.to_owned(),
    }
}

/// Whether the request itself is wrong, so that repeating it is of no use.
pub(super) fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422))
}
