//! What the API server's refusals mean, and what to do about them.

use kube::runtime::watcher;

/// One line for people: what was said, and the remedy if there is one.
pub(super) fn of_api(error: &kube::Error, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) => of_status(status.code, &status.message, namespace),
        other => format!(
            "the Kubernetes API server does not answer: {}; traffic goes on, and it is asked again until it does. See whether it \
             is up (kubectl get --raw /readyz), and whether pods on this peer's node reach it",
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
        403 if message.contains("violates PodSecurity") => format!(
            "{message}; let replicas run in a namespace that admits such pods (--kubernetes-namespace, in the chart \
             provider.namespace), or give their container the securityContext that is asked for by \
             config.kubernetes.pod_config"
        ),
        403 if message.contains("error looking up service account") => format!(
            "{message}; create that service account in namespace {namespace}, or name another one in \
             config.kubernetes.pod_config"
        ),
        403 if is_ending(message) => format!("{message}; traffic goes on for as long as pods run"),
        403 => format!(
            "{message}; grant this peer's service account get, list, watch, create, patch and delete on pods, get on \
             pods/log, and create on secrets in namespace {namespace}"
        ),
        404 if message.contains("namespaces") => {
            format!("{message}; make it with: kubectl create namespace {namespace}")
        }
        _ => message.to_owned(),
    }
}

/// Whether the namespace goes, and with it all that could be refused.
fn is_ending(message: &str) -> bool {
    message.contains("because it is being terminated")
}

/// Whether an object that a request named by name and uid is gone, or is another one by now. A patch that names another
/// uid is one that would change it, and so no conflict but an invalid request.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => true,
            422 => status.message.contains("metadata.uid"),
            _ => false,
        },
        _ => false,
    }
}

/// Whether the object was changed by somebody else at the same time, or is not the one that a deletion was to find.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether somebody else lacks something, a permission or room in a quota, with which the same request would be granted.
pub(super) fn is_lack(error: &kube::Error) -> bool {
    let lacks = |said: &str| {
        said.contains("exceeded quota") || said.contains("User \"") && said.contains("\" cannot ")
    };
    matches!(error, kube::Error::Api(status) if status.code == 403 && lacks(&status.message))
}

/// Whether repeating the request is of no use: it is wrong, or what it asks for is not allowed.
pub(super) fn is_final(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            !is_ending(&status.message) && !is_lack(error)
        }
        kube::Error::Api(status) => matches!(status.code, 400 | 413 | 422),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_told_with_what_would_allow_it() {
        let said = |message: &str| of_status(403, message, "replicas");
        let error = |message: &str| {
            let status = kube::core::Status::failure(message, "Forbidden").with_code(403);
            kube::Error::Api(status.boxed())
        };
        for (message, remedy, lacks, ends) in [
            (
                "pods \"web-1\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true",
                "provider.namespace",
                false,
                true,
            ),
            (
                "pods \"web-1\" is forbidden: error looking up service account replicas/x: serviceaccount \"x\" not found",
                "create that service account in namespace replicas",
                false,
                true,
            ),
            (
                "pods \"web-1\" is forbidden: exceeded quota: small, requested: pods=1",
                "raise the quota of namespace replicas",
                true,
                false,
            ),
            (
                "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\"",
                "grant this peer's service account",
                true,
                false,
            ),
            (
                "pods \"web-1\" is forbidden: unable to create new content in namespace replicas because it is being terminated",
                "traffic goes on",
                false,
                false,
            ),
        ] {
            let told = said(message);
            assert!(told.contains(message) && told.contains(remedy), "{told}");
            let error = error(message);
            assert_eq!((is_lack(&error), is_final(&error)), (lacks, ends), "{told}");
        }
    }
}
