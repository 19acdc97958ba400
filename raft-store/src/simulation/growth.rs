//! A peer's snapshots and purges, decided by what a running peer decides them by: [`SnapshotTrigger`] and
//! [`Retention`]. Openraft does neither by itself here either.

use std::time::Duration;

use raftserve_model::NodeId;

use super::cluster::Running;
use super::runtime;
use crate::raft::{Retention, SnapshotTrigger, Turn};

/// How far a log grows, and how its growth is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    /// Entries since the last snapshot that make the next one due.
    pub(super) snapshot_entries: u64,
    /// How often it is looked whether one is due.
    pub(super) look: Duration,
    /// How often it is looked what may be purged.
    pub(super) purge_look: Duration,
    /// Entries kept after they are in a snapshot; unlike in a running peer it may be none.
    pub(super) kept: u64,
    /// Bytes of the newest entries that are kept, at most.
    pub(super) kept_bytes: u64,
    /// Entries purged at a time.
    pub(super) batch: u64,
}

impl Growth {
    pub(super) fn trigger(self, trigger: SnapshotTrigger) -> SnapshotTrigger {
        trigger.after(self.snapshot_entries)
    }

    pub(super) fn retention(self, mut retention: Retention) -> Retention {
        retention.entries = self.kept;
        retention.bytes = self.kept_bytes;
        retention.batch = self.batch;
        retention
    }
}

/// Asks for snapshots, and purges, as long as the peer's process lives.
pub(super) fn begin(node: NodeId, running: &Running, growth: Growth) {
    let (process, peer) = (running.process, running.clone());
    runtime::spawn_in(process, async move {
        loop {
            runtime::sleep(growth.look).await;
            let due = peer.trigger.is_due(turn(node, &peer));
            if due && peer.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    });
    let peer = running.clone();
    runtime::spawn_in(process, async move {
        loop {
            runtime::sleep(growth.purge_look).await;
            purge(&peer).await;
        }
    });
}

/// Forgets what of a peer's log need not be kept.
pub(super) async fn purge(running: &Running) {
    if let Some(upto) = running.retention.purgeable() {
        runtime::note(format_args!("may purge up to {upto}"));
        // Openraft may have ended; nothing is purged then.
        let _ = running.raft.trigger().purge_log(upto.0).await;
    }
}

/// A peer's turn among the members.
fn turn(node: NodeId, running: &Running) -> Turn {
    let (voters, learners) = running.members();
    let others = voters.iter().chain(&learners).filter(|it| **it != node);
    Turn {
        rank: others.clone().filter(|it| **it < node).count() as u64,
        of: others.count() as u64 + 1,
    }
}
