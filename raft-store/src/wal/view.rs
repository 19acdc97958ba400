//! What the log holds, in memory: where each entry is on disk, the newest entries themselves, and the
//! vote and marks. Everything that the log was told is visible here at once, before it is durable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::format::EncodedEntry;
use crate::disk::DiskFile;
use crate::entry::{LogId, Vote};

/// Bytes read at once: enough that a call costs little beside copying, and what one apply step takes.
const RUN_MAX: u64 = 1 << 20;

/// Marks between entries that are read along rather than read around.
const GAP_MAX: u64 = 4 << 10;

/// Where an entry's record is. Small, since there is one for every entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The segment's number; 0 while the record is not written.
    segment: u32,
    offset: u32,
    length: u32,
}

const NOT_WRITTEN: Place = Place {
    segment: 0,
    offset: 0,
    length: 0,
};

impl Place {
    /// None for a number or an offset far beyond what is ever written.
    pub(super) fn new(segment: u64, offset: u64, length: usize) -> Option<Self> {
        Some(Self {
            segment: segment.try_into().ok()?,
            offset: offset.try_into().ok()?,
            length: length.try_into().ok()?,
        })
    }

    pub(super) fn segment(self) -> u64 {
        self.segment.into()
    }

    pub(super) fn offset(self) -> u64 {
        self.offset.into()
    }

    pub(super) fn length(self) -> usize {
        self.length as usize
    }

    /// Where the record ends.
    pub(super) fn end(self) -> u64 {
        self.offset() + self.length() as u64
    }
}

/// Entries that are read from a file at once: consecutive, and close to each other.
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) places: Vec<Place>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) salt: u32,
}

impl Run {
    /// Whether `place` is worth reading along.
    fn takes(&self, place: Place) -> bool {
        let (first, last) = (self.places.first(), self.places.last());
        first
            .zip(last)
            .is_some_and(|(first, last): (&Place, &Place)| {
                place.segment == last.segment
                    && place.offset() >= last.end()
                    && place.offset() - last.end() <= GAP_MAX
                    && place.end() - first.offset() <= RUN_MAX
            })
    }
}

/// How to come by entries' bodies.
pub(super) enum Fetch {
    Cached(EncodedEntry),
    Stored(Run),
}

/// An append that would leave a hole or overwrite an entry.
#[derive(Debug, thiserror::Error)]
#[error("entry {got} does not follow the log, whose next entry is {expected}")]
pub struct OutOfOrder {
    /// The entry that was to be appended.
    pub got: u64,
    /// The one that the log could take.
    pub expected: u64,
}

#[derive(Debug)]
pub(super) struct View {
    /// The index of the first place.
    first: u64,
    /// One per entry, without gaps.
    places: VecDeque<Place>,
    /// Bodies of the newest entries; always of those that are not written yet.
    cache: VecDeque<Bytes>,
    cached_bytes: usize,
    cache_max: usize,
    /// The last entry's id, or that of the last one purged.
    last: Option<LogId>,
    purged: Option<LogId>,
    /// Up to where the purge was written, or is queued to be.
    durably_purged: Option<LogId>,
    /// Counts truncations, so that a place is never given to the successor of the entry it belongs to.
    epoch: u64,
    /// Truncations that are not written yet: their epoch, and the first index that they void.
    truncations: VecDeque<(u64, u64)>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// Open segments with the salts of their records.
    pub(super) files: BTreeMap<u64, (Arc<dyn DiskFile>, u32)>,
}

impl View {
    pub(super) fn new(cache_max: usize) -> Self {
        Self {
            first: 0,
            places: VecDeque::new(),
            cache: VecDeque::new(),
            cached_bytes: 0,
            cache_max,
            last: None,
            purged: None,
            durably_purged: None,
            epoch: 0,
            truncations: VecDeque::new(),
            vote: None,
            committed: None,
            files: BTreeMap::new(),
        }
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.last
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The indexes of the entries that are held.
    pub(super) fn range(&self) -> Range<u64> {
        self.first..self.first + self.places.len() as u64
    }

    /// The index that the next entry must have; none if any above the purged ones will do.
    fn next(&self) -> Option<u64> {
        if !self.places.is_empty() {
            Some(self.range().end)
        } else {
            self.purged.map(|id| id.index.0 + 1)
        }
    }

    /// The size of the entry at `place`, counted from the oldest.
    fn size(&self, place: usize) -> u64 {
        let uncached = self.places.len() - self.cache.len();
        let cached = place.checked_sub(uncached);
        let length = cached.map_or_else(
            || self.places[place].length(),
            |cached| self.cache[cached].len(),
        );
        length as u64
    }

    /// The bytes of those entries of `range` that are held.
    pub(super) fn bytes_of(&self, range: Range<u64>) -> u64 {
        let held = self.range();
        let range = range.start.max(held.start)..range.end.min(held.end);
        let places = range.map(|index| (index - held.start) as usize);
        places.map(|place| self.size(place)).sum()
    }

    /// The index from which on the entries held take `bytes` at most.
    pub(super) fn start_of(&self, bytes: u64) -> u64 {
        let mut left = bytes;
        let newest = (0..self.places.len()).rev();
        let fitting = newest.take_while(|place| {
            let rest = left.checked_sub(self.size(*place));
            left = rest.unwrap_or(0);
            rest.is_some()
        });
        self.range().end - fitting.count() as u64
    }

    fn push_place(&mut self, id: LogId, place: Place) {
        if self.places.is_empty() {
            self.first = id.index.0;
        }
        self.places.push_back(place);
        self.last = Some(id);
    }

    /// Takes entries that are not written yet. Returns the epoch that they belong to.
    pub(super) fn append(&mut self, entries: &[EncodedEntry]) -> Result<u64, OutOfOrder> {
        let first = entries.first().map_or(0, |entry| entry.id.index.0);
        for (entry, expected) in entries.iter().zip(self.next().unwrap_or(first)..) {
            let got = entry.id.index.0;
            if got != expected {
                return Err(OutOfOrder { got, expected });
            }
        }
        for entry in entries {
            self.push_place(entry.id, NOT_WRITTEN);
            self.cached_bytes += entry.body().len();
            self.cache.push_back(entry.body().clone());
        }
        Ok(self.epoch)
    }

    /// Takes entries found on disk, from index `first` to the id `last`. Before them, a log without entries may
    /// begin anywhere above what was purged: its earlier segments are gone.
    pub(super) fn recover(
        &mut self,
        first: u64,
        places: Vec<Place>,
        last: LogId,
    ) -> Result<(), OutOfOrder> {
        let expected = match self.next() {
            Some(next) if self.places.is_empty() => next.max(first),
            Some(next) => next,
            None => first,
        };
        if first != expected {
            let got = first;
            return Err(OutOfOrder { got, expected });
        }
        if self.places.is_empty() {
            self.first = first;
        }
        self.places.extend(places);
        self.last = Some(last);
        Ok(())
    }

    /// Notes where an entry was written, unless it was truncated or purged meanwhile.
    pub(super) fn place(&mut self, epoch: u64, index: u64, place: Place) {
        let mut later = self.truncations.iter().filter(|(at, _)| *at > epoch);
        if later.all(|(_, end)| index < *end) && self.range().contains(&index) {
            self.places[(index - self.first) as usize] = place;
        }
    }

    /// Drops the oldest cached bodies that are over the limit and on disk.
    pub(super) fn trim_cache(&mut self) {
        while self.cached_bytes > self.cache_max {
            let oldest = self.places.len() - self.cache.len();
            if self.places.get(oldest).is_none_or(|it| it.segment == 0) {
                return;
            }
            self.cached_bytes -= self.cache.pop_front().map_or(0, |body| body.len());
        }
    }

    /// Voids every entry after `keep`, or all of them, before that is written. Returns the epoch that begins.
    pub(super) fn begin_truncate(&mut self, keep: Option<LogId>) -> u64 {
        self.truncate(keep);
        self.epoch += 1;
        let end = keep.map_or(0, |id| id.index.0 + 1);
        self.truncations.push_back((self.epoch, end));
        self.epoch
    }

    /// The truncation that began `epoch` is written, and with it all that was queued before.
    pub(super) fn truncate_written(&mut self, epoch: u64) {
        self.truncations.retain(|(at, _)| *at > epoch);
    }

    /// Voids every entry after `keep`, or all of them.
    pub(super) fn truncate(&mut self, keep: Option<LogId>) {
        let end = keep.map_or(0, |id| id.index.0 + 1);
        if end >= self.range().end {
            return;
        }
        let left = end.saturating_sub(self.first) as usize;
        while self.places.len() > left {
            self.places.pop_back();
            let body = self.cache.pop_back();
            self.cached_bytes -= body.map_or(0, |body| body.len());
        }
        self.last = if left == 0 { self.purged } else { keep };
    }

    /// Notes a purge that is to be written; false if an earlier one went as far.
    pub(super) fn moves_durable_purge(&mut self, upto: LogId) -> bool {
        let moves = self.durably_purged.is_none_or(|id| id.index < upto.index);
        if moves {
            self.durably_purged = Some(upto);
        }
        moves
    }

    /// Forgets every entry up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        while !self.places.is_empty() && self.first <= upto.index.0 {
            if self.cache.len() == self.places.len() {
                let body = self.cache.pop_front();
                self.cached_bytes -= body.map_or(0, |body| body.len());
            }
            self.places.pop_front();
            self.first += 1;
        }
        if self.places.is_empty() {
            self.last = Some(upto);
        }
    }

    /// How to read the entries of `range` that are held, in order: all of them, or as many as fit into
    /// `bytes_max` and at least one.
    pub(super) fn fetch(&self, range: Range<u64>, bytes_max: usize) -> Vec<Fetch> {
        let held = self.range();
        let cached_from = held.end - self.cache.len() as u64;
        let mut bytes = 0_usize;
        let mut found: Vec<Fetch> = Vec::new();
        for index in range.start.max(held.start)..range.end.min(held.end) {
            let place = self.places[(index - held.start) as usize];
            let cached = index
                .checked_sub(cached_from)
                .map(|at| &self.cache[at as usize]);
            bytes = bytes.saturating_add(cached.map_or(place.length(), Bytes::len));
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            if let Some(body) = cached {
                let entry = EncodedEntry::from_body(index, body.clone());
                found.push(Fetch::Cached(entry.expect("only whole entries are cached")));
            } else if let Some(Fetch::Stored(run)) = found.last_mut()
                && run.takes(place)
            {
                run.places.push(place);
            } else {
                let (file, salt) = &self.files[&place.segment()];
                found.push(Fetch::Stored(Run {
                    first: index,
                    places: vec![place],
                    file: Arc::clone(file),
                    salt: *salt,
                }));
            }
        }
        found
    }
}
