//! Which effects are under way, which wait, and how many may be at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::{AbortHandle, Id};
use tokio::time::Instant;

use super::{Done, RETRY_PAUSE, RETRY_PAUSE_MAX};
use crate::controller::plan::Effect;

/// The most launches at a time: each forks a process, or asks for a pod.
const LAUNCHES_MAX: usize = 32;

/// The most stops at a time. They are counted apart, so that launches never keep back the stops that would make room
/// for them; and many, since each lasts as long as its replica's grace.
const STOPS_MAX: usize = 128;

/// What each launch that waits adds to the longest pause of all: where hundreds are refused, as by a quota, what makes replicas
/// is asked some twenty times a second and no more.
const RETRY_SHARE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    under_way: BTreeMap<Effect, AbortHandle>,
    put_off: BTreeMap<Effect, PutOff>,
}

/// An effect that could not be carried out, and is to be tried again.
struct PutOff {
    until: Instant,
    pause: Duration,
}

impl Ledger {
    /// Ends launches that are not wanted any more. A stop is always wanted: of one that is not on record, nobody
    /// plans it.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<Effect>) {
        self.put_off.retain(|effect, _| wanted.contains(effect));
        self.under_way.retain(|effect, task| {
            let keep = wanted.contains(effect) || matches!(effect, Effect::Stop(_));
            if !keep {
                task.abort();
            }
            keep
        });
    }

    /// Whether the effect is not under way, need not wait, and there is room for it.
    pub(super) fn lets_begin(&self, effect: &Effect, now: Instant) -> bool {
        let launches = |effect: &Effect| matches!(effect, Effect::Ensure(_));
        let alike = |other: &&Effect| launches(other) == launches(effect);
        let most = match launches(effect) {
            true => LAUNCHES_MAX,
            false => STOPS_MAX,
        };
        let waits = self.put_off.get(effect).is_some_and(|it| it.until > now);
        !waits
            && !self.under_way.contains_key(effect)
            && self.under_way.keys().filter(alike).count() < most
    }

    /// Notes who carries the effect out.
    pub(super) fn begun(&mut self, effect: Effect, task: AbortHandle) {
        self.under_way.insert(effect, task);
    }

    /// Notes that a task has ended, and tells which effect was its own, if it was not ended by [`Ledger::keep`].
    pub(super) fn ended(&mut self, task: Id, done: &Done, now: Instant) -> Option<Effect> {
        let mut under_way = self.under_way.iter();
        let (effect, _) = under_way.find(|(_, known)| known.id() == task)?;
        let effect = effect.clone();
        self.under_way.remove(&effect);
        let before = self.put_off.remove(&effect);
        if let Done::NotNow(_) = done {
            let longest = match effect {
                Effect::Ensure(_) => RETRY_PAUSE_MAX.max(self.launches_share()),
                Effect::Stop(_) => RETRY_PAUSE_MAX,
            };
            let pause = before.map_or(RETRY_PAUSE, |it| (it.pause * 2).min(longest));
            let until = now + pause;
            self.put_off.insert(effect.clone(), PutOff { until, pause });
        } else if let (Effect::Ensure(_), Done::Well) = (&effect, done) {
            // What was in the way of this one may not be in that of others any more.
            let soon = now + RETRY_PAUSE_MAX;
            for waiting in self.put_off.values_mut() {
                waiting.until = waiting.until.min(soon);
            }
        }
        Some(effect)
    }

    /// What all launches that wait make of the longest pause.
    fn launches_share(&self) -> Duration {
        let waiting = self.put_off.keys();
        let launches = waiting.filter(|it| matches!(it, Effect::Ensure(_))).count();
        RETRY_SHARE.saturating_mul(u32::try_from(launches).unwrap_or(u32::MAX))
    }

    /// When the next effect that waits may begin. One that could already, and waits for room, is no reason to look.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let waits = self.put_off.values().map(|it| it.until);
        waits.filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::{ReplicaId, ServiceId};

    use super::*;

    fn replica(number: u32) -> ReplicaId {
        ReplicaId {
            service: ServiceId(1),
            number,
        }
    }

    /// A task that ends only when it is told to.
    fn task() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    #[tokio::test]
    async fn launches_leave_room_for_stops_and_end_when_nobody_wants_them() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let mut tasks = Vec::new();
        for number in 0.. {
            let effect = Effect::Ensure(replica(number));
            if !ledger.lets_begin(&effect, now) {
                break;
            }
            tasks.push(task());
            ledger.begun(effect, tasks[number as usize].abort_handle());
        }
        assert_eq!(tasks.len(), LAUNCHES_MAX);
        let stop = Effect::Stop(replica(0));
        assert!(ledger.lets_begin(&stop, now));
        let stopping = task();
        ledger.begun(stop.clone(), stopping.abort_handle());
        assert!(!ledger.lets_begin(&stop, now), "it is under way");

        ledger.keep(&BTreeSet::from([Effect::Ensure(replica(1))]));
        let mut ended = 0;
        for (number, task) in tasks.into_iter().enumerate() {
            if number == 1 {
                assert!(!task.is_finished());
                continue;
            }
            let id = task.id();
            assert!(task.await.unwrap_err().is_cancelled());
            assert_eq!(ledger.ended(id, &Done::Well, now), None);
            ended += 1;
        }
        assert_eq!(ended, LAUNCHES_MAX - 1);
        assert!(ledger.lets_begin(&Effect::Ensure(replica(0)), now));
        // Of what is not on record nobody plans the stop.
        assert_eq!(ledger.ended(stopping.id(), &Done::Well, now), Some(stop));
    }

    #[tokio::test]
    async fn what_cannot_be_done_now_keeps_no_place_and_waits_longer_each_time() {
        let (mut ledger, mut now) = (Ledger::default(), Instant::now());
        let effect = Effect::Ensure(replica(1));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(ledger.lets_begin(&effect, now));
            let task = task();
            ledger.begun(effect.clone(), task.abort_handle());
            ledger.ended(task.id(), &Done::NotNow(String::new()), now);
            assert!(ledger.under_way.is_empty());
            assert!(!ledger.lets_begin(&effect, now));
            let due = ledger.next_due(now).unwrap();
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(ledger.next_due(now), None, "it may begin");
        ledger.keep(&BTreeSet::new());
        assert!(ledger.put_off.is_empty());
    }

    #[tokio::test]
    async fn hundreds_that_are_refused_are_not_tried_more_often_than_a_few() {
        const REFUSED: u32 = 400;
        let (mut ledger, began) = (Ledger::default(), Instant::now());
        let (mut now, mut tries) = (began, 0);
        let minute = Duration::from_secs(60);
        while now < began + minute * 2 {
            for number in 0..REFUSED {
                let effect = Effect::Ensure(replica(number));
                if !ledger.lets_begin(&effect, now) {
                    continue;
                }
                // Once it has settled.
                tries += u32::from(now >= began + minute);
                let task = task();
                ledger.begun(effect, task.abort_handle());
                ledger.ended(task.id(), &Done::NotNow(String::new()), now);
            }
            now = ledger.next_due(now).unwrap();
        }
        assert!((400..2_000).contains(&tries), "{tries} in a minute");

        // A stop waits no longer for it.
        let stop = Effect::Stop(replica(0));
        for _ in 0..6 {
            let task = task();
            ledger.begun(stop.clone(), task.abort_handle());
            ledger.ended(task.id(), &Done::NotNow(String::new()), now);
        }
        assert_eq!(ledger.put_off[&stop].until, now + RETRY_PAUSE_MAX);
        // Nor does anyone once one got through.
        let made = Effect::Ensure(replica(0));
        let task = task();
        ledger.begun(made, task.abort_handle());
        ledger.ended(task.id(), &Done::Well, now);
        let latest = ledger.put_off.values().map(|it| it.until).max();
        assert!(latest <= Some(now + RETRY_PAUSE_MAX));
    }
}
