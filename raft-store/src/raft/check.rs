//! Digests of the state at fixed places of the log, for peers to compare.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bincode::{Decode, Encode};
use raftserve_model::LogIndex;

use crate::state::{Digest, State};

/// Every peer notes a digest at each multiple of this: a digest costs a hash for each service, and peers that
/// have come to differ are found within seconds under load.
pub const CHECK_EVERY: u64 = 4_096;

/// How many are kept: peers that are this many behind each other are compared later.
pub const CHECKS_KEPT: usize = 8;

/// The state's digest as of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StateCheck {
    /// The entry.
    pub index: LogIndex,
    /// The digest once it was applied.
    pub digest: Digest,
}

/// The newest digests. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks(Arc<Mutex<VecDeque<StateCheck>>>);

impl Checks {
    /// Notes the digest of `state`, whose last entry is `index`.
    pub(super) fn note(&self, index: LogIndex, state: &State) {
        let digest = state.digest();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == CHECKS_KEPT {
            kept.pop_front();
        }
        kept.push_back(StateCheck { index, digest });
    }

    /// The newest digests, oldest first.
    pub(super) fn kept(&self) -> Vec<StateCheck> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().copied().collect()
    }
}
