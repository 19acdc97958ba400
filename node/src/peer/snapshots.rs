//! Has this peer snapshot its state when its log has outgrown the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::core::Core;
use super::store::SnapshotTrigger;

/// How often the log's growth is looked at: it takes far longer to become due.
const PERIOD: Duration = Duration::from_secs(5);

/// Peers become due at about the same entry. So each waits this long for each member before it, that
/// the disks of all are not busy with it at once.
const STAGGER: Duration = Duration::from_secs(15);

/// Asks for snapshots as long as Raft runs.
pub(crate) async fn run(core: Arc<Core>, trigger: SnapshotTrigger) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if !trigger.is_due() {
            continue;
        }
        if !trigger.is_overdue() {
            let others = core.directory.others();
            let before = others.iter().filter(|other| **other < core.me()).count();
            sleep(STAGGER * u32::try_from(before).unwrap_or(u32::MAX)).await;
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
