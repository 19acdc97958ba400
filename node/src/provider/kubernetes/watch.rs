//! Follows the cluster's pods, for as long as this peer runs.

use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio_util::sync::CancellationToken;

use super::{Site, labels, remedy};

/// How long one watch lasts, in seconds. A connection that died without a word is noticed after it.
const WATCH_SECS: u32 = 60;

/// Feeds the cache until `cancelled`.
pub(super) async fn run(site: Arc<Site>, cancelled: CancellationToken) {
    let config = watcher::Config::default()
        .labels(&labels::selector(site.cluster))
        .timeout(WATCH_SECS);
    let events = watcher(site.pods(), config).default_backoff();
    let mut events = std::pin::pin!(events);
    loop {
        let event = tokio::select! {
            () = cancelled.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => note(&site, event).await,
            Some(Err(error)) => {
                let said = remedy::of_watch(&error, &site.namespace);
                if site.cache.suffers(Some(said.clone())) {
                    tracing::warn!(namespace = site.namespace, "cannot watch pods: {said}");
                }
            }
            None => return,
        }
    }
}

async fn note(site: &Site, event: Event<Pod>) {
    match event {
        Event::Init => site.cache.list_begins(),
        Event::InitApply(pod) => site.cache.note(pod),
        Event::InitDone => site.cache.list_ends(),
        Event::Apply(pod) => {
            site.cache.note(pod);
            if site.cache.suffers(None) {
                tracing::info!(namespace = site.namespace, "pods are watched again");
            }
        }
        Event::Delete(pod) => {
            if let Some(by) = site.taken(&pod).await {
                // It runs on under another owner, so that nothing may be put in its place.
                site.cache.taken_over(site.cluster, by);
                tracing::error!(%by, "the replicas were taken over by another cluster");
                return;
            }
            let name = pod.metadata.name.unwrap_or_default();
            site.cache.gone(&name, pod.metadata.uid.as_ref());
        }
    }
}
