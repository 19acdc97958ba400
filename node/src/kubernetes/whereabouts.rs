//! In which namespace the cluster's replicas are, written down beside its id.
//!
//! Replicas are looked for where the flags say. A peer with another namespace would find none, call all of them lost,
//! make them anew there, and leave the old pods to nobody: so it is asked here first.

use raftserve_model::ClusterId;
use serde_json::json;

use super::{CallError, Home, call};

/// The entry of the record.
const REPLICAS: &str = "replicas";

/// What the record says of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The replicas are in it, or may be made there from now on.
    Here,
    /// They are in another one. Nothing may be concluded from what is seen here.
    Elsewhere(String),
}

impl Home {
    /// Whether the replicas of `cluster` are in `namespace`. While none is on record (`occupied`), and if nothing was
    /// written down yet, it is from now on.
    ///
    /// # Errors
    /// If the record cannot be read or written. Nothing may be concluded then; to be asked again.
    pub async fn whereabouts(
        &self,
        cluster: ClusterId,
        namespace: &str,
        occupied: bool,
    ) -> Result<Whereabouts, CallError> {
        let name = self.record_name();
        let found = match call(self.records.get_opt(&name)).await? {
            Some(found) => found,
            None => {
                self.try_write_down(cluster).await?;
                call(self.records.get(&name)).await?
            }
        };
        let known = found.data.unwrap_or_default().remove(REPLICAS);
        match known {
            Some(known) if known == namespace => return Ok(Whereabouts::Here),
            Some(known) if occupied => return Ok(Whereabouts::Elsewhere(known)),
            Some(_) | None => {}
        }
        self.change_record(found.metadata, json!({ REPLICAS: namespace }))
            .await?;
        tracing::info!(namespace, "wrote down where replicas are");
        Ok(Whereabouts::Here)
    }

    /// What to do about replicas that are in `there`, where this peer is told of `here`.
    #[must_use]
    pub fn directions(&self, there: &str, here: &str) -> String {
        format!(
            "the replicas of this cluster are in namespace {there}, and this peer is told to have them in {here}: none is \
             touched. Set --kubernetes-namespace (in the chart provider.namespace) back to {there}; to move, take all services \
             down first. If {there} is gone for good: kubectl --namespace {} patch configmap {} --type=merge --patch \
             '{{\"data\":{{\"{REPLICAS}\":null}}}}'",
            self.namespace,
            self.record_name(),
        )
    }
}
