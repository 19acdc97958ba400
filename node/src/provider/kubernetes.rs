//! Replicas as pods. Each has a name fixed by its replica, so that creating twice is creating once; a peer knows of
//! pods by watching those that bear its cluster's label, so any peer can take over at any moment.
//!
//! A pod is created behind a scheduling gate, which is taken away only after the log was seen to want the replica
//! still ([ADR 16](../../../docs/adr/0016-a-gate-for-each-pod.md)): so what was stopped never starts again, however
//! late a paused old leader's request arrives.

mod cache;
mod create;
mod files;
mod labels;
mod logs;
mod merge;
mod pod;
mod quantity;
mod remedy;
mod status;
mod stop;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use raftserve_model::{ClusterId, ReplicaId, ServiceId};
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Hold, Launched, LogQuery, LogStream, Observation, Provider, ProviderError, ReplicaKey,
    ReplicaLaunch,
};
use crate::kubernetes::whereabouts::Whereabouts;
use crate::kubernetes::{ApiServer, Home};
use cache::Cache;

/// How often what is to be taken over is listed at a time: whoever asks tries again, and a change rarely meets another.
const TAKE_OVER_ROUNDS: usize = 5;

/// How pods are made.
#[derive(Clone, Debug)]
pub struct KubernetesSettings {
    /// Where they go; the namespace of this peer's own credentials if none is given.
    pub namespace: Option<String>,
    /// Their image where a service names none.
    pub default_image: String,
}

/// Makes replicas as pods. To be made inside a tokio runtime with time and I/O.
pub struct KubernetesProvider {
    site: Arc<Site>,
    _watching: DropGuard,
}

/// Where the pods of one cluster are.
struct Site {
    cluster: ClusterId,
    client: kube::Client,
    namespace: String,
    default_image: String,
    cache: Arc<Cache>,
    /// Where it is written down in which namespace the pods are, if this peer is one itself.
    home: Option<Arc<Home>>,
}

impl KubernetesProvider {
    /// The provider for `cluster`, which begins to watch its pods. The API server need not answer yet. A peer that has
    /// a `home` holds back where its settings have another namespace than that of the pods.
    ///
    /// # Errors
    /// If nothing says where the API server is: neither a service account nor a kubeconfig.
    pub async fn new(
        settings: KubernetesSettings,
        cluster: ClusterId,
        api: &ApiServer,
        home: Option<Arc<Home>>,
    ) -> Result<Self, kube::Error> {
        let client = api.client().await?;
        let site = Arc::new(Site {
            cluster,
            namespace: settings
                .namespace
                .unwrap_or_else(|| client.default_namespace().to_owned()),
            client,
            default_image: settings.default_image,
            cache: Arc::default(),
            home,
        });
        let cancelled = CancellationToken::new();
        tokio::spawn(watch::run(Arc::clone(&site), cancelled.clone()));
        Ok(Self {
            site,
            _watching: cancelled.drop_guard(),
        })
    }
}

impl Site {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The name of the pod that is, or would be, the replica's.
    fn name_of(&self, replica: &ReplicaKey) -> String {
        // What was taken over is named after the cluster that made it.
        let known = self.cache.name_of(replica.id);
        known.unwrap_or_else(|| labels::pod_name(self.cluster, replica))
    }

    /// Puts what the API server says now into the cache.
    async fn refresh(&self, occupied: bool) -> Result<(), ProviderError> {
        self.is_the_place(occupied).await?;
        self.still_ours().await?;
        let query = ListParams::default().labels(&labels::selector(self.cluster));
        let listed = self.pods().list(&query).await;
        let pods = listed.map_err(|error| self.unavailable("list pods", &error))?;
        for pod in pods {
            self.cache.note(pod);
        }
        Ok(())
    }

    /// Whether the pods are in our namespace, and not in another that was ours before.
    async fn is_the_place(&self, occupied: bool) -> Result<(), ProviderError> {
        let Some(home) = &self.home else {
            return Ok(());
        };
        let found = home
            .whereabouts(self.cluster, &self.namespace, occupied)
            .await;
        match found {
            Ok(Whereabouts::Here) => {
                self.cache.is_misplaced(None);
                Ok(())
            }
            Ok(Whereabouts::Elsewhere(there)) => {
                let reason = home.directions(&there, &self.namespace);
                self.cache.is_misplaced(Some(reason.clone()));
                Err(ProviderError::Unavailable {
                    doing: "see to replicas",
                    reason,
                })
            }
            // As with all else that peers read of themselves: without the permission they do without it.
            Err(error) if error.code() == Some(403) => {
                tracing::warn!(%error, "cannot tell in which namespace replicas were made before");
                Ok(())
            }
            Err(error) => Err(ProviderError::Unavailable {
                doing: "read in which namespace replicas are",
                reason: error.to_string(),
            }),
        }
    }

    /// Makes the pods of `from` ours, and leaves word on them for `from`, should it still run. Returns once none bears its
    /// label: a change may meet another one, of a pod's status, and then come to nothing.
    async fn take_over(&self, from: ClusterId) -> Result<(), ProviderError> {
        self.not_taken(from).await?;
        let query = ListParams::default().labels(&labels::selector(from));
        for _ in 0..TAKE_OVER_ROUNDS {
            let listed = self.pods().list(&query).await;
            let pods =
                listed.map_err(|error| self.unavailable("list pods to take over", &error))?;
            if pods.items.is_empty() {
                return Ok(());
            }
            for pod in pods {
                self.take(pod, from).await?;
            }
        }
        Err(ProviderError::Unavailable {
            doing: "take all pods over",
            reason: format!("some of cluster {from} were changed or made meanwhile"),
        })
    }

    /// Makes one pod ours, unless it is gone or was changed meanwhile.
    async fn take(&self, pod: Pod, from: ClusterId) -> Result<(), ProviderError> {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else {
            return Ok(());
        };
        // The uid is compared: a merge that would change it is refused.
        let ours = json!({ "metadata": {
            "uid": uid,
            "labels": {
                labels::CLUSTER: self.cluster.to_string(),
                labels::taken_from(from): "",
            },
        } });
        let patched = self
            .pods()
            .patch(name, &PatchParams::default(), &Patch::Merge(ours))
            .await;
        match patched {
            Ok(pod) => self.cache.note(pod),
            Err(error) if remedy::is_gone(&error) || remedy::is_conflict(&error) => {}
            Err(error) => return Err(self.unavailable("take a pod over", &error)),
        }
        Ok(())
    }

    /// Whether no other cluster than this one has taken over what was `cluster`'s.
    async fn not_taken(&self, cluster: ClusterId) -> Result<(), ProviderError> {
        let query = ListParams::default().labels(&labels::taken_from(cluster));
        let listed = self.pods().list(&query).await;
        let pods = listed.map_err(|error| self.unavailable("list pods taken over", &error))?;
        let other = pods
            .into_iter()
            .filter_map(|pod| labels::cluster_of(&pod))
            .find(|by| *by != self.cluster && *by != cluster);
        match other {
            Some(by) => Err(ProviderError::TakenOver { cluster, by }),
            None => Ok(()),
        }
    }

    /// Whether no other cluster has taken over what is ours. If one has, that is noted.
    async fn still_ours(&self) -> Result<(), ProviderError> {
        let found = self.not_taken(self.cluster).await;
        if let Err(ProviderError::TakenOver { cluster, by }) = found {
            self.note_taken(cluster, by);
        }
        found
    }

    /// Notes that what was ours is another cluster's.
    fn note_taken(&self, cluster: ClusterId, by: ClusterId) {
        if self.cache.taken_over(cluster, by) {
            tracing::error!(%by, "the replicas were taken over by another cluster");
        }
    }

    /// Whether a pod that the watch shows no more was taken over by another cluster. It would never have gone
    /// without being told to.
    async fn taken(&self, pod: &Pod) -> Result<Option<ClusterId>, ProviderError> {
        let Some(name) = &pod.metadata.name else {
            return Ok(None);
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let found = match self.pods().get_opt(name).await {
            Ok(found) => found,
            // As it was before anybody asked.
            Err(error) if remedy::is_final(&error) || remedy::is_lack(&error) => None,
            Err(error) => return Err(self.unavailable("see why a pod is gone", &error)),
        };
        let found = found.filter(|found| found.metadata.uid == pod.metadata.uid);
        let by = found.as_ref().and_then(labels::cluster_of);
        Ok(by.filter(|by| *by != self.cluster))
    }

    fn unavailable(&self, doing: &'static str, error: &kube::Error) -> ProviderError {
        ProviderError::Unavailable {
            doing,
            reason: remedy::of_api(error, &self.namespace),
        }
    }
}

impl Provider for KubernetesProvider {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn shares_host(&self) -> bool {
        false
    }

    fn ensure(&self, launch: ReplicaLaunch) -> BoxFuture<'_, Result<Launched, ProviderError>> {
        Box::pin(create::ensure(&self.site, launch))
    }

    fn admit(&self, hold: Hold) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(create::admit(&self.site, hold))
    }

    fn stop<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(stop::stop(&self.site, replica, grace))
    }

    fn take_over(&self, from: ClusterId) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(self.site.take_over(from))
    }

    fn refresh(&self, occupied: bool) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(self.site.refresh(occupied))
    }

    fn observe(&self) -> BoxFuture<'_, Result<Vec<Observation>, ProviderError>> {
        Box::pin(async { self.site.cache.observe() })
    }

    fn notes(&self) -> BTreeMap<ReplicaId, String> {
        self.site.cache.notes()
    }

    fn trouble(&self) -> Option<String> {
        self.site.cache.trouble()
    }

    fn changes(&self) -> Receiver<u64> {
        self.site.cache.changes()
    }

    fn logs<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<LogStream, ProviderError>> {
        Box::pin(logs::logs(&self.site, replica, query))
    }

    /// Nothing is kept of pods that are gone: what belongs to one goes with it.
    fn forget(&self, _: ServiceId) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests;
