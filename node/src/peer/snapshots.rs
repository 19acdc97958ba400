//! Has this peer snapshot its state when its log has outgrown the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::core::Core;
use super::store::SnapshotTrigger;

/// Peers become due at about the same entry. So each waits so many looks for each member before it, that the disks of
/// all are not busy with it at once.
const STAGGER: u32 = 3;

/// Asks for snapshots as long as Raft runs, and looks each `look` at how far the log has grown.
pub(crate) async fn run(core: Arc<Core>, trigger: SnapshotTrigger, look: Duration) {
    let mut period = interval(look);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if !trigger.is_due() {
            continue;
        }
        if !trigger.is_overdue() {
            let others = core.directory.others();
            let before = others.iter().filter(|other| **other < core.me()).count();
            let looks = STAGGER.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX));
            sleep(look.saturating_mul(looks)).await;
        }
        // A snapshot from the leader may have come in the meantime.
        if trigger.is_due()
            && let Err(error) = core.raft.trigger().snapshot().await
        {
            tracing::debug!(%error, "no snapshot is taken any more");
            return;
        }
    }
}
