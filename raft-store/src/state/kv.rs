//! Keys and values that users and replicas agree on: a small ordered map within the state.
//!
//! Meant for facts (a few hundred bytes each), not for files: keys, values, their number and their sum are
//! bounded, so that neither a snapshot nor a peer's memory grows with what somebody stores here. A change
//! may be made conditional on the entry that last changed the key, which is enough to build a
//! compare-and-set of any kind. What became of keys lately is kept for watchers, apart from the events.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use bincode::{Decode, Encode};
use raftserve_model::LogIndex;

use super::State;
use super::edits::{Edit, edits};
use super::record::Record;
use super::summed::{Recorded, Sum, Summed};
use super::trail::{Compacted, Step, Trail};
use crate::command::{Outcome, Refusal};

/// The longest key, in bytes.
pub const KV_KEY_BYTES_MAX: usize = 256;

/// The largest value, in bytes: an entry of the log stays a small part of a message between peers.
pub const KV_VALUE_BYTES_MAX: usize = 64 << 10;

/// The most keys at once.
pub const KV_KEYS_MAX: usize = 100_000;

/// The most bytes of keys and values together: a snapshot of them is read in well under a second.
pub const KV_BYTES_MAX: u64 = 64 << 20;

/// The most changes of keys that are kept for watchers: nearly two seconds of all that a cluster can write, in which a client finds
/// another peer; minutes of what the store is meant for.
pub const KV_CHANGES_MAX: usize = 50_000;

/// The most bytes of keys and values in the changes that are kept: a snapshot grows by as much.
pub const KV_CHANGES_BYTES_MAX: u64 = 16 << 20;

/// The bytes of keys and values in one record, unless a single one has more.
const RECORD_BYTES: usize = 64 << 10;

/// A key: 1 to 256 bytes of UTF-8 without control characters. Ordered by its bytes. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct KvKey(Arc<str>);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvKeyError {
    /// It is empty.
    #[error("must not be empty")]
    Empty,
    /// It is longer than [`KV_KEY_BYTES_MAX`].
    #[error("has {0} bytes; at most {KV_KEY_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// It would garble a terminal or a log.
    #[error("must not contain control characters")]
    Control,
}

impl FromStr for KvKey {
    type Err = KvKeyError;

    fn from_str(text: &str) -> Result<Self, KvKeyError> {
        match text.len() {
            0 => Err(KvKeyError::Empty),
            1..=KV_KEY_BYTES_MAX if text.chars().any(char::is_control) => Err(KvKeyError::Control),
            1..=KV_KEY_BYTES_MAX => Ok(Self(text.into())),
            length => Err(KvKeyError::TooLong(length)),
        }
    }
}

impl KvKey {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KvKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for KvKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What must hold for a key before it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum KvCondition {
    /// Nothing.
    Any,
    /// There is no such key.
    Absent,
    /// The key was last changed by this entry.
    ModifiedAt(LogIndex),
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KvEntry {
    /// The value.
    pub value: Arc<[u8]>,
    /// The entry that created the key.
    pub created: LogIndex,
    /// The entry that last changed it.
    pub modified: LogIndex,
    /// How often it was put since it was created, from 1.
    pub version: u64,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KvChange {
    /// The entry that changed it. No entry changes two keys.
    pub index: LogIndex,
    /// The entry that changed a key last before; 0 if none did.
    pub before: LogIndex,
    /// The key.
    pub key: KvKey,
    /// What it holds since; none if it was deleted.
    pub entry: Option<Arc<KvEntry>>,
}

impl Step for KvChange {
    const STEPS_MAX: usize = KV_CHANGES_MAX;
    const BYTES_MAX: u64 = KV_CHANGES_BYTES_MAX;

    fn index(&self) -> LogIndex {
        self.index
    }

    fn bytes(&self) -> u64 {
        let value = self.entry.as_ref().map_or(&[][..], |entry| &entry.value);
        bytes_of(&self.key, value)
    }

    fn record(number: u64, change: Arc<Self>) -> Record {
        Record::KeyChange { number, change }
    }
}

/// What a key holds, and the sum of their record, which need not be hashed again when it is replaced.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    entry: Arc<KvEntry>,
    sum: Sum,
}

impl Kept {
    fn new(key: &KvKey, entry: Arc<KvEntry>) -> Self {
        let sum = Sum::of(&record(key, &entry));
        Self { entry, sum }
    }
}

fn record(key: &KvKey, entry: &Arc<KvEntry>) -> Record {
    Record::KeyValues(vec![(key.clone(), Arc::clone(entry))])
}

/// Every key.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyValues {
    by_key: Summed<KvKey, Kept>,
    /// What became of keys lately.
    changes: Trail<KvChange>,
    /// Of all keys and values together.
    bytes: u64,
}

fn bytes_of(key: &KvKey, value: &[u8]) -> u64 {
    (key.0.len() + value.len()) as u64
}

impl KeyValues {
    fn put(
        &mut self,
        index: LogIndex,
        key: &KvKey,
        value: &Arc<[u8]>,
        condition: KvCondition,
    ) -> Result<Outcome, Refusal> {
        let before = self.checked(key, condition)?;
        let former = before.map_or(0, |entry| bytes_of(key, &entry.value));
        let bytes = self.bytes - former + bytes_of(key, value);
        let (created, version) = match before {
            Some(entry) => (entry.created, entry.version + 1),
            None => (index, 1),
        };
        if value.len() > KV_VALUE_BYTES_MAX {
            return Err(Refusal::Limit(format!(
                "a value may have at most {KV_VALUE_BYTES_MAX} bytes, and this one has {}",
                value.len()
            )));
        }
        if before.is_none() && self.by_key.len() >= KV_KEYS_MAX {
            return Err(Refusal::Limit(format!(
                "a cluster holds at most {KV_KEYS_MAX} keys; delete some first"
            )));
        }
        if bytes > KV_BYTES_MAX {
            return Err(Refusal::Limit(format!(
                "all keys and values together may have at most {KV_BYTES_MAX} bytes; delete some first"
            )));
        }
        self.bytes = bytes;
        let entry = Arc::new(KvEntry {
            value: Arc::clone(value),
            created,
            modified: index,
            version,
        });
        let kept = Kept::new(key, Arc::clone(&entry));
        self.by_key.insert(key.clone(), kept);
        self.changed(index, key, Some(entry));
        Ok(Outcome::KeyPut {
            created,
            modified: index,
            version,
        })
    }

    fn delete(
        &mut self,
        index: LogIndex,
        key: &KvKey,
        condition: KvCondition,
    ) -> Result<Outcome, Refusal> {
        self.checked(key, condition)?;
        let removed = self.by_key.remove(key).map(|kept| kept.entry);
        if let Some(entry) = &removed {
            self.bytes -= bytes_of(key, &entry.value);
            self.changed(index, key, None);
        }
        Ok(Outcome::KeyDeleted {
            modified: removed.map(|entry| entry.modified),
        })
    }

    fn changed(&mut self, index: LogIndex, key: &KvKey, entry: Option<Arc<KvEntry>>) {
        let before = self
            .changes
            .last()
            .map_or(self.changes.compacted(), |last| last.index);
        self.changes.push(KvChange {
            index,
            before,
            key: key.clone(),
            entry,
        });
    }

    /// What the key holds, if the condition allows to change it.
    fn checked(&self, key: &KvKey, condition: KvCondition) -> Result<Option<&KvEntry>, Refusal> {
        let entry = self.by_key.get(key).map(|kept| kept.entry.as_ref());
        let modified = entry.map(|entry| entry.modified);
        let holds = match condition {
            KvCondition::Any => true,
            KvCondition::Absent => modified.is_none(),
            KvCondition::ModifiedAt(index) => modified == Some(index),
        };
        match holds {
            true => Ok(entry),
            false => Err(Refusal::KeyConflict {
                key: key.clone(),
                modified,
            }),
        }
    }

    /// What makes a store of `base` one of these, but for what became of keys lately.
    pub(super) fn edits_since<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = Edit> + 'a {
        edits(&base.by_key, &self.by_key)
    }

    pub(super) fn changes(&self) -> &Trail<KvChange> {
        &self.changes
    }

    pub(super) fn sum(&self) -> Sum {
        self.by_key.sum().plus(self.changes.sum())
    }

    pub(super) fn change_records(&self) -> impl Iterator<Item = Record> + '_ {
        self.changes.records_from(0)
    }

    /// Takes the next change of a snapshot; says whether it follows what is there.
    pub(super) fn restore_change(&mut self, number: u64, change: Arc<KvChange>) -> bool {
        if self.changes.is_empty() {
            self.changes.restore_compacted(change.before);
        }
        self.changes.restore(number, change)
    }

    /// Nothing that became of keys up to `index` is known.
    pub(super) fn restore_compacted(&mut self, index: LogIndex) {
        self.changes.restore_compacted(index);
    }

    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let mut rest = self.by_key.iter();
        std::iter::from_fn(move || {
            let mut bytes = 0;
            let mut chunk = Vec::new();
            while bytes < RECORD_BYTES
                && let Some((key, kept)) = rest.next()
            {
                bytes += key.0.len() + kept.entry.value.len();
                chunk.push((key.clone(), Arc::clone(&kept.entry)));
            }
            (!chunk.is_empty()).then_some(Record::KeyValues(chunk))
        })
    }

    pub(super) fn restore(&mut self, entries: Vec<(KvKey, Arc<KvEntry>)>) {
        for (key, entry) in entries {
            self.bytes += bytes_of(&key, &entry.value);
            let kept = Kept::new(&key, entry);
            if let Some(former) = self.by_key.insert(key.clone(), kept) {
                self.bytes -= bytes_of(&key, &former.entry.value);
            }
        }
    }
}

impl Recorded<KvKey> for Kept {
    fn records_beyond(&self, key: &KvKey, _: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(record(key, &self.entry));
    }

    fn sum_beyond(&self, _: &KvKey, _: Option<&Self>) -> Sum {
        self.sum
    }
}

impl State {
    pub(super) fn put_key(
        &mut self,
        index: LogIndex,
        key: &KvKey,
        value: &Arc<[u8]>,
        condition: KvCondition,
    ) -> Result<Outcome, Refusal> {
        self.keys.put(index, key, value, condition)
    }

    pub(super) fn delete_key(
        &mut self,
        index: LogIndex,
        key: &KvKey,
        condition: KvCondition,
    ) -> Result<Outcome, Refusal> {
        self.keys.delete(index, key, condition)
    }

    /// What became of keys after `index`, oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if a change after `index` is no longer kept.
    pub fn key_changes_after(
        &self,
        index: LogIndex,
    ) -> Result<impl Iterator<Item = &Arc<KvChange>>, Compacted> {
        self.keys.changes.after(index)
    }

    /// What a key holds, if there is such a key.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&Arc<KvEntry>> {
        self.keys.by_key.get(key).map(|kept| &kept.entry)
    }

    /// How many keys there are.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.by_key.len()
    }

    /// The bytes of all keys and values together.
    #[must_use]
    pub fn key_bytes(&self) -> u64 {
        self.keys.bytes
    }

    /// The keys that begin with `prefix`, in order, from the first one above `after`.
    pub fn keys_with<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a KvKey, &'a Arc<KvEntry>)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let entries = self.keys.by_key.range::<_, str>((from, Bound::Unbounded));
        entries
            .take_while(move |(key, _)| key.0.starts_with(prefix))
            .map(|(key, kept)| (key, &kept.entry))
    }
}

#[cfg(test)]
mod tests;
