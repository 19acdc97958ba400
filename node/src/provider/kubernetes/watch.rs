//! Follows the cluster's pods, for as long as this peer runs.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Site, labels, remedy};
use crate::kubernetes::watching::{Heard, Watching};
use crate::provider::ProviderError;

/// How long after it could not be asked why pods are gone it is asked again. Nothing is concluded from it meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Feeds the cache until `cancelled`.
pub(super) async fn run(site: Arc<Site>, cancelled: CancellationToken) {
    let mut watching = Watching::begin(site.pods(), &labels::selector(site.cluster));
    loop {
        let heard = tokio::select! {
            () = cancelled.cancelled() => return,
            heard = watching.next() => heard,
        };
        match heard {
            Some(Heard::Event(event)) => tokio::select! {
                () = cancelled.cancelled() => return,
                () = note(&site, event) => {}
            },
            Some(Heard::Failed(error)) => {
                let said = remedy::of_watch(&error, &site.namespace);
                if site.cache.suffers(Some(said.clone())) {
                    tracing::warn!(namespace = site.namespace, "cannot watch pods: {said}");
                }
            }
            Some(Heard::Recovered) => recovered(&site),
            None => return,
        }
    }
}

fn recovered(site: &Site) {
    if site.cache.suffers(None) {
        tracing::info!(namespace = site.namespace, "pods are watched again");
    }
}

/// Notes what the watch tells. What is not shown any more may run on under another owner, and then nothing may be put in
/// its place: so that is asked first.
pub(super) async fn note(site: &Site, event: Event<Pod>) {
    match event {
        Event::Init => site.cache.list_begins(),
        Event::InitApply(pod) => site.cache.note(pod),
        Event::InitDone => {
            if site.cache.list_lacks_any() && answered(site, || site.still_ours()).await.is_err() {
                return;
            }
            site.cache.list_ends();
        }
        Event::Apply(pod) => {
            site.cache.note(pod);
            recovered(site);
        }
        Event::Delete(pod) => {
            if let Ok(Some(by)) = answered(site, || site.taken(&pod)).await {
                site.note_taken(site.cluster, by);
                return;
            }
            let name = pod.metadata.name.unwrap_or_default();
            site.cache.gone(&name, pod.metadata.uid.as_ref());
        }
    }
}

/// Asks until there is an answer.
async fn answered<T, F>(site: &Site, ask: impl Fn() -> F) -> Result<T, ProviderError>
where
    F: Future<Output = Result<T, ProviderError>>,
{
    loop {
        match ask().await {
            Err(error @ ProviderError::Unavailable { .. }) => {
                if site.cache.suffers(Some(error.to_string())) {
                    tracing::warn!(%error, "cannot tell whether pods are gone");
                }
                sleep(ASK_AGAIN).await;
            }
            answer => {
                recovered(site);
                return answer;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raftserve_model::ClusterId;
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::kubernetes::client::tests::{PATH_GONE_MAX, Server};

    const CLUSTER: ClusterId = ClusterId([0xaa; 16]);

    /// No watch that says nothing is believed for longer: as long as one lasts, and as an answer to the next takes.
    const NOTICED: Duration = Duration::from_secs(80);

    /// Long beside a pause between tries.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn pod(number: u32) -> Value {
        json!({"metadata": {
            "name": format!("p{number}"), "uid": format!("u{number}"),
            "labels": {
                labels::SERVICE: "svc", labels::SERVICE_ID: "7", labels::REPLICA: number.to_string(),
            },
        }})
    }

    async fn until(site: &Site, condition: impl Fn(&Site) -> bool) {
        let mut changes = site.cache.changes();
        let coming = async {
            while !condition(site) {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, coming).await.expect("in time");
    }

    /// A site that follows the server, which has one pod.
    async fn follow(server: &Server) -> (Arc<Site>, CancellationToken, JoinHandle<()>) {
        server.add(pod(1));
        let site = Arc::new(Site {
            cluster: CLUSTER,
            client: server.client(),
            namespace: "ns".to_owned(),
            default_image: String::new(),
            cache: Arc::default(),
            home: None,
        });
        let cancelled = CancellationToken::new();
        let watching = tokio::spawn(run(Arc::clone(&site), cancelled.clone()));
        until(&site, |site| count(site) == 1).await;
        server.watched().await;
        (site, cancelled, watching)
    }

    fn count(site: &Site) -> usize {
        site.cache.observe().map_or(0, |seen| seen.len())
    }

    /// In true time, which is the kernel's.
    #[tokio::test]
    async fn that_packets_to_the_api_server_are_lost_is_told_and_it_is_heard_again() {
        let server = Server::start().await;
        let (site, cancelled, watching) = follow(&server).await;
        server.add(pod(2));
        until(&site, |site| count(site) == 2).await;
        server.lose(true);
        server.add(pod(3));
        let lost = Instant::now();
        until(&site, |site| site.cache.trouble().is_some()).await;
        // A watch fails with its connection; only the margin is of a busy machine.
        let took = lost.elapsed();
        assert!(took <= PATH_GONE_MAX + Duration::from_secs(3), "{took:?}");
        let told = site.cache.trouble().unwrap();
        assert!(told.contains("does not answer"), "{told}");
        assert_eq!(count(&site), 2, "what was seen last is believed meanwhile");

        server.lose(false);
        until(&site, |site| {
            count(site) == 3 && site.cache.trouble().is_none()
        })
        .await;
        cancelled.cancel();
        watching.await.unwrap();
    }

    #[tokio::test]
    async fn an_api_server_that_falls_silent_is_told_with_what_to_do_and_heard_again() {
        let server = Server::start().await;
        let (site, cancelled, watching) = follow(&server).await;
        server.silence(true);
        server.add(pod(2));

        // From here on, time passes as soon as nobody has anything else to do.
        tokio::time::pause();
        let fell_silent = Instant::now();
        let mut changes = site.cache.changes();
        while site.cache.trouble().is_none() {
            let told = timeout(2 * NOTICED, changes.changed()).await;
            told.expect("it is told").unwrap();
        }
        assert!(fell_silent.elapsed() <= NOTICED, "{fell_silent:?}");
        tokio::time::resume();
        let told = site.cache.trouble().unwrap();
        assert!(
            told.contains("does not answer") && told.contains("kubectl get --raw /readyz"),
            "{told}"
        );
        assert_eq!(count(&site), 1, "what was seen last is believed meanwhile");

        server.silence(false);
        until(&site, |site| {
            count(site) == 2 && site.cache.trouble().is_none()
        })
        .await;
        cancelled.cancel();
        watching.await.unwrap();
    }
}
