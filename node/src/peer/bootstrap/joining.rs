//! What a peer with an empty directory does where a cluster runs: asks to be let in, through any peer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::greeting::{Teller, ask_to_join, majority_lost};
use super::{BootstrapError, Cradle, ROUND};
use crate::peer::store::Identity;
use crate::peer::wire::{JoinReply, JoinRequest};

/// A cluster that has a quorum lets a peer in much sooner.
const LONG: Duration = Duration::from_secs(30);

/// What is to be done about a cluster that will never have one again.
const RECOVER: &str = "; if the volumes of most of its voters are lost, start it again from one that is left with \
                       `raftserve cluster recover`, as docs/runbooks/lost-majority.md says";

impl Cradle {
    /// Asks the peers at `places` in turn until the cluster gives this peer an id, and keeps it on disk. A crash
    /// in between is made good by asking again: the id belongs to the directory.
    pub(super) async fn join_through(&self, places: &[String]) -> Result<Identity, BootstrapError> {
        let request = JoinRequest {
            nonce: self.nonce,
            address: self.mine.clone(),
            promotion: self.wish.promotion,
            supports: self.wish.supports,
        };
        let mut teller = Teller::new(&self.waits_for);
        let began = Instant::now();
        let mut empty = None;
        loop {
            let mut obstacles = Vec::new();
            for place in places.iter().filter(|place| **place != self.mine) {
                match ask_to_join(&self.dialer, place, &request).await {
                    Ok(JoinReply::Admitted { cluster, node }) => {
                        return self
                            .take(Identity {
                                cluster,
                                node,
                                nonce: self.nonce,
                            })
                            .await;
                    }
                    Ok(JoinReply::Refused(reason)) => {
                        return Err(BootstrapError::NotAdmitted {
                            name: place.clone(),
                            reason,
                        });
                    }
                    Ok(JoinReply::NotYet(reason)) | Err(reason) => {
                        obstacles.push(format!("{place} ({reason})"));
                    }
                }
            }
            let is_long = began.elapsed() > LONG;
            // It can be known of those that began with it. What was seen counts, as others end before this one; started
            // again, it looks again.
            if places == self.names {
                empty = empty.or(majority_lost(&self.greet_all().await));
            }
            if let Some(empty) = empty.filter(|_| is_long) {
                let named = self.names.len();
                return Err(BootstrapError::MajorityLost { empty, named });
            }
            let advice = if is_long { RECOVER } else { "" };
            teller.tell(|| {
                let asked = obstacles.join(", ");
                format!("waiting to join a cluster, asked: {asked}{advice}")
            });
            sleep(ROUND).await;
        }
    }

    async fn take(&self, identity: Identity) -> Result<Identity, BootstrapError> {
        let mut held = self.identity.lock().await;
        if let Some(held) = held.as_ref() {
            return Ok(*held);
        }
        self.dir.join(identity).await?;
        *held = Some(identity);
        self.taken.send_replace(Some(identity));
        Ok(identity)
    }
}
