//! Who answers where the members of a cluster were that is to be gone: before another takes its place.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use raftserve_model::ClusterId;
use raftserve_store::restore::Parent;

use super::failure::{Exit, Failure};
use crate::access::Certificates;
use crate::peer::{self, Met};

/// Who answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Presence {
    /// Peers of the cluster itself.
    pub(super) own: Vec<String>,
    /// Peers of other clusters, and which: one may be what the cluster has become.
    pub(super) others: Vec<(ClusterId, String)>,
}

impl Presence {
    /// Asks at every address that `parent` has of a member, but for those where somebody `unrelated` is.
    ///
    /// # Errors
    /// If somebody is there who cannot be asked.
    pub(super) async fn of(
        parent: &Parent,
        cert_dir: Option<&Path>,
        unrelated: &[String],
    ) -> Result<Self, Failure> {
        let read = |directory: &Path| Certificates::read(directory.to_owned()).map(Arc::new);
        let certificates = cert_dir.map(read).transpose().map_err(|error| {
            Failure::usage(format!("--cert-dir: {:#}", anyhow::Error::from(error)))
        })?;
        let records = parent.membership.nodes.values();
        let asked = records
            .filter(|record| !unrelated.contains(&record.address))
            .map(async |record| {
                let met = peer::meet(&record.address, certificates.clone()).await;
                (record.address.as_str(), met)
            });
        let mut presence = Self::default();
        for (address, met) in join_all(asked).await {
            presence.note(parent.cluster, address, &met)?;
        }
        Ok(presence)
    }

    fn note(&mut self, wanted: ClusterId, address: &str, met: &Met) -> Result<(), Failure> {
        match met {
            Met::Member { cluster, node } => {
                let named = format!("peer {node} at {address}");
                if *cluster == wanted {
                    self.own.push(named);
                } else {
                    self.others.push((*cluster, named));
                }
            }
            // A peer that was emptied has nothing of this cluster.
            Met::Pristine | Met::Nobody => {}
            Met::Unreadable => {
                return Err(Failure::new(
                    Exit::Refused,
                    format!(
                        "somebody is at {address}, where a peer of this cluster was, and does not say who it is: it is \
                         stuck or stopped, or its certificates do not fit those of --cert-dir"
                    ),
                )
                .remedy(format!(
                    "end that process, or name the peers' certificates with --cert-dir, unless they have expired: a \
                     cluster whose certificates expired is not lost, and goes on with new ones. If somebody else has that \
                     address now, say so: --unrelated-address {address}"
                )));
            }
        }
        Ok(())
    }

    /// Whether no peer answers of a cluster that may be what `lost` has become already: two that go on with one state
    /// would both drive its replicas. Those that are said to be `unrelated` may answer.
    ///
    /// # Errors
    /// Who answers.
    pub(super) fn must_not_be_succeeded(
        &self,
        lost: ClusterId,
        unrelated: &[ClusterId],
    ) -> Result<(), Failure> {
        let mut others = self.others.iter();
        let Some((cluster, named)) = others.find(|(cluster, _)| !unrelated.contains(cluster))
        else {
            return Ok(());
        };
        Err(Failure::new(
            Exit::Refused,
            format!(
                "{named} answers, where a peer of cluster {lost} was, and is of cluster {cluster}: that may be what {lost} \
                 has become, by a recovery or a restored snapshot"
            ),
        )
        .remedy(format!(
            "if it is, let it go on, and start other peers with empty data directories: they join it. If cluster {cluster} has \
             nothing to do with it, say so: --unrelated-cluster {cluster}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::NodeId;

    use super::*;

    const LOST: ClusterId = ClusterId([1; 16]);
    const OTHER: ClusterId = ClusterId([2; 16]);

    fn member(cluster: ClusterId) -> Met {
        Met::Member {
            cluster,
            node: NodeId(7),
        }
    }

    #[test]
    fn a_cluster_that_another_may_have_taken_the_place_of_is_not_gone_on_with_unless_that_is_said_to_be_unrelated()
     {
        let mut presence = Presence::default();
        for met in [Met::Nobody, Met::Pristine, member(LOST)] {
            presence.note(LOST, "a:1", &met).unwrap();
        }
        assert_eq!(presence.own, ["peer 7 at a:1"]);
        assert!(presence.must_not_be_succeeded(LOST, &[]).is_ok());
        presence.note(LOST, "b:1", &member(OTHER)).unwrap();
        let refused = presence.must_not_be_succeeded(LOST, &[LOST]).unwrap_err();
        assert!(refused.message.contains("peer 7 at b:1"), "{refused:?}");
        assert!(presence.must_not_be_succeeded(LOST, &[OTHER]).is_ok());
    }

    #[test]
    fn who_does_not_say_who_it_is_is_not_taken_for_gone() {
        let mut presence = Presence::default();
        assert!(presence.note(LOST, "a:1", &Met::Unreadable).is_err());
    }
}
