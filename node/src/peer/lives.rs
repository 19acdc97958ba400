//! Whether a peer has one life at a time.
//!
//! A data directory that was copied while its peer ran, as by the snapshot of a volume, has that peer's id and nonce,
//! and two processes that speak for one voter can elect two leaders. A nonce cannot tell them apart; their lives can,
//! which every process draws for itself. So a peer is taken in a new life only once nobody answers in the one before:
//! an answer to a question that was asked after the new one spoke proves that there are two, and a peer that was
//! started again, wherever that was, can never be taken for one of them, since its former process is gone.
//!
//! Whoever cannot be reached proves nothing, and the newcomer is taken. What the other says after that is refused
//! ([`Stranger::Superseded`]) until it has announced itself again, upon which the newcomer is looked for: one of two
//! that can be reached ends, whichever way round they are met.

use std::time::Duration;

use raftserve_model::Incarnation;
use tokio::time::timeout;

use super::bootstrap::greet;
use super::core::Core;
use super::dial::Dialer;
use super::directory::Stranger;
use super::wire::{Announcement, HelloRequest};

/// How long a former life is looked for. Where its process is gone from a host that runs, the answer is there at once;
/// a peer that moved away from a host that is gone waits for so long.
const LOOK: Duration = Duration::from_secs(1);

/// How long an announcement may take: the receiver looks for a former life of the caller.
pub(crate) const ANNOUNCE_WITHIN: Duration = LOOK.saturating_add(Duration::from_secs(1));

/// What is said of a peer that does not say in which life it is, as none of an earlier build does in its greetings.
pub(crate) const UNTOLD: Incarnation = Incarnation(0);

/// Whether these are two lives of one peer.
pub(crate) fn are_two(one: &Announcement, other: &Announcement) -> bool {
    let of = |said: &Announcement| (said.cluster, said.node, said.nonce);
    of(one) == of(other) && differ(one.incarnation, other.incarnation)
}

/// Whether both are known, and are not one.
pub(crate) fn differ(one: Incarnation, other: Incarnation) -> bool {
    one != other && one != UNTOLD && other != UNTOLD
}

/// Whether a peer answers, where it has said it is, in the life in which it said so.
async fn goes_on(dialer: &Dialer, life: &Announcement) -> bool {
    let hello = HelloRequest { from: None };
    let asked = timeout(LOOK, greet(dialer, &life.peer_address, &hello)).await;
    let Ok(Ok(answer)) = asked else {
        return false;
    };
    answer.announcement.is_some_and(|now| {
        (now.cluster, now.node, now.incarnation) == (life.cluster, life.node, life.incarnation)
    })
}

impl Core {
    /// Keeps what a peer says about itself, if it is one of the cluster's and no other process speaks for it.
    ///
    /// # Errors
    /// [`Stranger`] if it is not, or one does.
    pub(crate) async fn meet(&self, said: Announcement) -> Result<(), Stranger> {
        self.directory.check(&said)?;
        if are_two(&self.announcement, &said) {
            return Err(copy_of(&self.announcement));
        }
        let known = self.directory.announced(said.node);
        if let Some(known) = known.filter(|known| are_two(known, &said))
            && goes_on(self.links.dialer(), &known).await
        {
            tracing::warn!(
                peer = %said.node, runs_at = known.peer_address, copy_at = said.peer_address,
                "two processes speak for one peer: the later one is refused"
            );
            return Err(copy_of(&known));
        }
        self.directory.learn(said)
    }
}

/// Why a process is refused beside this one.
pub(crate) fn copy_of(known: &Announcement) -> Stranger {
    Stranger::Copy {
        caller: known.node,
        cluster: known.cluster,
        address: known.peer_address.clone(),
    }
}
