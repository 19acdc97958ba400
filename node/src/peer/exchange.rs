//! Small news between peers, many times a second: what is too fresh or too frequent for the log.
//! Also how peers learn each other's addresses, and see who answers.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use raftserve_model::NodeId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep_until};

use super::calls::Method;
use super::core::Core;
use super::links::{CallError, Purpose, frame, read};
use super::lives::ANNOUNCE_WITHIN;
use super::rpc::Frame;
use super::wire::{self, Announcement, ExchangeHead};
use crate::clock;

/// How often each peer sends to each other. A load that is this old still balances well.
const PERIOD: Duration = Duration::from_millis(50);

/// The same where nothing changes often enough to be told so often: a quarter less work for a peer at rest. Leases and
/// signs of life last many times longer.
const PERIOD_AT_REST: Duration = Duration::from_millis(200);

/// An exchange that takes longer tells nothing fresh any more.
const DEADLINE: Duration = Duration::from_millis(500);

/// How often the list of targets is looked at.
const ROSTER_PERIOD: Duration = Duration::from_millis(200);

/// What goes into exchanges, and what becomes of what comes out of them. Called often, and on Raft's
/// threads: it must not block.
pub trait ExchangeHandler: Send + Sync + 'static {
    /// Whether there may be news that are stale soon. Without, exchanges rest longer.
    fn has_news(&self) -> bool;
    /// What to send now.
    fn outgoing(&self) -> Vec<u8>;
    /// What `from` has sent; returns the answer.
    fn incoming(&self, from: NodeId, body: &[u8]) -> Vec<u8>;
    /// What `from` answered to what was sent at the boot time `sent_at`.
    fn reply(&self, from: NodeId, sent_at: Duration, body: &[u8]);
}

/// Holds the handler once there is one. Until then peers exchange nothing but signs of life.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<OnceLock<Arc<dyn ExchangeHandler>>>);

impl Slot {
    /// Sets the handler, once; a second one is ignored.
    pub(crate) fn set(&self, handler: Arc<dyn ExchangeHandler>) {
        if self.0.set(handler).is_err() {
            tracing::warn!("a second exchange handler is ignored");
        }
    }

    fn get(&self) -> Option<&Arc<dyn ExchangeHandler>> {
        self.0.get()
    }

    /// The time between two exchanges with the same peer.
    fn period(&self) -> Duration {
        match self.get().is_none_or(|handler| handler.has_news()) {
            true => PERIOD,
            false => PERIOD_AT_REST,
        }
    }

    /// Answers an exchange.
    pub(crate) fn answer(&self, core: &Core, from: NodeId, body: &[u8]) -> Frame {
        let answer = self.get().map(|handler| handler.incoming(from, body));
        Frame {
            head: wire::encode(&core.exchange_head(from)),
            body: answer.unwrap_or_default().into(),
        }
    }
}

/// Keeps one task for each other member, so that a slow one delays no other.
pub(crate) async fn run(core: Arc<Core>, slot: Slot) {
    let mut targets: BTreeMap<NodeId, Target> = BTreeMap::new();
    let mut period = interval(ROSTER_PERIOD);
    loop {
        period.tick().await;
        let others = core.directory.others();
        targets.retain(|node, _| others.contains(node));
        for node in others {
            targets
                .entry(node)
                .or_insert_with(|| Target::start(Arc::clone(&core), slot.clone(), node));
        }
    }
}

/// A task that ends when it is forgotten.
struct Target(JoinHandle<()>);

impl Target {
    fn start(core: Arc<Core>, slot: Slot, node: NodeId) -> Self {
        Self(tokio::spawn(exchange_with(core, slot, node)))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange_with(core: Arc<Core>, slot: Slot, target: NodeId) {
    let mut reachable = true;
    loop {
        // At most one is in flight: after a slow one, the next follows at once.
        let next = Instant::now() + slot.period();
        let result = once(&core, &slot, target).await;
        match (&result, reachable) {
            (Err(error), true) => tracing::warn!(%error, "lost touch with a peer"),
            (Ok(()), false) => tracing::info!(peer = %target, "in touch with a peer again"),
            _ => {}
        }
        reachable = result.is_ok();
        sleep_until(next).await;
    }
}

async fn once(core: &Core, slot: &Slot, target: NodeId) -> Result<(), CallError> {
    let body = slot.get().map(|handler| handler.outgoing());
    let message = Frame {
        head: wire::encode(&core.exchange_head(target)),
        body: body.map_or_else(Bytes::new, Bytes::from),
    };
    let sent_at = clock::boot_time();
    let answer = core
        .links
        .call(
            target,
            Purpose::Exchanges,
            DEADLINE,
            Method::Exchange,
            message,
        )
        .await?;
    let head: ExchangeHead = read(target, &answer)?;
    core.take_exchange_head(target, &head);
    if let Some(handler) = slot.get() {
        handler.reply(target, sent_at, &answer.body);
    }
    if head.known != Some(core.incarnation())
        || core.directory.incarnation(target) != Some(head.incarnation)
    {
        announce(core, target).await?;
    }
    Ok(())
}

/// Tells `target` where this peer is, and takes the same from it.
async fn announce(core: &Core, target: NodeId) -> Result<(), CallError> {
    let answer = core
        .links
        .call(
            target,
            Purpose::Exchanges,
            ANNOUNCE_WITHIN,
            Method::Announce,
            frame(&core.announcement),
        )
        .await?;
    let said: Announcement = read(target, &answer)?;
    core.meet(said)
        .await
        .map_err(|stranger| CallError::Refused {
            target,
            reason: stranger.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Teller(bool);

    impl ExchangeHandler for Teller {
        fn has_news(&self) -> bool {
            self.0
        }
        fn outgoing(&self) -> Vec<u8> {
            Vec::new()
        }
        fn incoming(&self, _: NodeId, _: &[u8]) -> Vec<u8> {
            Vec::new()
        }
        fn reply(&self, _: NodeId, _: Duration, _: &[u8]) {}
    }

    #[test]
    fn exchanges_rest_longer_only_while_there_is_no_news() {
        assert_eq!(Slot::default().period(), PERIOD);
        for (has_news, period) in [(true, PERIOD), (false, PERIOD_AT_REST)] {
            let slot = Slot::default();
            slot.set(Arc::new(Teller(has_news)));
            assert_eq!(slot.period(), period);
        }
    }
}
