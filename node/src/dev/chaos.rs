//! Killing peers, one at a time.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::observation::Observation;
use super::tally::Tally;

/// Kills a random peer again and again. One that is due waits until all peers are ready, since what
/// is promised is to get over the loss of any one of them.
pub(super) async fn run(
    every: Duration,
    kills: Vec<mpsc::Sender<()>>,
    mut seen: watch::Receiver<Observation>,
    tally: watch::Sender<Tally>,
) {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What was seen before the tick may be of before the last kill.
        seen.mark_unchanged();
        if seen.changed().await.is_err() || seen.wait_for(Observation::all_ready).await.is_err() {
            return;
        }
        let victim = &kills[rand::random_range(0..kills.len())];
        if victim.send(()).await.is_err() {
            return;
        }
        tally.send_modify(|tally| tally.kills += 1);
    }
}
