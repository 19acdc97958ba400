//! What the log holds, in memory: where each entry is on disk, the newest entries themselves, and the
//! vote and marks. Everything that the log was told is visible here at once, before it is durable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::format::EncodedEntry;
use crate::disk::DiskFile;
use crate::entry::{LogId, Vote};

/// Where an entry's record is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The segment's number; 0 while the record is not written.
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

const NOT_WRITTEN: Place = Place {
    segment: 0,
    offset: 0,
    length: 0,
};

/// How to come by an entry's body.
pub(super) enum Fetch {
    Cached(EncodedEntry),
    Stored {
        index: u64,
        place: Place,
        file: Arc<dyn DiskFile>,
        salt: u32,
    },
}

impl Fetch {
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Cached(entry) => entry.body().len(),
            Self::Stored { place, .. } => place.length as usize,
        }
    }
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

    /// Takes an entry found on disk. Before it, a log without entries may begin anywhere above what was
    /// purged: its earlier segments are gone.
    pub(super) fn recover(&mut self, id: LogId, place: Place) -> Result<(), OutOfOrder> {
        let got = id.index.0;
        let expected = match self.next() {
            Some(next) if self.places.is_empty() => next.max(got),
            Some(next) => next,
            None => got,
        };
        if got != expected {
            return Err(OutOfOrder { got, expected });
        }
        self.push_place(id, place);
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

    /// How to read the entries of `range` that are held, in order.
    pub(super) fn fetch(&self, range: Range<u64>, bytes_max: usize) -> Vec<Fetch> {
        let held = self.range();
        let cached_from = held.end - self.cache.len() as u64;
        let mut bytes = 0;
        let mut found = Vec::new();
        for index in range.start.max(held.start)..range.end.min(held.end) {
            let fetch = if index >= cached_from {
                let body = self.cache[(index - cached_from) as usize].clone();
                let entry = EncodedEntry::from_body(index, body);
                Fetch::Cached(entry.expect("only whole entries are cached"))
            } else {
                let place = self.places[(index - held.start) as usize];
                let (file, salt) = &self.files[&place.segment];
                Fetch::Stored {
                    index,
                    place,
                    file: Arc::clone(file),
                    salt: *salt,
                }
            };
            bytes += fetch.length();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(fetch);
        }
        found
    }
}
