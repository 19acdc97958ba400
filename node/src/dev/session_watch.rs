//! Watching the sessions of the traffic: which replica each key is bound to, as the cluster agreed,
//! and whether that ever changes.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::admin_client::PeerAdmin;
use super::tally::{SessionTally, Tally};
use super::traffic::{SESSION_KEYS, session_value};
use crate::admin::v1;

/// The pause between two looks at all keys.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of each key.
#[derive(Debug)]
struct Bindings {
    last: Vec<Option<Binding>>,
    moved: u64,
}

/// A binding: the replica, and the log index that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Binding {
    replica: u32,
    epoch: u64,
}

impl Bindings {
    fn new(keys: u64) -> Self {
        Self {
            last: (0..keys).map(|_| None).collect(),
            moved: 0,
        }
    }

    /// Takes note of a key's binding. One that is older than what is known comes from a peer that is
    /// behind, and says nothing.
    fn saw(&mut self, key: usize, seen: Binding) {
        match self.last[key] {
            Some(last) if seen.epoch < last.epoch => return,
            Some(last) if seen.replica != last.replica => self.moved += 1,
            _ => {}
        }
        self.last[key] = Some(seen);
    }

    fn tally(&self) -> SessionTally {
        SessionTally {
            keys: self.last.len(),
            bound: self.last.iter().flatten().count(),
            moved: self.moved,
        }
    }
}

/// Looks at all keys again and again, each time through other peers.
pub(super) async fn run(peers: Vec<PeerAdmin>, service: String, tally: watch::Sender<Tally>) {
    let mut bindings = Bindings::new(SESSION_KEYS);
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let values: Vec<String> = (0..SESSION_KEYS).map(session_value).collect();
    for first_peer in (0..peers.len()).cycle() {
        ticks.tick().await;
        let asked = values.iter().enumerate().map(|(key, value)| {
            let peer = &peers[(first_peer + key) % peers.len()];
            peer.session(&service, value)
        });
        for (key, answer) in join_all(asked).await.into_iter().enumerate() {
            // A peer that is down, or a key that was never used, has nothing to say.
            if let Ok(v1::Session {
                replica_id, epoch, ..
            }) = answer
            {
                bindings.saw(
                    key,
                    Binding {
                        replica: replica_id,
                        epoch,
                    },
                );
            }
        }
        tally.send_modify(|tally| tally.sessions = Some(bindings.tally()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn move_is_a_later_binding_to_another_replica() {
        let mut bindings = Bindings::new(2);
        let mut saw = |key, replica, epoch| {
            bindings.saw(key, Binding { replica, epoch });
            bindings.tally().moved
        };
        assert_eq!(saw(0, 1, 10), 0);
        assert_eq!(saw(0, 1, 20), 0, "bound again, to the same replica");
        assert_eq!(saw(0, 2, 10), 0, "a peer that is behind");
        assert_eq!(saw(0, 2, 30), 1);
        assert_eq!(saw(1, 2, 31), 1);
        assert_eq!(bindings.tally().bound, 2);
    }
}
