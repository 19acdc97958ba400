//! Has this peer snapshot its state when its log has outgrown the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::core::Core;
use super::store::{SnapshotTrigger, Turn};

/// How often the log's growth is looked at. At full load it grows by a tenth of what makes a snapshot due.
const PERIOD: Duration = Duration::from_millis(250);

/// Asks for snapshots as long as Raft runs.
pub(crate) async fn run(core: Arc<Core>, trigger: SnapshotTrigger) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        // While one is being taken, no other is begun.
        if trigger.is_due(turn(&core))
            && let Err(error) = core.raft.trigger().snapshot().await
        {
            tracing::debug!(%error, "no snapshot is taken any more");
            return;
        }
    }
}

/// This peer's turn among the members.
fn turn(core: &Core) -> Turn {
    let others = core.directory.others();
    let before = others.iter().filter(|other| **other < core.me()).count();
    Turn {
        rank: before as u64,
        of: others.len() as u64 + 1,
    }
}
