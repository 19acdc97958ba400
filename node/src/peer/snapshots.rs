//! Has this peer snapshot its state when its log has outgrown the last one, and forget the log that it need not keep.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use super::core::Core;
use super::store::{LogGrowth, Retention, SnapshotTrigger, Turn};

/// Asks for snapshots, and purges, as long as Raft runs.
pub(crate) async fn run(
    core: Arc<Core>,
    trigger: SnapshotTrigger,
    retention: Retention,
    growth: LogGrowth,
) {
    let (mut look, mut purge) = (interval(growth.look), interval(growth.purge_look));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    purge.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = look.tick() => match trigger.is_due(turn(&core)) {
                // While one is being taken, no other is begun.
                true => core.raft.trigger().snapshot().await,
                false => Ok(()),
            },
            _ = purge.tick() => match retention.purgeable() {
                Some(upto) => core.raft.trigger().purge_log(upto.0).await,
                None => Ok(()),
            },
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "no snapshot is taken any more, and nothing purged");
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
