//! What the leader does for sessions: lets log time pass so that they expire, and moves the fence
//! behind which rebound ones become usable.

use std::time::Duration;

use raftserve_model::Generation;
use raftserve_store::Outcome;
use raftserve_store::command::Action;

use super::{PROPOSE_DEADLINE, ReignEnd};
use crate::consensus::Consensus;
use crate::share::Share;

/// How often expiry is looked at: sessions live for minutes at least.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often the fence is looked at while something waits for it: a fraction of the exchange's pace.
const FENCE_INTERVAL: Duration = Duration::from_millis(10);

/// Runs until the reign ends.
pub(super) async fn keep(consensus: &Consensus, share: &Share, generation: Generation) -> ReignEnd {
    let mut news = consensus.news();
    loop {
        match tend(consensus, share, generation).await {
            Ok(true) => tokio::time::sleep(FENCE_INTERVAL).await,
            Ok(false) => {
                news.mark_unchanged();
                if consensus.state().fence_wanted().is_none() {
                    let _ = tokio::time::timeout(EXPIRY_INTERVAL, news.changed()).await;
                }
            }
            Err(end) => return end,
        }
    }
}

/// Returns whether something waits for the fence.
async fn tend(
    consensus: &Consensus,
    share: &Share,
    generation: Generation,
) -> Result<bool, ReignEnd> {
    let state = consensus.state();
    let action = if let Some(upto) = state.fence_wanted() {
        // Step by step: under a steady stream of moves the newest is never applied everywhere.
        let upto = share.fence_reached(upto, &consensus.members());
        let removals_left = state.fence_wanted() <= Some(state.fence());
        if upto <= state.fence() && !removals_left {
            return Ok(true);
        }
        Action::AdvanceFence { generation, upto }
    } else if state
        .next_expiry()
        .is_some_and(|time| time <= consensus.log_now())
    {
        Action::Tick
    } else {
        return Ok(false);
    };
    let (index, outcome) = consensus
        .propose_as_leader(action, PROPOSE_DEADLINE)
        .await?;
    if let Outcome::Fenced { current } = outcome {
        return Err(ReignEnd::Fenced { current });
    }
    super::wait_applied(consensus, index).await?;
    Ok(false)
}
