//! What happened last, kept for watchers: as much of it as a bound allows.

use std::cmp::Ordering;
use std::sync::Arc;

use imbl::Vector;
use raftserve_model::LogIndex;

use super::edits::Edit;
use super::record::Record;
use super::summed::Sum;

/// The asked-for part of a trail is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what happened up to index {upto} is no longer kept; list the present state and watch from there"
)]
pub struct Compacted {
    /// The oldest index from which a watch can resume.
    pub upto: LogIndex,
}

/// What a trail is of.
pub(super) trait Step: Clone {
    /// The most of them that are kept.
    const STEPS_MAX: usize;
    /// The most bytes, as [`Step::bytes`] has them, that are kept.
    const BYTES_MAX: u64;

    /// The entry that caused it.
    fn index(&self) -> LogIndex;

    /// What it takes of [`Step::BYTES_MAX`].
    fn bytes(&self) -> u64;

    /// As it is stored, with its number, counted from the first that ever was.
    fn record(number: u64, step: Arc<Self>) -> Record;
}

/// A step, and the sum of its record, which need not be hashed again when it is dropped.
#[derive(Clone, Debug)]
struct Kept<S> {
    step: Arc<S>,
    sum: Sum,
}

/// The newest steps, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Trail<S> {
    kept: Vector<Kept<S>>,
    /// Everything up to and including this index may have been dropped.
    compacted: LogIndex,
    /// The number of the oldest that is kept.
    first: u64,
    /// Of those that are kept.
    bytes: u64,
    /// Of the records of `kept`.
    sum: Sum,
}

impl<S> Default for Trail<S> {
    fn default() -> Self {
        Self {
            kept: Vector::new(),
            compacted: LogIndex::default(),
            first: 0,
            bytes: 0,
            sum: Sum::default(),
        }
    }
}

impl<S: Step> Trail<S> {
    pub(super) fn push(&mut self, step: S) {
        self.append(Arc::new(step));
        while (self.kept.len() > S::STEPS_MAX || self.bytes > S::BYTES_MAX)
            && let Some(dropped) = self.kept.pop_front()
        {
            self.compacted = dropped.step.index();
            self.bytes -= dropped.step.bytes();
            self.sum = self.sum.minus(dropped.sum);
            self.first += 1;
        }
    }

    fn append(&mut self, step: Arc<S>) {
        self.bytes += step.bytes();
        let sum = Sum::of(&S::record(self.end(), Arc::clone(&step)));
        self.sum = self.sum.plus(sum);
        self.kept.push_back(Kept { step, sum });
    }

    /// Appends what a snapshot holds, which is bounded already; says whether it follows what is there.
    pub(super) fn restore(&mut self, number: u64, step: Arc<S>) -> bool {
        if self.kept.is_empty() {
            self.first = number;
        }
        let follows = number == self.end();
        if follows {
            self.append(step);
        }
        follows
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn last(&self) -> Option<&Arc<S>> {
        self.kept.last().map(|kept| &kept.step)
    }

    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// The number that the next step will have, counted from the first that ever was.
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// The records of the steps from `number` on that are still kept.
    pub(super) fn records_from(&self, number: u64) -> impl Iterator<Item = Record> + '_ {
        let skipped = number
            .saturating_sub(self.first)
            .min(self.end() - self.first);
        let skip = usize::try_from(skipped).unwrap_or(usize::MAX);
        let rest = self.kept.focus().narrow(skip..).into_iter();
        (self.first + skipped..)
            .zip(rest)
            .map(|(number, kept)| S::record(number, Arc::clone(&kept.step)))
    }

    /// What makes a store of `base`, which was before, one of these.
    pub(super) fn edits_since(&self, base: &Self) -> impl Iterator<Item = Edit> {
        // A trail that goes back has another history: nothing of it can be kept.
        let same = base.first <= self.first && base.end() <= self.end();
        let kept_from = if same { self.first } else { base.end() };
        let dropped = base.kept.iter().zip(base.first..kept_from.min(base.end()));
        let dropped = dropped.map(|(kept, number)| {
            let record = S::record(number, Arc::clone(&kept.step));
            Edit::Remove(record.key())
        });
        let known = if same { base.end() } else { 0 };
        dropped.chain(self.records_from(known).map(Edit::Put))
    }

    pub(super) fn after(
        &self,
        index: LogIndex,
    ) -> Result<impl Iterator<Item = &Arc<S>>, Compacted> {
        if index < self.compacted {
            return Err(Compacted {
                upto: self.compacted,
            });
        }
        let from = self
            .kept
            .binary_search_by(|kept| kept.step.index().cmp(&index).then(Ordering::Less))
            .unwrap_or_else(|from| from);
        let after = self.kept.focus().narrow(from..).into_iter();
        Ok(after.map(|kept| &kept.step))
    }

    pub(super) fn compacted(&self) -> LogIndex {
        self.compacted
    }

    pub(super) fn restore_compacted(&mut self, compacted: LogIndex) {
        self.compacted = compacted;
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::{NodeId, WallTime};

    use super::super::events::{EVENTS_MAX, Event, EventKind};
    use super::*;

    fn event(index: u64) -> Event {
        Event {
            index: LogIndex(index),
            time: WallTime::default(),
            service: None,
            kind: EventKind::ControlStarted { node: NodeId(1) },
        }
    }

    /// The indexes after `index`, or from where a watch can resume.
    fn after(trail: &Trail<Event>, index: u64) -> Result<Vec<u64>, u64> {
        let after = trail.after(LogIndex(index));
        let after = after.map_err(|compacted| compacted.upto.0)?;
        Ok(after.map(|event| event.index.0).collect())
    }

    #[test]
    fn an_index_of_which_a_part_was_dropped_is_told_to_nobody() {
        let mut trail = Trail::default();
        // Three at each index, of which the first of 1 has gone.
        for number in 0..=EVENTS_MAX as u64 {
            trail.push(event(1 + number / 3));
        }
        let restored = |trail: &Trail<Event>| {
            let mut restored = Trail::default();
            for (number, kept) in (trail.first..).zip(&trail.kept) {
                assert!(restored.restore(number, Arc::clone(&kept.step)));
            }
            restored.restore_compacted(trail.compacted());
            restored
        };
        for trail in [restored(&trail), trail] {
            assert_eq!(trail.kept.front().unwrap().step.index, LogIndex(1));
            assert_eq!(after(&trail, 0).err(), Some(1));
            let whole = after(&trail, 1).unwrap();
            assert_eq!(whole[..4], [2, 2, 2, 3]);
            assert_eq!(whole.len(), EVENTS_MAX - 2);
        }
    }
}
