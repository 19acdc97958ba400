//! What the leader's controller sees of services and replicas at the moment, for whoever asks any peer about them.
//!
//! It is not agreed on: it changes with every probe, nothing is decided by it, and the next leader sees it anew. So it
//! stays in the leader's memory, and the others ask for it when they are asked. Without an answer in time, or from a
//! leader whose release does not know the call, there are none.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raftserve_model::{NodeId, ReplicaId, ServiceId};

use super::calls::Method;
use super::core::Core;
use super::links::{Purpose, frame, read};
use super::wire::{Remarks, RemarksRequest};

/// How long a leader is asked: what it would say is worth no longer wait of a caller's.
const ASK_MAX: Duration = Duration::from_millis(250);

/// The longest remark, in characters: a line or two, so that those of a page of replicas stay far below a message.
const REMARK_CHARS_MAX: usize = 400;

/// What this peer's controller sees; nothing while it does not reign.
#[derive(Debug, Default)]
pub(crate) struct Remarked(Mutex<Remarks>);

impl Remarked {
    /// Puts what is seen now in the place of what was seen before.
    pub(crate) fn set(&self, mut seen: Remarks) {
        let texts = seen.services.values_mut().chain(seen.replicas.values_mut());
        texts.for_each(shorten);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Those that are asked for.
    pub(crate) fn of(&self, asked: &RemarksRequest) -> Remarks {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let service = |id: &ServiceId| Some((*id, seen.services.get(id)?.clone()));
        let replica = |id: &ReplicaId| Some((*id, seen.replicas.get(id)?.clone()));
        Remarks {
            services: asked.services.iter().filter_map(service).collect(),
            replicas: asked.replicas.iter().filter_map(replica).collect(),
        }
    }
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(REMARK_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
}

impl Core {
    /// What the leader's controller sees, as far as that can be had at once.
    pub(crate) async fn remarks_of(&self, leader: NodeId, asked: RemarksRequest) -> Remarks {
        let answer = self.links.call(
            leader,
            Purpose::Forwards,
            ASK_MAX,
            Method::Remarks,
            frame(&asked),
        );
        let remarks = answer.await.and_then(|answer| read(leader, &answer));
        remarks.unwrap_or_else(|error| {
            tracing::debug!(%error, "no remarks of the leader");
            Remarks::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_asked_for_and_short() {
        let replica = |number| ReplicaId {
            service: ServiceId(1),
            number,
        };
        let remarked = Remarked::default();
        remarked.set(Remarks {
            services: [(ServiceId(1), "empty".to_owned())].into(),
            replicas: [
                (replica(1), "a".to_owned()),
                (replica(2), "ä".repeat(1_000)),
            ]
            .into(),
        });
        let asked = RemarksRequest {
            services: vec![ServiceId(2)],
            replicas: vec![replica(2), replica(3)],
        };
        let told = remarked.of(&asked);
        assert_eq!(told.services, [].into());
        assert_eq!(told.replicas.len(), 1);
        assert_eq!(
            told.replicas[&replica(2)].chars().count(),
            REMARK_CHARS_MAX + 1
        );
        remarked.set(Remarks::default());
        assert_eq!(remarked.of(&asked), Remarks::default());
    }
}
