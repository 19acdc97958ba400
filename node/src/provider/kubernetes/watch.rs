//! Follows the cluster's pods, for as long as this peer runs.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use tokio_util::sync::CancellationToken;

use super::{Site, labels, remedy};
use crate::kubernetes::watching::{Heard, Watching};

/// Feeds the cache until `cancelled`.
pub(super) async fn run(site: Arc<Site>, cancelled: CancellationToken) {
    let mut watching = Watching::begin(site.pods(), &labels::selector(site.cluster));
    loop {
        let heard = tokio::select! {
            () = cancelled.cancelled() => return,
            heard = watching.next() => heard,
        };
        match heard {
            Some(Heard::Event(event)) => note(&site, event).await,
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

async fn note(site: &Site, event: Event<Pod>) {
    match event {
        Event::Init => site.cache.list_begins(),
        Event::InitApply(pod) => site.cache.note(pod),
        Event::InitDone => site.cache.list_ends(),
        Event::Apply(pod) => {
            site.cache.note(pod);
            recovered(site);
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
