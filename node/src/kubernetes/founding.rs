//! The cluster's id in a ConfigMap, which outlives the volumes: with all volumes lost, empty peers look like a first
//! install, and would found a second cluster where the first one's services are still expected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use raftserve_model::ClusterId;
use serde_json::json;
use tokio::time::sleep;

use super::{CallError, Home, Wanted, call};
use crate::consensus::Consensus;
use crate::peer::{Claim, Founding};

const CLUSTER: &str = "cluster";
const FOUNDER: &str = "founder";

/// How long after a failed try the next one is made.
const RETRY: Duration = Duration::from_secs(5);

/// The ConfigMap's answer to a claim of the directory that drew `founder`.
fn judge(name: &str, record: &BTreeMap<String, String>, founder: &str) -> Claim {
    let Some(cluster) = record.get(CLUSTER) else {
        return Claim::Refused(format!(
            "ConfigMap {name}, in which peers write down which cluster they are, is there and was made by somebody else, perhaps \
             by a release of that name: install this one under another name, or set fullnameOverride"
        ));
    };
    match cluster.parse() {
        Ok(id) if record.get(FOUNDER).map(String::as_str) == Some(founder) => Claim::Granted(id),
        _ => Claim::Refused(format!(
            "ConfigMap {name} says that cluster {cluster} was founded here, and every volume that is here now is empty. \
             Bring its volumes back; or, if at least one is left, start from it with `raftserve cluster recover`, or from a \
             backup with `raftserve cluster snapshot restore`; or delete that ConfigMap to begin anew without what was"
        )),
    }
}

impl Home {
    pub(super) fn record_name(&self) -> String {
        format!("{}-cluster", self.set)
    }

    fn record(&self, cluster: ClusterId, founder: Option<String>) -> ConfigMap {
        let founder = founder.map(|founder| (FOUNDER.to_owned(), founder));
        let cluster = (CLUSTER.to_owned(), cluster.to_string());
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.record_name()),
                ..ObjectMeta::default()
            },
            data: Some(std::iter::once(cluster).chain(founder).collect()),
            ..ConfigMap::default()
        }
    }

    /// Never overwrites: of two claims one creates the object, and the other reads it.
    async fn try_claim(&self, nonce: u64, cluster: ClusterId) -> Result<Claim, CallError> {
        let founder = format!("{nonce:016x}");
        let record = self.record(cluster, Some(founder.clone()));
        let created = call(self.records.create(&PostParams::default(), &record)).await;
        match created {
            Ok(_) => return Ok(Claim::Granted(cluster)),
            Err(error) if error.code() == Some(409) => {}
            Err(error) => return Err(error),
        }
        let name = self.record_name();
        let found = call(self.records.get(&name)).await?;
        let place = format!("{}/{name}", self.namespace);
        Ok(judge(&place, &found.data.unwrap_or_default(), &founder))
    }

    /// Writes down which cluster runs here, on whoever leads it: of one that came with its volumes from elsewhere,
    /// or was restored under a new id, nothing was written down yet.
    pub(super) async fn try_write_down(&self, cluster: ClusterId) -> Result<(), CallError> {
        let name = self.record_name();
        let found = call(self.records.get_opt(&name)).await?;
        let Some(found) = found else {
            let record = self.record(cluster, None);
            call(self.records.create(&PostParams::default(), &record)).await?;
            return Ok(());
        };
        let known = found.data.unwrap_or_default();
        let before = known.get(CLUSTER).map(String::as_str).unwrap_or_default();
        if before.parse().ok() == Some(cluster) {
            return Ok(());
        }
        let data = json!({ CLUSTER: cluster.to_string(), FOUNDER: null });
        self.change_record(found.metadata, data).await?;
        tracing::warn!(
            %cluster, before, name,
            "another cluster was written down here, and this one is now; if that other one is still wanted, stop this release"
        );
        Ok(())
    }

    /// Changes entries of the record, over exactly what was read: of two that write at once, one fails and reads again.
    pub(super) async fn change_record(
        &self,
        read: ObjectMeta,
        data: serde_json::Value,
    ) -> Result<(), CallError> {
        let changed = json!({
            "metadata": { "resourceVersion": read.resource_version },
            "data": data,
        });
        let (name, patch) = (self.record_name(), Patch::Merge(&changed));
        call(self.records.patch(&name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }

    /// Sees to it that the record names the cluster that runs here. Ends when it does.
    pub async fn write_down(self: Arc<Self>, consensus: Consensus) {
        let mut leadership = consensus.leadership();
        loop {
            if leadership.wait_for(|now| now.is_self).await.is_err() {
                return;
            }
            match self.try_write_down(consensus.cluster_id()).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot write down which cluster runs here");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

impl Founding for Home {
    /// All pods that the StatefulSet wants: their number may be another than when the peers' names were written down.
    fn company(&self) -> BoxFuture<'_, Result<Vec<String>, String>> {
        async move {
            match self.read_set().await {
                Ok((_, Wanted::Peers(count))) => {
                    Ok((0..count).map(|it| self.address_of(it)).collect())
                }
                Ok((_, Wanted::Stopped)) => Ok(Vec::new()),
                Err(error) => Err(format!("cannot read how many peers there are: {error}")),
            }
        }
        .boxed()
    }

    fn claim(&self, nonce: u64, cluster: ClusterId) -> BoxFuture<'_, Claim> {
        async move {
            match self.try_claim(nonce, cluster).await {
                Ok(claim) => claim,
                Err(error) => Claim::NotYet(error.to_string()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::departure::tests::home;
    use super::*;

    #[tokio::test]
    async fn whoever_founds_waits_for_every_pod_that_the_set_wants() {
        let company = async |code| home(2, move |_| code).company().await;
        assert_eq!(
            company(200).await,
            Ok(vec!["rs-0.x:7001".to_owned(), "rs-1.x:7001".to_owned()])
        );
        let unknown = company(500).await.unwrap_err();
        assert!(unknown.contains("how many peers there are"), "{unknown}");
    }

    #[test]
    fn a_cluster_is_founded_once_and_by_one_directory() {
        let cluster = ClusterId([7; 16]);
        let record = |entries: &[(&str, &str)]| {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            entries.iter().map(owned).collect::<BTreeMap<_, _>>()
        };
        let id = cluster.to_string();
        let mine = record(&[(CLUSTER, &id), (FOUNDER, "0a")]);
        assert_eq!(judge("n", &mine, "0a"), Claim::Granted(cluster));
        for other in [
            mine,
            record(&[(CLUSTER, &id)]),
            record(&[(CLUSTER, "nonsense"), (FOUNDER, "0b")]),
        ] {
            let Claim::Refused(reason) = judge("n", &other, "0b") else {
                panic!("{other:?}");
            };
            assert!(reason.contains("cluster recover"), "{reason}");
        }
        let Claim::Refused(reason) = judge("n", &record(&[("peers", "rs-0")]), "0b") else {
            panic!("it is somebody else's");
        };
        assert!(
            reason.contains("under another name") && !reason.contains("delete"),
            "{reason}"
        );
    }
}
